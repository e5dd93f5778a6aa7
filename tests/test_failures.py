"""What a run survives, and how it stops where it cannot: with one message, and whole checkpoints.

Loop and checkpoints are the real ones. The whole job under random kills: fault_injection.py.
"""

import dataclasses
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import (
    CONFIG,
    Job,
    KilledError,
    broken_at,
    cut,
    empty_manifest,
    flip,
    garble_manifest,
    hang,
    kill_at,
    new_state,
    remove,
    remove_state,
    send_soon,
    with_checkpoint,
)
from training_runs import records

from coin_jax.config import CheckpointConfig, EvaluationConfig
from coin_jax.data.packing import PackingError
from coin_jax.data.sources import DataError
from coin_jax.parallel.mesh import make_mesh
from coin_jax.training import checkpoint as checkpoint_module
from coin_jax.training.checkpoint import CheckpointError, Checkpoints, load_parameters
from coin_jax.training.endings import DivergedError, RunStoppedError
from coin_jax.training.logging import read_metrics
from coin_jax.training.manifest import NAME, fault
from coin_jax.training.state import TrainState
from coin_jax.training.storage import remedy


@pytest.fixture(scope="module")
def everywhere():
    return jax.NamedSharding(make_mesh(CONFIG.mesh, jax.devices()[:1]), jax.P())


@pytest.fixture
def job(tmp_path, everywhere):
    return Job(tmp_path, everywhere)


@pytest.fixture(scope="module")
def peaceful(tmp_path_factory, everywhere):
    """(job, ending) of a run that nothing happened to."""
    made = Job(tmp_path_factory.mktemp("peaceful"), everywhere)
    return made, made()


def assert_same(job, ending, peaceful):
    expected_job, expected = peaceful
    jax.tree.map(np.testing.assert_array_equal, ending.state, expected.state)
    assert job.items() == expected_job.items()
    assert records(job.directory) == records(expected_job.directory)
    assert job.steps()[-1] == 8
    assert fault(job.directory / "checkpoints" / "8") is None


@pytest.fixture
def killed(job):
    """A run that ended while it fetched batch 8: steps 4 and 6 are saved."""
    with pytest.raises(KilledError):
        job(kill_at(8))
    assert job.steps() == [4, 6]
    return job


# --- damaged checkpoints ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage", [cut, flip, remove, garble_manifest, empty_manifest, remove_state]
)
def test_a_run_goes_on_from_the_newest_whole_checkpoint_and_says_what_is_wrong_with_a_newer_one(
    killed, peaceful, damage
):
    reason = damage(killed.directory / "checkpoints" / "6")
    with pytest.raises(CheckpointError, match=rf"checkpoints/6 is damaged: {reason}"):
        load_parameters(killed.directory)  # other numbers than asked for are not handed out
    ending = killed()
    assert re.fullmatch(
        rf"Checkpoint 6 is damaged: {reason}\. It is in .*damaged/6 now\.", killed.said[0]
    )
    assert killed.said[1] == "The newest whole checkpoint is 4."
    assert (killed.directory / "damaged" / "6").is_dir()  # for people to look at
    assert_same(killed, ending, peaceful)


def test_where_no_checkpoint_is_whole_the_run_stops_and_says_what_each_one_lacks(killed):
    for step in (4, 6):
        cut(killed.directory / "checkpoints" / str(step))
    with pytest.raises(CheckpointError) as caught:
        killed()
    message = str(caught.value)
    assert re.search(r"No checkpoint in .* is whole:\n  6: state/.*\n  4: state/.*\n", message)
    assert "start anew with another --name" in message
    assert killed.steps() == [4, 6]


@pytest.fixture
def save(tmp_path, everywhere):
    """save(config, steps, metrics) -> the steps that are there then, and what was said."""
    state = new_state(everywhere)

    def saved(config, *steps, **metrics):
        said = []
        with Checkpoints(tmp_path, config, said.append) as checkpoints:
            for step in steps:
                at = dataclasses.replace(state, step=jnp.full_like(state.step, step))
                checkpoints.save(at, {"number": step}, CONFIG, metrics)
        return sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()), said

    return saved


def test_a_damaged_checkpoint_does_not_count_among_those_kept(tmp_path, save):
    config = CheckpointConfig(keep_last=3)
    assert save(config, 1, 2, 3) == ([1, 2, 3], [])
    flip(tmp_path / "checkpoints" / "2")  # not the newest: nobody looks when the run starts
    steps, said = save(config, 4)
    assert steps == [1, 2, 3, 4]
    assert re.match(r"Checkpoint 2 is damaged: .*It does not count as one\.", said[0])
    assert save(config, 5)[0] == [3, 4, 5]


def test_a_checkpoint_that_cannot_be_read_for_a_while_is_not_removed(save, monkeypatch):
    """As on a network drive that has its moments."""
    config = CheckpointConfig(keep_last=2)
    save(config, 1, 2)
    look = checkpoint_module.fault

    def moody(folder, read=True):
        return "it cannot be read" if folder.name == "2" else look(folder, read)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "fault", moody)
        patch.setattr(Checkpoints, "_newest_whole", lambda self: 2)
        assert save(config, 3)[0] == [1, 2, 3]
    assert save(config, 4)[0] == [3, 4]


def test_a_damaged_best_checkpoint_is_not_the_best(tmp_path, save):
    config = CheckpointConfig(keep_last=1, keep_best=True, best_metric="x")
    for step, value in enumerate((0.9, 0.8, 0.1), start=1):
        save(config, step, x=value)
    cut(tmp_path / "checkpoints" / "1")
    steps, said = save(config, 4, x=0.2)
    assert steps == [1, 4]  # perhaps it can be mended
    assert "Checkpoint 1 is damaged" in said[0]
    assert save(config, 5, x=0.1)[0] == [1, 4, 5]


def test_what_a_killed_run_left_half_written_or_half_removed_is_cleared(killed, peaceful):
    folder = killed.directory / "checkpoints"
    shutil.copytree(folder / "6", folder / "8.orbax-checkpoint-tmp")
    (folder / "4").rename(folder / "4.removed")
    with (killed.directory / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe not a record\n{"step": "x"}\n{"step": 7, "tra')
    ending = killed()
    assert killed.said == []
    assert killed.steps() == [6, 8]
    assert_same(killed, ending, peaceful)


def test_a_checkpoint_of_before_there_were_manifests_is_read(killed, peaceful):
    (killed.directory / "checkpoints" / "6" / NAME).unlink()
    assert_same(killed, killed(), peaceful)


def test_an_unreadable_checkpoint_without_a_manifest_names_the_remedy(killed):
    folder = killed.directory / "checkpoints" / "6"
    (folder / NAME).unlink()
    for path in (folder / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"6/state cannot be read: .*Move .*/6 away"):
        killed()


def test_a_manifest_reads_nothing_outside_its_checkpoint(killed):
    folder = killed.directory / "checkpoints" / "6"
    for name in ("../../../../../../../../dev/zero", "/dev/zero"):
        (folder / NAME).write_text(json.dumps({"sha256": {name: [0, "00"]}}))
        assert fault(folder) == f"{name} is missing"


# --- disks ------------------------------------------------------------------------------------


def test_a_checkpoint_stays_until_its_successor_is_whole(killed, peaceful, monkeypatch):
    """The disk is full when the last file of the next one is written."""
    with monkeypatch.context() as patch:

        def full(path, text):
            raise OSError(28, os.strerror(28), str(path))

        patch.setattr("coin_jax.training.manifest.write_whole", full)
        with pytest.raises(CheckpointError) as caught:
            killed()
    assert re.fullmatch(
        r"The checkpoint of step 8 could not be written to .*/checkpoints: No space left on "
        r"device\. Free some space, .*; the same command then goes on from step 6, .* is whole\.",
        str(caught.value),
    )
    assert killed.steps() == [4, 6]
    assert fault(killed.directory / "checkpoints" / "6") is None
    assert_same(killed, killed(), peaceful)


def test_a_failed_write_stops_the_run_at_its_next_record(tmp_path, everywhere, monkeypatch):
    """Not where the next checkpoint is due, which may be hours later."""
    config = dataclasses.replace(
        with_checkpoint(every=5),
        training=dataclasses.replace(CONFIG.training, steps=20),
        evaluation=EvaluationConfig(every=0),
    )
    failed = threading.Event()

    def refuse(*_):
        failed.set()
        raise OSError(30, os.strerror(30))

    def before(number):
        if number == 7:
            assert failed.wait(10)
            time.sleep(0.3)

    monkeypatch.setattr(Checkpoints, "_seal", refuse)
    job = Job(tmp_path, everywhere, config)
    with pytest.raises(CheckpointError, match=r"step 5 .*Read-only file system\. Mount the disk"):
        job(before)
    assert records(job.directory)[-1]["step"] == 6
    assert job.steps() == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with room for a few checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system takes rights that this user does not have")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_what_to_do_and_no_harm_done(
    small_disk, tmp_path, everywhere, peaceful
):
    job = Job(small_disk, everywhere)

    def fill(number):
        if number == 5:
            job.wait_for_saves()
            with (
                pytest.raises(OSError, match="No space"),
                (small_disk / "other").open("wb") as file,
            ):
                file.write(bytes(1_000_000))

    with pytest.raises((CheckpointError, OSError), match="No space left on device") as caught:
        job(fill)
    assert "Free some space" in f"{caught.value} {remedy(str(caught.value))}"
    (small_disk / "other").unlink()
    assert job.steps() == [2, 4]
    assert_same(job, job(), peaceful)


def test_a_disk_that_becomes_read_only_ends_the_run_with_what_to_do(
    small_disk, everywhere, peaceful
):
    job = Job(small_disk, everywhere)

    def remount(how):
        subprocess.run(["mount", "-o", f"remount,{how}", str(small_disk)], check=True)

    def lock(number):
        if number == 5:
            job.wait_for_saves()
            raise KilledError

    with pytest.raises(KilledError):
        job(lock)
    remount("ro")
    with pytest.raises(OSError, match="Read-only file system") as caught:
        job()
    assert "Mount the disk for writing" in remedy(str(caught.value))
    remount("rw")
    assert_same(job, job(), peaceful)


def test_a_limit_on_file_sizes_ends_the_run_with_what_to_do(tmp_path, everywhere):
    """The system refuses a write within a file, as on a full disk; no stand-in is at work."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"weight": np.zeros(50_000, np.float32) + np.random.default_rng(0).random(50_000)}
    state = TrainState(np.zeros((), np.int32), big, {}, None)
    state = jax.device_put(dataclasses.replace(state, step=np.int32(1)), everywhere)
    with Checkpoints(tmp_path, CONFIG.checkpoint) as checkpoints:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            checkpoints.save(state, {}, CONFIG)
            with pytest.raises(CheckpointError, match=r"File too large\. Raise the limit"):
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_checkpoint_folder_that_vanishes_is_made_anew_and_nothing_is_lost(job, peaceful):
    def vanish(number):
        if number == 5:
            job.wait_for_saves()
            shutil.rmtree(job.directory / "checkpoints")

    ending = job(vanish)
    assert job.said == [f"{job.directory / 'checkpoints'} was deleted; it is made anew."]
    assert_same(job, ending, peaceful)
    assert job.steps() == [6, 8]


def test_a_run_directory_that_vanishes_ends_the_run_with_what_to_do(job):
    def vanish(number):
        if number == 5:
            job.wait_for_saves()
            job.directory.rename(job.directory.with_name("elsewhere"))

    with pytest.raises(CheckpointError, match=r"run is gone: .* Bring it back, and the same comm"):
        job(vanish)


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["loss", "gradient_norm", "parameters"])
@pytest.mark.parametrize("number", [5, 6])
def test_what_is_not_finite_is_not_saved_and_the_message_says_all_that_is_known(
    job, peaceful, where, number
):
    """Step 6 is one that is saved; the loss of a step is that of the parameters before it."""
    with pytest.raises(DivergedError) as caught:
        job(step=broken_at(number, where))
    message = str(caught.value)
    if where == "parameters" and number == 6:
        assert re.match(r"After step 6, 1 of 2 arrays .*: \.params\['weight'\]\. No state", message)
    elif where == "parameters":
        assert re.match(r"Step 6 is not finite: .*\bloss = nan", message)
    else:
        assert re.match(rf"Step {number} is not finite: {where} = nan\. The parts of its", message)
        assert re.search(r"generation_loss = \d.*learning_rate = 0.01", message)
        assert f"diverged_batch_{number}.npz" in message
    assert "the checkpoint of step 4 is intact" in message
    assert "A lower optimizer.learning_rate" in message
    assert job.steps() == [2, 4]
    assert_same(job, job(), peaceful)


# --- data -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(2, "Gone", "rows"), r".* be read any more: .*'rows'\. Bring it back; s"),
        (DataError("row 3 is bad"), r"row 3 is bad\nMend that row, without .* any; s"),
        (PackingError("row 3 is long"), r"row 3 is long\nMake batch\.encoder_.* larger; s"),
    ],
)
def test_where_the_data_fails_the_run_saves_what_it_has_and_says_so(job, peaceful, error, message):
    def gone(number):
        if number == 6:
            raise error

    with pytest.raises(RunStoppedError) as caught:
        job(gone)
    on = "tep 5 is saved, and the same command goes on from there."
    assert re.fullmatch(message + on, str(caught.value))
    assert job.steps() == [4, 5]
    assert_same(job, job(), peaceful)


def test_a_fault_of_the_program_is_not_taken_for_lost_data(job):
    def fault_of_ours(number):
        if number == 6:
            raise TypeError("ours")

    with pytest.raises(TypeError, match="ours"):
        job(fault_of_ours)
    assert job.steps() == [4, 5]


# --- signals ----------------------------------------------------------------------------------


def test_sigterm_ends_a_run_whose_data_does_not_come(job, peaceful):
    def no_data(number):
        if number == 6:
            send_soon(signal.SIGTERM)
            hang()

    start = time.monotonic()
    ending = job(no_data)
    assert time.monotonic() - start < 100
    assert (ending.signal, int(ending.state.step)) == (signal.SIGTERM, 5)
    assert re.search(r"SIGTERM was answered in \d+\.\d s\.", job.printed)
    assert_same(job, job(), peaceful)


@pytest.mark.parametrize("step", [3, 8])
def test_sigterm_cuts_an_evaluation_short_and_the_next_start_makes_up_for_it(job, peaceful, step):
    calls = []

    def slow(params):
        calls.append(1)
        if len(calls) == {3: 1, 8: 3}[step]:
            send_soon(signal.SIGTERM)
            hang()
        return {"mean": float(params["weight"].mean())}

    start = time.monotonic()
    ending = job(evaluate=slow)
    assert time.monotonic() - start < 100
    assert (ending.signal, int(ending.state.step)) == (signal.SIGTERM, step)
    ending = job()
    assert records(job.directory) == records(peaceful[0].directory)
    jax.tree.map(np.testing.assert_array_equal, ending.state, peaceful[1].state)


def test_a_second_sigterm_does_not_end_the_answer_to_the_first(job, peaceful):
    def twice(number):
        if number == 5:
            for _ in range(2):
                signal.raise_signal(signal.SIGTERM)

    assert job(twice).signal == signal.SIGTERM
    assert job.steps()[-1] == 4
    assert_same(job, job(), peaceful)


# --- clocks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("years", [-1, 1])
def test_a_clock_that_jumps_changes_nothing(tmp_path, everywhere, peaceful, monkeypatch, years):
    """By a year at every step: rates, progress and checkpoints do not care."""
    real, jumps = time.time, []

    def jumping():
        return real() + years * 365 * 24 * 3600 * len(jumps)

    def jump(number):
        jumps.append(number)
        if len(jumps) == 7:
            raise KilledError

    job = Job(tmp_path, everywhere)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", jumping)
        patch.setattr(time, "time_ns", lambda: int(1e9 * jumping()))
        with pytest.raises(KilledError):
            job(jump)
        ending = job(jump)
    assert_same(job, ending, peaceful)
    for record in read_metrics(job.directory / "metrics.jsonl"):
        rates = [value for name, value in record.items() if name.endswith("_per_second")]
        assert all(0 <= rate < 1e9 for rate in rates)


@pytest.mark.slow
def test_a_run_under_fifty_kills_ends_as_one_left_in_peace():
    script = pathlib.Path(__file__).with_name("fault_injection.py")
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "50"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "50 kills survived" in done.stdout
