"""`python -m coin_jax.convert` from names, folders and runs."""

import sys
import types

import jax
import make_golden_activations as golden
import numpy as np
import pytest

from coin_jax import convert
from coin_jax.config import Config, TokenizerConfig
from coin_jax.model import huggingface

FLAN = golden.CASES["flan_t5"]


@pytest.fixture
def source(tmp_path):
    folder = golden.write(FLAN, tmp_path / "source")
    (folder / "spiece.model").write_bytes(b"pieces")
    return folder


def check(folder, expected):
    _, params = huggingface.load(folder)
    for value, array in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(value, array)
    assert (folder / "spiece.model").read_bytes() == b"pieces"


def test_a_folder_becomes_a_folder_with_its_tokenizer(source, tmp_path, capsys):
    convert.main(["--from", str(source), "--to", str(tmp_path / "out")])
    check(tmp_path / "out", huggingface.load(source)[1])
    assert str(tmp_path / "out") in capsys.readouterr().out


def test_a_run_becomes_a_folder_with_the_tokenizer_it_was_trained_with(
    source, tmp_path, monkeypatch
):
    model, params = huggingface.load(source)
    config = Config(model=model, tokenizer=TokenizerConfig(path=str(source)))
    run = tmp_path / "runs" / "coin"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")  # a run's own config, not that of a model

    def load_parameters(path):
        assert str(path) == str(run)
        return config, params

    module = types.SimpleNamespace(load_parameters=load_parameters)
    monkeypatch.setitem(sys.modules, "coin_jax.training.checkpoint", module)
    convert.main(["--from", str(run), "--to", str(tmp_path / "out")])
    check(tmp_path / "out", params)


def test_what_cannot_be_read_ends_in_one_message_and_not_a_traceback(tmp_path):
    with pytest.raises(SystemExit, match="neither a folder nor a Hugging Face name"):
        convert.main(["--from", "./nowhere", "--to", str(tmp_path / "out")])
