"""The main job from end to end: `coin_jax.train.main` with a tiny model, on the first device.

A run is stopped by real signals and goes on as if nothing had been.
"""

import dataclasses
import functools
import json
import pathlib
import re
import shutil
import signal
import sys
import threading
import time

import jax
import numpy as np
import pytest
from training_runs import (
    CONFIG,
    SLOW,
    assert_same_run,
    at_step,
    compiled_once,
    process,
    records,
    steps_on_disk,
)

from coin_jax import train
from coin_jax.config_files import load_file
from coin_jax.model import huggingface
from coin_jax.model.t5 import T5
from coin_jax.parallel.mesh import make_mesh
from coin_jax.training.checkpoint import load_parameters
from coin_jax.training.logging import MetricLog, read_metrics

# Where the tests read a state whole, whatever devices it was on.
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture(scope="module", autouse=True)
def shared_programs(tmp_path_factory):
    with compiled_once(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """One of the eight fake devices, as if it were alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
        yield


@pytest.fixture(autouse=True)
def ctrl_c_interrupts():
    """As at a terminal: a shell's background jobs are started with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run(config_file, tmp_path):
    """run(*options, output=folder) -> exit status of the main job."""

    def start(*options, output=tmp_path):
        return train.main(["--config", config_file, "--output", str(output), *map(str, options)])

    return start


@pytest.fixture(scope="module")
def straight(config_file, tmp_path_factory):
    """(run directory of a run that nothing stopped, what it printed)."""
    output = tmp_path_factory.mktemp("straight")
    arguments = ["--config", config_file, "--output", str(output), "--training.tensorboard"]
    with pytest.MonkeyPatch.context() as patch:
        printed = (output / "printed").open("w+")
        patch.setattr(sys, "stdout", printed)
        assert train.main(arguments) == 0
    printed.seek(0)
    return output / "run", printed.read()


def test_a_run_leaves_config_tokenizer_metrics_curves_predictions_and_a_checkpoint(
    straight, config_file
):
    directory, _ = straight
    assert load_file(str(directory / "config.json")).model == load_file(config_file).model
    assert (directory / "tokenizer").is_dir()
    assert steps_on_disk(directory) == [4, 8]
    assert (directory / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((directory / "tensorboard").glob("events*"))
    evaluation = json.loads((directory / "evaluation.json").read_text())
    assert set(evaluation) == {"summary", "tasks", "predictions"}
    assert len(evaluation["predictions"]) == 8 * 16  # tasks x wordings x 1 instance
    found = records(directory)
    assert [r["step"] for r in found] == [3, 5, 6, 8, 8]
    assert [r["step"] for r in found if "evaluation/unseen/mean" in r] == [5, 8]
    training = read_metrics(directory / "metrics.jsonl")[0]
    expected = "loss generation_loss contrastive_loss token_accuracy gradient_norm learning_rate"
    assert {f"train/{name}" for name in expected.split()} < training.keys()
    assert {"train/tokens_per_second", "train/model_flops_per_second"} < training.keys()
    assert 0 < training["train/utilization"] < 2


def test_a_run_ends_with_the_accuracies_and_where_things_lie(straight):
    directory, printed = straight
    assert "Accuracy over wordings" in printed
    assert "average" in printed
    flat = printed.replace("\n", "").replace(" ", "")
    for name in ("checkpoints/8", "metrics.jsonl", "curves.png", "evaluation.json"):
        assert str(directory / name).replace(" ", "") in flat
    assert re.search(r"step 8/8  generation \d.*contrastive \d.*tokens/s", printed)


@pytest.mark.parametrize(("step", "number"), [(1, signal.SIGTERM), (5, signal.SIGINT), (7, 15)])
def test_a_run_stopped_after_any_step_goes_on_bit_for_bit(
    run, straight, tmp_path, monkeypatch, capsys, step, number
):
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: signal.raise_signal(number))
        assert run() == 128 + number
    assert f"Stopped at step {step} and saved" in capsys.readouterr().out
    directory = tmp_path / "run"
    assert max(steps_on_disk(directory)) == step
    assert not (directory / "evaluation.json").exists()
    assert run() == 0
    assert f"Going on from step {step}" in capsys.readouterr().out
    assert_same_run(directory, straight[0])


def test_a_run_that_crashed_goes_on_from_its_last_checkpoint_bit_for_bit(
    run, straight, tmp_path, monkeypatch
):
    def crash():
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        at_step(patch, 8, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            run()
    directory = tmp_path / "run"
    assert steps_on_disk(directory) == [4]
    assert records(directory)[-1]["step"] == 6  # a record that will be written again
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "tra')  # a line that a crash cut
    assert run() == 0
    assert_same_run(directory, straight[0])


def test_a_second_ctrl_c_ends_at_once_and_leaves_the_last_checkpoint_whole(
    run, tmp_path, monkeypatch, capsys
):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(monkeypatch, 6, twice)
    assert run() == 130
    assert "Interrupted" in capsys.readouterr().err
    assert steps_on_disk(tmp_path / "run") == [4]
    assert load_parameters(tmp_path / "run")[0].name == "run"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_finished_run_shows_its_results_again_and_changes_nothing(run, straight, capsys):
    directory, printed = straight
    before = {
        path: path.read_bytes()
        for name in ("metrics.jsonl", "evaluation.json", "config.json")
        for path in [directory / name]
    }
    assert run(output=directory.parent) == 0
    again = capsys.readouterr().out
    table = printed[printed.index("Accuracy over") : printed.index("speed")]
    assert table in again
    # Only the writer that was asked for differs between the two command lines.
    assert "changed since: training.tensorboard: True -> False" in again
    for path, content in before.items():
        if path.name != "config.json":
            assert path.read_bytes() == content
    assert steps_on_disk(directory) == [4, 8]


def test_a_loss_that_is_not_finite_stops_the_run_with_its_batch_saved(run, tmp_path, capsys):
    options = ("--optimizer.learning-rate", 1e30, "--optimizer.warmup-steps", 0)
    assert run(*options, "--checkpoint.every", 1) == 1
    directory = tmp_path / "run"
    message = capsys.readouterr().err
    assert re.match(r"Step \d+ is not finite: .*(loss|gradient_norm) = (nan|inf)", message)
    step = int(message.split()[1])
    assert str(directory / f"diverged_batch_{step}.npz") in message
    with np.load(directory / f"diverged_batch_{step}.npz") as batch:
        assert batch["encoder_tokens"].shape == (4, 224)
        assert {"decoder_targets", "pair_members"} <= set(batch.files)
    assert steps_on_disk(directory) == list(range(max(1, step - 2), step))
    load_parameters(directory)
    assert all(np.isfinite(r["train/loss"]) for r in records(directory) if "train/loss" in r)


@pytest.fixture(scope="module")
def without_dropout(config_file, tmp_path_factory):
    """(run directory, options): its numbers may be compared between programs that round apart."""
    output = tmp_path_factory.mktemp("plain")
    options = ["--model.dropout-rate", "0", "--training.log-every", "1"]
    assert train.main(["--config", config_file, "--output", str(output), *options]) == 0
    return output / "run", options


def assert_same_losses(directory, expected):
    found = records(directory)
    assert [record.keys() for record in found] == [record.keys() for record in records(expected)]
    for left, right in zip(found, records(expected), strict=True):
        for name in {"train/loss", "train/contrastive_loss", "train/learning_rate"} & left.keys():
            assert left[name] == pytest.approx(right[name], rel=1e-3), (left["step"], name)


def test_accumulation_gives_the_same_losses(run, without_dropout, tmp_path):
    directory, options = without_dropout
    assert run(*options, "--optimizer.accumulation-steps", 2) == 0
    assert_same_losses(tmp_path / "run", directory)


def test_a_run_goes_on_over_eight_devices(run, without_dropout, tmp_path, monkeypatch, capsys):
    directory, options = without_dropout
    shutil.copytree(directory, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    monkeypatch.setattr(train, "make_mesh", make_mesh)
    assert run(*options, "--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.tensor", 2) == 0
    printed = capsys.readouterr().out
    assert "Going on from step 4" in printed
    assert "8 CPU devices (data 2 x fsdp 2 x tensor 2)" in printed
    assert_same_losses(tmp_path / "run", directory)


@pytest.fixture
def text_options(tmp_path):
    (tmp_path / "books").mkdir()
    for name in ("one", "two"):
        lines = [f"In {name} the number {n} stands beside {n * n}." for n in range(200)]
        (tmp_path / "books" / f"{name}.txt").write_text("\n".join(lines))
    return (
        *("--data.source", "text", "--data.files", tmp_path / "books" / "*.txt"),
        *("--objective.method", "cross_entropy", "--batch.encoder-length", 64),
        *("--batch.decoder-length", 24, "--batch.segments-per-row", 1, "--name", "pretrain"),
    )


def test_span_corruption_pretrains_on_text_and_tokenises_it_once(
    run, straight, tmp_path, monkeypatch, capsys, text_options
):
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: signal.raise_signal(signal.SIGTERM))
        assert run(*text_options) == 143
    (cached,) = (tmp_path / "pretrain" / "tokens").iterdir()
    written = cached.stat().st_mtime_ns
    assert run(*text_options) == 0
    assert cached.stat().st_mtime_ns == written
    printed = capsys.readouterr().out
    assert re.search(r"\d tokens in 2 files; 0 lines skipped", printed)
    assert "windows an epoch" in printed
    assert "Accuracy" not in printed
    assert run(*text_options, "--name", "whole") == 0
    assert_same_run(tmp_path / "pretrain", tmp_path / "whole")
    assert "train/contrastive_loss" not in records(tmp_path / "whole")[0]


def test_one_wording_a_batch_in_a_mixture_goes_on_bit_for_bit(run, tmp_path, monkeypatch, capsys):
    options = (
        *("--objective.method", "cross_entropy", "--batch.mode", "one_wording"),
        *("--training.steps", 4, "--data.mixture-weights", "person", 1, "tense", 3),
    )
    assert run(*options, "--name", "whole") == 0
    printed = capsys.readouterr().out
    assert "mixture, kept in every 10,000 sets: tense 75%, person 25%" in printed
    assert "64 instances an epoch" in printed
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGTERM))
        assert run(*options) == 143
    assert run(*options[:-1], 2) == 1
    assert "saved under another mixture of tasks" in capsys.readouterr().err
    assert run(*options) == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole", step=4)
    assert "train/contrastive_loss" not in records(tmp_path / "whole")[0]


def test_a_run_starts_from_a_hugging_face_folder_and_goes_on_without_it(
    run, config_file, tmp_path, monkeypatch
):
    """The folder's config.json says what the architecture is, and not the run's own fields."""
    architecture = load_file(config_file).model
    pretrained = jax.tree.map(np.asarray, T5(architecture).init(jax.random.key(1)))
    folder = tmp_path / "pretrained"
    huggingface.save(folder, architecture, pretrained)
    options = ("--model.init-from", folder, "--model.d-ff", 40, "--model.num-layers", 3)
    started = []
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGTERM))
        create = train.create_state
        patch.setattr(train, "create_state", lambda *a: started.append(create(*a)) or kept())
        kept = lambda: jax.tree.map(jax.numpy.copy, started[0])  # noqa: E731
        assert run(*options) == 143
    jax.tree.map(np.testing.assert_array_equal, started[0].params, pretrained)
    folder.rename(tmp_path / "gone")
    assert run(*options) == 0
    saved = load_file(str(tmp_path / "run" / "config.json")).model
    assert dataclasses.replace(saved, init_from="") == architecture
    assert load_parameters(tmp_path / "run")[0].model == saved


def test_a_tokenizer_is_learned_once_and_stays_the_runs_own(run, tmp_path, monkeypatch):
    options = ("--tokenizer.kind", "sentencepiece", "--tokenizer.vocabulary-size")
    model = tmp_path / "run" / "tokenizer"
    with monkeypatch.context() as patch:
        patch.setattr(train, "T5", None)  # ends this start before anything is saved
        with pytest.raises(TypeError):
            run(*options, 284)
    first = {path.name: path.read_bytes() for path in model.iterdir()}
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGTERM))
        assert run(*options, 270) == 143
    second = {path.name: path.read_bytes() for path in model.iterdir()}
    assert second != first  # a start that trained nothing has no say
    assert run(*options, 270) == 0
    assert {path.name: path.read_bytes() for path in model.iterdir()} == second


def test_a_checkpoint_refuses_another_model_or_order_of_data(run, straight, capsys):
    output = straight[0].parent
    assert run("--model.d-ff", 48, output=output) == 1
    assert "model.d_ff: 32 -> 48" in capsys.readouterr().err
    assert run("--seed", 7, output=output) == 1
    assert "saved with seed = 0, now it is 7" in capsys.readouterr().err
    assert run(output=output) == 0


GOOD_ROW = '{"task": "cola", "inputs": {"sentence": "Yes."}, "label": "acceptable"}\n'
TEMPLATES = '{"cola": [{"input": "Fine? {sentence}", "target": "{answer}"}]}'


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--batch.rows 0", r"batch\.rows = 0: must be at least 1"),
        ("--objective.method con", r"objective\.method = 'con': must be one of coin, cross_"),
        ("--batch.mode one_wording", r"batch\.mode = 'one_wording': must be 'pairs' for obj"),
        ("--data.mixture-weights tens 1", r"no task 'tens'; near it are 'tense'"),
        ("--mesh.data 3", r"mesh\.data = 3.*number of devices"),
        (
            "--data.source pairs --data.files {folder}/none.jsonl",
            r"data\.files: '{folder}/none\.jsonl' matches no file",
        ),
        (
            "--data.source tasks --data.files {folder}/bad.jsonl "
            "--data.template-files {folder}/templates.json",
            r"{folder}/bad\.jsonl.*2.*",
        ),
        (
            "--data.source pairs --data.files {folder}/bad.jsonl",
            r"{folder}/bad\.jsonl.*1.*original_instruction",
        ),
        ("--model.vocabulary-size 100", r"model\.vocabulary_size = 100: the tokenizer has"),
        ("--model.init-from {folder}/nowhere", r"{folder}/nowhere is neither a folder nor"),
        (
            "--tokenizer.kind huggingface --tokenizer.path {folder}/nowhere",
            r"{folder}/nowhere",
        ),
        ("--batch.decoder-length 3", r"decoder_length|target"),
        ("--output {folder}/templates.json", r"{folder}/templates\.json"),
    ],
)
def test_what_cannot_be_run_ends_with_one_message_on_stderr(
    run, tmp_path, capsys, options, complaint
):
    (tmp_path / "bad.jsonl").write_text(GOOD_ROW + '{"task": "cola", "inputs": \n')
    (tmp_path / "templates.json").write_text(TEMPLATES)
    threads = {thread for thread in threading.enumerate() if not thread.daemon}
    assert run(*options.format(folder=tmp_path).split()) == 1
    message = capsys.readouterr().err
    assert re.search(complaint.format(folder=re.escape(str(tmp_path))), message, re.DOTALL), message
    assert "Traceback" not in message
    deadline = time.monotonic() + 10
    while {t for t in threading.enumerate() if not t.daemon} - threads:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.05)
    assert not (tmp_path / "run" / "checkpoints").is_dir() or not steps_on_disk(tmp_path / "run")


def test_a_folder_that_cannot_be_written_is_a_clean_error(run, straight, tmp_path, capsys):
    (tmp_path / "run" / "metrics.partial").mkdir(parents=True)
    assert run() == 1
    assert "metrics.partial" in capsys.readouterr().err


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs a device without room")
def test_a_full_disk_is_reported_with_the_files_name(config_file, tmp_path):
    config = load_file(config_file)
    with MetricLog(tmp_path, config, 0) as log:
        log.write(1, {"a": 1.0})
        log._file.close()
        log._file = open("/dev/full", "w")  # noqa: SIM115
        with pytest.raises(OSError, match=r"No space left.*metrics\.jsonl"):
            log.write(2, {"a": 2.0})


def test_a_process_stops_on_sigterm_goes_on_and_keeps_the_terminal_clean(tmp_path):
    """Between two checkpoints, from outside; compared with a process that was left alone."""
    slow = tmp_path / "slow.py"
    slow.write_text(CONFIG + SLOW)
    fast = tmp_path / "fast.py"
    fast.write_text(CONFIG)
    options = ("--training.tensorboard", "--training.log-every", 1, "--checkpoint.every", 100)
    stopped = process(slow, tmp_path, *options)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while stopped.poll() is None and len(read_metrics(metrics)) < 2:
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    out, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 128 + signal.SIGTERM, err
    assert err == ""  # no log lines of TensorFlow, absl or Orbax
    (step,) = steps_on_disk(tmp_path / "run")
    assert 2 <= step < 8
    assert f"Stopped at step {step} and saved" in out
    again = process(fast, tmp_path, *options)
    alone = process(fast, tmp_path / "alone", *options)
    assert (again.communicate(timeout=120)[1], again.returncode) == ("", 0)
    assert (alone.communicate(timeout=120)[1], alone.returncode) == ("", 0)
    assert_same_run(tmp_path / "run", tmp_path / "alone" / "run")


def test_a_process_whose_pipeline_fails_ends_by_itself(config_file, tmp_path):
    # One row has no room for the four sequences of a set.
    failing = process(config_file, tmp_path, "--batch.rows", 1, "--batch.segments-per-row", 4)
    _, err = failing.communicate(timeout=120)
    assert failing.returncode == 1
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
