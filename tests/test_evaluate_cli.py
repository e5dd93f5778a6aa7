"""`coin_jax.evaluate` and the suite that training watches, on a tiny run."""

import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pyarrow.parquet
import pytest
from cluster import cluster, endings
from training_runs import CONFIG, ROOT

from coin_jax import evaluate, train
from coin_jax.config import ConfigError
from coin_jax.parallel.mesh import make_mesh
from coin_jax.training.logging import read_metrics

SUITE = {
    "sample": 6,
    "tasks": {
        "tense": {
            "data": "builtin:tense",
            "fields": ["sentence"],
            "answers": {"past": "past", "present": "present", "future": "future"},
        }
    },
    "prompts": {
        "plain": {
            "tense": [
                "Which tense does this sentence stand in?\n{sentence}\n{options_}",
                "Choose between past, present and future: {sentence}",
            ]
        },
        "role": {"tense": ["You are a careful grammar teacher naming tenses.\n{sentence}"]},
    },
    "perturbations": [{"condition": "typos", "method": "deepwordbug"}],
    "attacks": [{"condition": "attack", "method": "deepwordbug", "instances": 4, "budget": 6}],
}
WATCHED = """
from coin_jax.config import *
import dataclasses

def watched(config):
    return dataclasses.replace(
        config,
        evaluation=EvaluationConfig(
            every=4, instances_per_task=1, suite={suite!r}, suite_sample=3
        ),
        checkpoint=CheckpointConfig(
            every=4, keep_best=True, best_metric="evaluation/suite/typos/worst"
        ),
    )

plain = get_config
get_config = lambda arg="": watched(plain(arg))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds suite.json and a run that watched it, and a copy of the run as a second one."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "suite.json").write_text(json.dumps(SUITE))
    (folder / "config.py").write_text(CONFIG + WATCHED.format(suite=str(folder / "suite.json")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
        status = train.main(["--config", str(folder / "config.py"), "--output", str(folder)])
    assert status == 0
    shutil.copytree(folder / "run", folder / "other")
    return folder


def test_training_watches_a_suite(folder):
    records = [r for r in read_metrics(folder / "run" / "metrics.jsonl") if "step" in r]
    watched = {r["step"]: r for r in records if "evaluation/suite/typos/worst" in r}
    assert sorted(watched) == [4, 8]
    for record in watched.values():
        for condition in ("plain", "role", "typos", "all"):
            assert 0 <= record[f"evaluation/suite/{condition}/mean"] <= 1
        assert record["evaluation/suite/tense/plain/mean"] * 6 % 1 == pytest.approx(0)
        assert "evaluation/unseen/mean" in record


@pytest.fixture(scope="module")
def evaluated(folder):
    """What the command left for two runs with the same parameters."""
    output = folder / "evaluation"
    arguments = [
        *("--checkpoint", f"coin={folder / 'run'}", f"baseline={folder / 'other'}"),
        *("--suite", str(folder / "suite.json"), "--output", str(output), "--resamples", "50"),
    ]
    assert evaluate.main(arguments) == 0
    return arguments, output


def test_an_evaluation_leaves_results_predictions_and_a_page(evaluated):
    _, output = evaluated
    results = json.loads((output / "results.json").read_text())
    assert results["suite"]["conditions"] == ["plain", "role", "typos", "attack"]
    assert {cell["condition"] for cell in results["cells"]} >= {"attack", "all"}
    assert {run["group"] for run in results["runs"]} == {"coin", "baseline"}
    assert len(results["gaps"]) == 2 * 5
    assert len(results["attacks"]) == 2 * 2
    rows = pyarrow.parquet.read_table(output / "predictions.parquet").to_pylist()
    assert len(rows) == 2 * 2 * 6 * (2 + 1 + 2 + 2)
    for cell in results["cells"]:
        if cell["condition"] != "all":
            same = [
                row["correct"]
                for row in rows
                if all(row[n] == cell[n] for n in ("run", "task", "condition", "scoring"))
            ]
            assert cell["mean"] == pytest.approx(sum(same) / len(same))
    assert all(row["difference"] == 0 for row in results["comparisons"])
    page = (output / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")


def test_a_repeated_evaluation_asks_nothing_again(evaluated, monkeypatch):
    arguments, output = evaluated
    before = json.loads((output / "results.json").read_text())
    for name in ("score", "generate"):
        monkeypatch.setattr(evaluate.Predictor, name, lambda *_, **__: pytest.fail("asked again"))
    assert evaluate.main(arguments) == 0
    after = json.loads((output / "results.json").read_text())
    assert before.pop("created") <= after.pop("created")
    assert before == after


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_measure_what_one_does(folder, evaluated, tmp_path, count):
    """What process 1 finds of the suite and in the store is of no matter: process 0 leads."""
    arguments, output = evaluated
    arguments = [*arguments[:2], *arguments[3:]]  # of one run
    arguments[arguments.index(str(output))] = str(tmp_path / "output")
    shutil.copytree(output / "predictions", tmp_path / "output" / "predictions")
    for number, answered in enumerate(sorted((tmp_path / "output" / "predictions").iterdir())):
        if number % 2:
            answered.unlink()
    with cluster(count, *arguments, module="coin_jax.evaluate") as processes:
        found = endings(processes)
    assert [status for status, _, _ in found] == [0] * count, found
    one, several = (
        pyarrow.parquet.read_table(folder / "predictions.parquet").to_pylist()
        for folder in (output, tmp_path / "output")
    )
    one = [row for row in one if row["run"] == "coin"]
    assert len(one) == len(several)
    for wanted, row in zip(one, several, strict=True):
        np.testing.assert_allclose(row.pop("scores") or [], wanted.pop("scores") or [], atol=1e-4)
        assert row == wanted


@pytest.mark.slow
def test_a_process_that_reads_another_model_is_named(folder, tmp_path):
    """As where hosts have folders of their own."""
    arguments = ("--suite", folder / "suite.json", "--output", tmp_path / "output")
    shutil.copytree(folder / "run", tmp_path / "0" / "run")
    shutil.copytree(folder / "run", tmp_path / "1" / "run")
    shutil.rmtree(tmp_path / "1" / "run" / "checkpoints" / "8")
    with cluster(
        2, "--checkpoint", "run", *arguments, module="coin_jax.evaluate", folders=tmp_path
    ) as processes:
        (_, _, heard), (status, _, err) = endings(processes)
    assert status == 1
    assert re.match(r"process 1 \(.*\) has another model in run than process 0", err)
    assert "process 1 (" in heard


def test_a_suite_prompt_that_was_trained_on_is_reported(folder, tmp_path, capsys):
    from coin_jax.data.builtin.wordings import WORDINGS

    suite = json.loads(json.dumps(SUITE))
    suite["prompts"]["plain"]["tense"][0] = WORDINGS["tense"].training[0]
    (tmp_path / "suite.json").write_text(json.dumps(suite))
    status = evaluate.main(
        [
            *("--checkpoint", str(folder / "run"), "--suite", str(tmp_path / "suite.json")),
            *("--output", str(tmp_path), "--no-attacks", "--scoring", "likelihood"),
        ]
    )
    assert status == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert any("plain" in note and "tense" in note for note in results["suite"]["notes"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["runs/coin"], [("coin", "coin", "runs/coin")]),
        (["a=x", "b=y"], [("a", "a", "x"), ("b", "b", "y")]),
        (["a=x/0", "b=y", "a=x/1"], [("a-0", "a", "x/0"), ("b", "b", "y"), ("a-1", "a", "x/1")]),
        (["torch:google/t5"], [("t5", "t5", "torch:google/t5")]),
    ],
)
def test_runs_are_named_and_grouped(given, expected):
    named = evaluate.named_checkpoints(given)
    assert [(n.run, n.group, n.checkpoint) for n in named] == expected


@pytest.mark.parametrize("given", [["=x"], ["a="], ["x", "x"], []])
def test_checkpoints_that_cannot_be_told_apart_are_refused(given):
    with pytest.raises(ConfigError, match="--checkpoint"):
        evaluate.named_checkpoints(given)


def test_a_wrong_suite_or_checkpoint_is_one_message(folder, tmp_path):
    environment = os.environ | {"XLA_FLAGS": ""}
    suite = tmp_path / "wrong.json"
    suite.write_text(json.dumps(SUITE | {"promts": {}}))
    for checkpoint, file, expected in (
        (folder / "run", suite, "promts"),
        (folder / "nowhere", folder / "suite.json", "nowhere"),
    ):
        command = [sys.executable, "-m", "coin_jax.evaluate", "--checkpoint", str(checkpoint)]
        command += ["--suite", str(file), "--output", str(tmp_path / "output")]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 1
        assert expected in done.stderr
        assert "Traceback" not in done.stderr


def test_the_shipped_suites_are_beside_the_package():
    assert {path.name for path in (pathlib.Path(ROOT) / "suites").iterdir()} >= {
        "builtin.json",
        "glue.json",
    }


def test_any_hugging_face_model_is_evaluated_through_torch(folder, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    import transformers

    config = transformers.T5Config(
        vocab_size=384,
        d_model=8,
        d_kv=4,
        d_ff=8,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    transformers.ByT5Tokenizer().save_pretrained(tmp_path / "model")
    status = evaluate.main(
        [
            *("--checkpoint", f"torch:{tmp_path / 'model'}"),
            *("--suite", str(folder / "suite.json"), "--output", str(tmp_path / "output")),
            *("--no-attacks", "--max-new-tokens", "4", "--sample", "2"),
        ]
    )
    assert status == 0
    results = json.loads((tmp_path / "output" / "results.json").read_text())
    assert [run["name"] for run in results["runs"]] == ["model"]
    assert results["gaps"] == []
