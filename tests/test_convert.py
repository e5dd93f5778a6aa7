"""`python -m coin_jax.convert` from names, folders and runs."""

import jax
import make_golden_activations as golden
import numpy as np
import pytest

from coin_jax import convert
from coin_jax.config import Config
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


@pytest.mark.parametrize("part", ["", "checkpoints/40"], ids=["run", "checkpoint"])
def test_a_run_becomes_a_folder_with_the_tokenizer_it_was_trained_with(
    part, source, tmp_path, monkeypatch
):
    model, params = huggingface.load(source)
    run = tmp_path / "runs" / "coin"
    (run / "checkpoints" / "40").mkdir(parents=True)
    (run / "config.json").write_text("{}")  # a run's own config, not that of a model
    (run / "tokenizer").mkdir()
    (run / "tokenizer" / "spiece.model").write_bytes(b"pieces")

    def load_parameters(path):
        assert str(path) == str(run / part)
        return Config(model=model), params

    monkeypatch.setattr("coin_jax.training.checkpoint.load_parameters", load_parameters)
    convert.main(["--from", str(run / part), "--to", str(tmp_path / "out")])
    check(tmp_path / "out", params)


@pytest.mark.parametrize(
    ("source", "message"),
    [("./nowhere", "neither a folder nor a Hugging Face name"), ("", "neither a run directory")],
)
def test_what_cannot_be_read_ends_in_one_message_and_not_a_traceback(source, message, tmp_path):
    source = source or str(tmp_path)
    with pytest.raises(SystemExit, match=message):
        convert.main(["--from", source, "--to", str(tmp_path / "out")])
