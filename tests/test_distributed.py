"""Several processes are one run: same losses, one folder, one end."""

import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from cluster import cluster, endings, environment, free_port, wait_for
from training_runs import (
    CONFIG,
    ROOT,
    SLOW,
    compiled_once,
    records,
    steps_on_disk,
)

from coin_jax import train
from coin_jax.config import BatchConfig, Config, ConfigError, TokenizerConfig
from coin_jax.config_files import load_file
from coin_jax.parallel.distributed import Cluster, find_cluster, seconds
from coin_jax.parallel.mesh import make_mesh
from coin_jax.parallel.share import Agreement, Share, tell
from coin_jax.train import choose_shards
from coin_jax.training.checkpoint import load_parameters
from coin_jax.training.logging import read_metrics

# --- who is there ---------------------------------------------------------------------------

EXPLICIT = {
    "COIN_JAX_COORDINATOR": "10.0.0.1:8476",
    "COIN_JAX_PROCESSES": "4",
    "COIN_JAX_PROCESS": "3",
}
SLURM = {
    "SLURM_NTASKS": "8",
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("environment", "has_tpu", "expected"),
    [
        ({}, False, None),
        (EXPLICIT, False, Cluster("deactivate", "10.0.0.1:8476", 4, 3)),
        (EXPLICIT | SLURM, True, Cluster("deactivate", "10.0.0.1:8476", 4, 3)),
        (EXPLICIT | {"COIN_JAX_PROCESSES": "1", "COIN_JAX_PROCESS": "0"}, False, None),
        (SLURM, False, Cluster("slurm")),
        (SLURM | {"SLURM_NTASKS": "1"}, False, None),
        (SLURM | {"COIN_JAX_PROCESSES": "1"}, True, None),
        ({}, True, Cluster("gcetpu")),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True, Cluster("gketpu")),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, False, None),
        ({"JAX_PLATFORMS": "cpu"}, True, None),
    ],
)
def test_the_environment_says_who_else_is_there(environment, has_tpu, expected):
    assert find_cluster(environment, has_tpu) == expected


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"COIN_JAX_PROCESSES": "4"}, r"COIN_JAX_COORDINATOR and COIN_JAX_PROCESS must be set"),
        ({"COIN_JAX_PROCESS": "0"}, r"COIN_JAX_PROCESS=0: .*or none of the three"),
        (EXPLICIT | {"COIN_JAX_COORDINATOR": "10.0.0.1"}, r"must be host:port"),
        (EXPLICIT | {"COIN_JAX_COORDINATOR": "host:http"}, r"must be host:port"),
        (EXPLICIT | {"COIN_JAX_PROCESS": "4"}, r"one of 0, 1, \.\. below it"),
        (EXPLICIT | {"COIN_JAX_PROCESSES": "all"}, r"must be a number of processes"),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}, r"was not started by srun"),
    ],
)
def test_what_is_half_said_is_refused_and_never_guessed(environment, complaint):
    with pytest.raises(ConfigError, match=complaint):
        find_cluster(environment)


def test_a_timeout_that_is_no_number_is_refused():
    assert seconds({}, "COIN_JAX_START_TIMEOUT", 300) == 300
    with pytest.raises(ConfigError, match="COIN_JAX_START_TIMEOUT=soon: must be a whole number"):
        seconds({"COIN_JAX_START_TIMEOUT": "soon"}, "COIN_JAX_START_TIMEOUT", 300)


def test_a_process_that_finds_nobody_says_so_in_time():
    command = "from coin_jax.parallel.distributed import initialize; initialize()"
    lonely = [
        subprocess.Popen(
            [sys.executable, "-c", command],
            cwd=ROOT,
            env=environment(number, 2, free_port(), COIN_JAX_START_TIMEOUT="2"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    (first, _, waited), (second, _, searched) = endings(lonely)
    assert (first, second) == (1, 1)
    assert re.fullmatch(r"Process 0 waited 2 s at 127.0.0.1:\d+ for the other 1, .*\n", waited)
    assert re.fullmatch(r"Process 1 of 2 found no coordinator at .* within 2 s, .*\n", searched)


# --- what each reads --------------------------------------------------------------------------


def test_a_single_process_has_the_whole_batch_and_stops_at_once():
    mesh = make_mesh(Config().mesh)
    share = Share.of(mesh)
    assert (share.index, share.count, share.blocks) == (0, 1, tuple(range(8)))
    np.testing.assert_array_equal(share.gather(np.arange(3)), [[0, 1, 2]])
    assert Agreement(mesh)(15) == 15
    assert (tell(b"something"), tell(b""), tell(None)) == (b"something", b"", None)


def test_pairs_are_counted_where_their_rows_are_on_the_mesh():
    """The second of two processes has the device rows 1 and 3 of 4, of 2 rows and 4 slots each."""
    share = Share(mesh=None, index=1, count=2, blocks=(1, 3), readers=(0, 1))
    # The pipeline counts its rows 4, 5, 6, 7; on the mesh they are 2, 3, 6, 7.
    members = np.array([[16, 19], [20, 21], [24, 31], [-1, -1]])
    expected = np.array([[8, 11], [12, 13], [24, 31], [-1, -1]])
    tables = np.concatenate([members, np.full((4, 2), -1)])  # 8 places for 4 rows of 4 slots
    np.testing.assert_array_equal(share._on_the_mesh(tables, 4)[:4], expected)


def test_shards_are_chosen_for_the_processes_and_kept_by_the_run(console):
    of_two = Share(mesh=None, index=0, count=2, blocks=(0,), readers=(0, 1))
    alone = Share(mesh=None, index=0, count=1, blocks=(0,), readers=(0,))
    config = Config(tokenizer=TokenizerConfig(kind="bytes"), batch=BatchConfig(rows=16))
    chosen = choose_shards(config, None, of_two, console)
    assert chosen.batch.shards == 2
    assert choose_shards(config, chosen, alone, console) == chosen
    three = Config(batch=BatchConfig(rows=18, shards=3))
    with pytest.raises(ConfigError, match=r"batch\.shards = 3 must be a multiple of 2"):
        choose_shards(three, None, of_two, console)


@pytest.fixture
def console():
    from rich.console import Console

    return Console(quiet=True)


def test_the_local_cluster_says_what_it_would_run_and_refuses_what_it_cannot():
    def run(*arguments):
        command = ["bash", ROOT / "launch" / "local_cluster.sh", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    shown = run("2", "--dry-run", "--config", "configs/quickstart.py").stdout.splitlines()
    assert len(shown) == 2
    for number, line in enumerate(shown):
        assert line.startswith("would run: COIN_JAX_COORDINATOR=127.0.0.1:")
        assert f"COIN_JAX_PROCESSES=2 COIN_JAX_PROCESS={number} " in line
        assert line.endswith("-m coin_jax.train --config configs/quickstart.py")
    for wrong in ((), ("2",), ("two", "--config", "x"), ("0", "--config", "x")):
        assert run(*wrong).returncode == 2


# --- real processes ---------------------------------------------------------------------------

SEVERAL = CONFIG.replace("dropout_rate=0.1", "dropout_rate=0.0").replace(
    "rows=4,", "rows=16, shards=4,"
)
OPTIONS = ("--training.log-every", 1)


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """{"fast", "slow"}: files of the same run, the second one with time to hit it."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "fast.py").write_text(SEVERAL)
    (folder / "slow.py").write_text(SEVERAL + SLOW)
    return {"fast": folder / "fast.py", "slow": folder / "slow.py"}


@pytest.fixture(scope="module", autouse=True)
def shared_programs(tmp_path_factory):
    with compiled_once(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """In the test's own process, one of its eight fake devices, as if it were alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
        yield


def one_process(configs, output):
    """The main job in the test's own process."""
    arguments = ("--config", configs["fast"], "--output", output, *OPTIONS)
    assert train.main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def alone(configs, tmp_path_factory):
    """The run directory of a single process."""
    output = tmp_path_factory.mktemp("alone")
    one_process(configs, output)
    return output / "run"


def assert_same_losses(directory, expected):
    found, wanted = records(directory), records(expected)
    assert [record.keys() for record in found] == [record.keys() for record in wanted]
    for left, right in zip(found, wanted, strict=True):
        for name, value in right.items():
            assert left[name] == pytest.approx(value, rel=1e-5, abs=1e-5), (left["step"], name)


def started_steps(directory, number):
    """Whether the run has logged step `number`."""
    return lambda: any(r["step"] >= number for r in read_metrics(directory / "metrics.jsonl"))


def test_two_processes_train_as_one_stop_together_and_one_goes_on(configs, alone, tmp_path, capsys):
    """SIGTERM to process 1 alone; parameters are cut in halves over the two."""
    directory = tmp_path / "run"
    options = ("--config", configs["slow"], "--output", tmp_path, *OPTIONS, "--mesh.fsdp", 2)
    with cluster(2, *options, "--mesh.data", 1) as processes:
        wait_for(lambda: read_metrics(directory / "metrics.jsonl"), processes)
        processes[1].send_signal(signal.SIGTERM)
        (main, out, err), (other, silent, other_err) = endings(processes)
    assert (main, err) == (143, "")
    assert (other, other_err) == (143, "")
    assert "in 2 processes (fsdp 2)" in out
    assert re.sub(r"\[Gloo\].*\n", "", silent) == ""
    step = max(steps_on_disk(directory))
    assert step < 8
    assert f"Stopped at step {step} and saved" in out
    assert not list(directory.glob(".shared"))
    assert load_file(str(directory / "config.json")).batch.shards == 4

    one_process(configs, tmp_path)
    assert f"Going on from step {step}" in capsys.readouterr().out
    assert_same_losses(directory, alone)


# Processes that do nothing but meet, until one is gone.
MEETING = """
import os, sys, time
from coin_jax.parallel import distributed

distributed.initialize()
import jax
with distributed.together(str):
    for turn in range(1000):
        distributed.barrier("here")
        if sys.argv[2] == "differs":
            distributed.check_same("suite", str(jax.process_index()))
        if turn == 3 and jax.process_index() == int(sys.argv[1]):
            print("there", flush=True)
            if sys.argv[2] == "fails":
                raise ValueError("the disk is full")
            time.sleep(60)
"""


def meeting(tmp_path, who, what, count=2):
    """(endings, seconds until the others' ends) of processes of which `who` fails, is killed or
    stopped."""
    (tmp_path / "meeting.py").write_text(MEETING)
    more = {"COIN_JAX_HEARTBEAT_TIMEOUT": "6"}
    with cluster(count, who, what, script=tmp_path / "meeting.py", **more) as processes:
        while what != "differs" and processes[who].stdout.readline() != "there\n":
            assert processes[who].poll() is None
        begin = time.monotonic()
        if what in ("killed", "stopped"):
            processes[who].send_signal(signal.SIGKILL if what == "killed" else signal.SIGSTOP)
        for number, process in enumerate(processes):
            if number != who or what in ("fails", "differs"):
                process.wait(timeout=60)
        took = time.monotonic() - begin
        processes[who].kill()
        return endings(processes), took


def test_when_a_process_is_killed_the_others_end_with_a_sentence(tmp_path):
    ((status, _, err), _), took = meeting(tmp_path, 1, "killed")
    assert (status, took < 20) == (1, True)
    assert "process 1 has not been heard of for 6 s" in err
    assert "the same command goes on from there" in err
    assert "Traceback" not in err
    assert "stack trace" not in err


@pytest.mark.parametrize(
    ("what", "happened"),
    [
        ("killed", r"is gone \(Connection refused\); its own output"),
        ("stopped", "has not been heard of for 6 s"),
    ],
)
def test_without_process_0_the_others_end_with_a_sentence(tmp_path, what, happened):
    """It is the coordinator: JAX aborts the others when it goes."""
    (_, *others), took = meeting(tmp_path, 0, what, count=3)
    assert took < 20
    for status, _, err in others:
        assert status == 1
        said = r"This process stops, because process 0, the coordinator at 127\.0\.0\.1:\d+, "
        assert len(re.findall(said, err)) == 1
        *_, cause, remedy = err.splitlines()  # the last word, whatever JAX wrote before
        assert re.match(said + happened, cause)
        assert remedy == "What was saved before is whole; the same command goes on from there."


def test_a_fault_of_one_process_is_told_by_all(tmp_path):
    ((other, _, heard), (faulty, _, err)), took = meeting(tmp_path, 1, "fails")
    assert (other, faulty, took < 20) == (1, 1, True)
    assert err == "the disk is full\n"
    assert re.match(r"This process stops, because process 1 \(.*\) ended: the disk is full", heard)


def test_processes_that_read_different_things_are_told_apart_before_they_wait(tmp_path):
    ((other, _, heard), (_, _, err)), _ = meeting(tmp_path, 1, "differs")
    assert other == 1
    assert re.match(r"process 1 \(.*\) has another suite than process 0: all of them need", err)
    assert "process 1 (" in heard


@pytest.mark.slow
def test_when_process_0_of_a_training_is_killed_the_other_says_so(configs, tmp_path):
    """It is computing together with it, reading ahead and writing a checkpoint."""
    options = ("--config", configs["slow"], "--output", tmp_path, *OPTIONS)
    with cluster(2, *options) as processes:
        wait_for(lambda: (tmp_path / "run" / "checkpoints" / "4").is_dir(), processes)
        processes[0].kill()
        (killed, _, _), (status, _, err) = endings(processes, timeout=60)
    assert (killed, status) == (-signal.SIGKILL, 1)
    assert re.search(r"This process stops, because process 0, .* is gone .*\nWhat was saved", err)


def four_processes(config, output, mesh):
    """The output of process 0."""
    axes = zip(("data", "fsdp", "tensor"), mesh, strict=True)
    options = [text for name, size in axes for text in (f"--mesh.{name}", size)]
    with cluster(4, "--config", config, "--output", output, *OPTIONS, *options) as processes:
        found = endings(processes, timeout=1200)
    assert [status for status, _, _ in found] == [0] * 4, found
    return found[0][1]


def predictions(directory):
    asked = json.loads((directory / "evaluation.json").read_text())["predictions"]
    return [each["prediction"] for each in asked]


@pytest.mark.slow
def test_four_processes_have_the_losses_of_one_and_one_goes_on_from_them(configs, alone, tmp_path):
    directory = tmp_path / "run"
    assert "in 4 processes" in four_processes(configs["fast"], tmp_path, (2, 2, 1))
    assert_same_losses(directory, alone)
    assert predictions(directory) == predictions(alone)
    shutil.rmtree(directory / "checkpoints" / "8")
    one_process(configs, tmp_path)
    assert_same_losses(directory, alone)


@pytest.mark.slow
def test_four_processes_go_on_from_one_on_a_mesh_that_cuts_everything(configs, alone, tmp_path):
    """What they write in turn is read as one: shards that are put together wrong would show."""
    directory = tmp_path / "run"
    shutil.copytree(alone, directory)
    shutil.rmtree(directory / "checkpoints" / "8")
    said = four_processes(configs["fast"], tmp_path, (1, 2, 2))
    assert "Going on from step 4" in said
    assert_same_losses(directory, alone)
    assert predictions(directory) == predictions(alone)
    found, wanted = (load_parameters(folder)[1] for folder in (directory, alone))
    near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(near, found, wanted)
