"""launch/tpu_vm.sh against a gcloud that refuses, preempts, answers slowly and asks back."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest
from stand_ins.stage import Stage

SETTINGS = """\
COIN_JAX_NAME=pod
COIN_JAX_PROJECT=my-project
COIN_JAX_ZONE=my-zone
COIN_JAX_ACCELERATOR_TYPE=v5litepod-16
COIN_JAX_RUNTIME_VERSION=v2-alpha-tpuv5-lite
COIN_JAX_CAPACITY=spot
COIN_JAX_SHARED=gs://my-bucket
COIN_JAX_SHARED_FOLDER={folder}/shared
COIN_JAX_GRACE_SECONDS=5
"""
LIFE = "WAITING_FOR_RESOURCES PROVISIONING ACTIVE"
TRAINING = ["--", "--config", "configs/my config's.py"]


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path, SETTINGS.format(folder=tmp_path))
    stage.tell(lives="\n".join([LIFE] * 4), trainings="finish")
    yield stage
    stage.close()


def run(stage, *flags):
    return stage("tpu_vm.sh", "run", "--env", stage.settings, *flags, *TRAINING)


def trainings(stage, worker=0):
    """Arguments of every training that was started on one worker."""
    return stage.calls("coin_jax.train")[worker :: int((stage.folder / "workers").read_text())]


def verbs(stage):
    return [f"{call[3]} {call[4]}" for call in stage.calls("gcloud")]


def test_a_run_makes_sets_up_starts_and_follows(stage):
    stage.tell(workers="2")
    result = run(stage)
    assert result.returncode == 0, result.stderr
    asked = [verb for verb in verbs(stage) if not verb.endswith("describe")]
    assert asked[:5] == [
        "queued-resources create",
        "tpu-vm ssh",  # is a training there?
        "tpu-vm scp",
        "tpu-vm ssh",  # unpacks, mounts, installs
        "tpu-vm ssh",  # starts
    ]
    assert stage.calls("queued-resources", "create")[0][5:] == [
        "pod",
        "--node-id=pod",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--async",
        "--spot",
        "--project=my-project",
        "--zone=my-zone",
        "--quiet",
    ]
    output = f"{stage.folder}/shared/runs"
    expected = ["--config", "configs/my config's.py", "--output", output]
    assert [call[3:] for call in stage.calls("coin_jax.train")] == [expected, expected]
    assert stage.calls("gcsfuse")[0][-2:] == ["my-bucket", f"{stage.folder}/shared"]
    assert "pod is WAITING_FOR_RESOURCES" in result.stderr
    assert "the training is done. The machines cost until 'tpu_vm.sh delete pod'" in result.stderr


def test_nothing_is_left_to_be_asked_on_a_terminal(stage):
    assert run(stage).returncode == 0
    assert all("--quiet" in call for call in stage.calls("gcloud"))


@pytest.mark.parametrize("capacity", ["on-demand", "reserved"])
def test_the_capacity_is_asked_for(capacity, stage):
    arguments = ["create", f"--{capacity}", "--env", stage.settings]
    assert stage("tpu_vm.sh", *arguments).returncode == 0
    (call,) = stage.calls("create")
    assert "--spot" not in call
    assert ("--reserved" in call) == (capacity == "reserved")


@pytest.mark.parametrize("end", ["SUSPENDED", "SUSPENDING SUSPENDED", "FAILED", "PREEMPTED"])
def test_a_preempted_run_is_made_anew_and_goes_on(end, stage):
    stage.tell(workers="2", trainings=f"{end}\nfinish")
    result = run(stage, "--keep", "pod")
    assert result.returncode == 0, result.stderr
    made = [verb for verb in verbs(stage) if verb.endswith(("create", "delete"))]
    assert made == [
        "queued-resources create",
        "queued-resources delete",
        "queued-resources create",
    ]
    assert all("--force" in call for call in stage.calls("delete"))
    first, second = trainings(stage)
    assert first == second


def test_it_is_made_anew_as_often_as_it_is_preempted(stage):
    stage.tell(workers="1", lives="\n".join(["ACTIVE"] * 4), trainings="SUSPENDED\n" * 3 + "finish")
    result = run(stage, "--keep", "pod", "--restarts", "0")
    assert result.returncode == 0, result.stderr
    assert len(trainings(stage)) == 4


def test_without_keep_a_preempted_run_ends_with_the_remedy_and_deletes_nothing(stage):
    stage.tell(trainings="SUSPENDED")
    result = run(stage)
    assert result.returncode == 1
    assert "pod was preempted. 'tpu_vm.sh run --keep pod ...' makes it anew" in result.stderr
    assert not stage.calls("delete")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--keep", "other"], "--keep other, but COIN_JAX_NAME is pod"),
        (["--keep", "pod", "--shared", ""], "the checkpoints go with the machines"),
    ],
)
def test_keep_wants_the_name_and_storage_that_outlives_the_machines(flags, reason, stage):
    result = run(stage, *flags)
    assert result.returncode == 2
    assert reason in result.stderr
    assert stage.calls() == []


def test_preemption_while_waiting_is_survived(stage):
    stage.tell(lives="PROVISIONING SUSPENDED\n" + LIFE)
    assert run(stage, "--keep", "pod").returncode == 0
    assert len(stage.calls("create")) == 2


def test_requests_that_always_fail_are_given_up_with_their_reason(stage):
    stage.tell(lives="\n".join(["PROVISIONING FAILED"] * 9))
    result = run(stage, "--keep", "pod")
    assert result.returncode == 1
    assert "pod could not be had: no capacity, after 3 restarts" in result.stderr
    assert len(stage.calls("create")) == 4


def test_a_refused_request_is_given_up(stage):
    (stage.folder / "lives").unlink()
    result = run(stage)
    assert result.returncode == 1
    assert "RESOURCE_EXHAUSTED" in result.stderr
    assert "the request was refused, after 3 restarts" in result.stderr


def test_a_training_that_breaks_off_is_started_again(stage):
    stage.tell(workers="2", trainings="crash\ncrash\nfinish")
    result = run(stage)
    assert result.returncode == 0, result.stderr
    assert len(trainings(stage)) == 3
    assert "the training broke off; restart 2 of 3" in result.stderr
    assert len(stage.calls("create")) == 1


def test_a_training_that_keeps_breaking_off_is_given_up(stage):
    stage.tell(workers="2", trainings="crash\n" * 9)
    result = run(stage, "--restarts", "1")
    assert result.returncode == 1
    assert "the training broke off, after 1 restarts" in result.stderr
    assert len(trainings(stage)) == 2


def test_a_training_that_refuses_its_config_is_not_started_again(stage):
    stage.tell(workers="2", trainings="refuse\nfinish")
    result = run(stage)
    assert result.returncode == 1
    assert "an error of its own" in result.stderr
    assert len(trainings(stage)) == 1


def test_answers_that_fail_now_and_then_are_asked_for_again(stage):
    stage.tell(fail="describe\ndescribe\nscp\nssh\nssh")
    result = run(stage)
    assert result.returncode == 0, result.stderr
    assert "gcloud does not answer: ERROR: UNAVAILABLE" in result.stderr


def test_a_service_that_stays_silent_ends_the_watching_not_the_training(stage):
    stage.tell(fail="describe\n" * 12)
    result = run(stage)
    assert result.returncode == 1
    assert "no answer ten times; the training, if it runs, goes on" in result.stderr


def test_keep_outlasts_a_long_silence(stage):
    stage.tell(fail="describe\n" * 12, workers="1")
    assert run(stage, "--keep", "pod").returncode == 0


def test_it_waits_for_the_workers_that_end_after_the_first(stage):
    stage.tell(workers="2", **{"trainings.0": "crash\nfinish", "trainings.1": "late\nfinish"})
    result = run(stage)
    assert result.returncode == 0, result.stderr
    assert len(trainings(stage)) == 2
    assert "restart 1 of 3" in result.stderr


def test_a_file_server_is_mounted_as_well(stage):
    stage.tell(workers="1")
    assert run(stage, "--shared", "server:/export").returncode == 0
    assert stage.calls("mount")[-1][-2:] == ["server:/export", f"{stage.folder}/shared"]
    assert not stage.calls("gcsfuse")


def test_slow_answers_change_nothing(stage):
    stage.tell(delay="0.05", workers="1")
    assert run(stage).returncode == 0


def test_a_second_run_joins_the_training_that_is_there(stage):
    stage.tell(workers="2", trainings="hold")
    first = stage.begin("tpu_vm.sh", "run", "--env", stage.settings, *TRAINING)
    stage.wait_for("training until")
    os.killpg(first.pid, signal.SIGINT)
    first.wait(10)
    second = stage.begin("tpu_vm.sh", "run", "--env", stage.settings, *TRAINING)
    stage.wait_for("training until")
    assert stage("tpu_vm.sh", "stop", "--env", stage.settings).returncode == 0
    assert second.wait(10) == 143
    assert "the training was stopped and has saved" in stage.shown()
    assert len(trainings(stage)) == 1
    assert len(stage.calls("create")) == 1


@pytest.mark.parametrize("action", ["run", "logs"])
def test_ctrl_c_while_following_leaves_the_training_running_and_says_so(action, stage):
    stage.tell(trainings="hold")
    running = stage.begin("tpu_vm.sh", "run", "--env", stage.settings, *TRAINING)
    stage.wait_for("training until")
    if action == "logs":
        os.killpg(running.pid, signal.SIGINT)
        running.wait(10)
        running = stage.begin("tpu_vm.sh", "logs", "--env", stage.settings)
        stage.wait_for("training until")
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(10) == 130
    assert "The training goes on" in stage.shown()
    status = stage("tpu_vm.sh", "status", "--env", stage.settings)
    assert status.stdout.splitlines() == [
        "ACTIVE",
        "READY",
        "coin_jax-job running",
        "coin_jax-job running",
    ]


def test_stop_lets_the_training_save(stage):
    stage.tell(trainings="hold")
    running = stage.begin("tpu_vm.sh", "run", "--env", stage.settings, *TRAINING)
    stage.wait_for("training until")
    stopped = stage("tpu_vm.sh", "stop", "--env", stage.settings)
    assert stopped.returncode == 0, stopped.stderr
    assert running.wait(10) == 143
    assert "saved and stopped" in stage.shown()
    assert (
        "coin_jax-job stopped 143" in stage("tpu_vm.sh", "status", "--env", stage.settings).stdout
    )
    assert not stage.calls("delete")


def test_stop_says_when_the_training_takes_its_time(stage):
    stage.tell(trainings="stubborn", workers="1")
    stage.begin("tpu_vm.sh", "run", "--env", stage.settings, *TRAINING)
    stage.wait_for("training until")
    result = stage("tpu_vm.sh", "stop", "--grace-seconds", "0", "--env", stage.settings)
    assert result.returncode != 0
    assert "it may still be saving" in result.stderr
    stage.tell(relent="")


def test_a_second_start_beside_a_running_training_is_refused(stage):
    stage.tell(trainings="hold", workers="1")
    stage.begin("tpu_vm.sh", "run", "--env", stage.settings, *TRAINING)
    stage.wait_for("training until")
    result = stage("tpu_vm.sh", "start", "--env", stage.settings, *TRAINING)
    assert result.returncode == 3
    assert "a training runs already" in result.stderr
    assert len(stage.calls("coin_jax.train")) == 1


def test_a_training_whose_machine_was_restarted_is_started_again(stage):
    stage.tell(trainings="hold\nfinish", workers="1")
    running = stage.begin("tpu_vm.sh", "run", "--env", stage.settings, *TRAINING)
    stage.wait_for("training until")
    stage.close()  # every process of it is gone, without a word
    assert running.wait(10) == 0
    assert len(stage.calls("coin_jax.train")) == 2


def test_a_log_that_was_never_begun_is_no_riddle(stage):
    stage.tell(workers="1")
    assert stage("tpu_vm.sh", "create", "--env", stage.settings).returncode == 0
    stage.tell(state="ACTIVE")
    assert stage("tpu_vm.sh", "setup", "--env", stage.settings).returncode == 0
    began = time.monotonic()
    result = stage("tpu_vm.sh", "logs", "--env", stage.settings)
    assert result.returncode == 4
    assert "nothing was started" in result.stderr
    assert time.monotonic() - began < 5


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed")
@pytest.mark.parametrize(
    "action",
    [["run", *TRAINING], ["create", "--reserved"], ["status"], ["stop"], ["delete", "pod"]],
    ids=lambda action: action[0],
)
def test_gcloud_itself_knows_every_command_and_flag(action, stage):
    """Its own parser reads them; nothing is sent, and it knows no account."""
    flags = ["--env", stage.settings, "--service-account", "a@b.iam", "--dry-run"]
    at = action.index("--") if "--" in action else len(action)
    shown = stage("tpu_vm.sh", *action[:at], *flags, *action[at:]).stdout.splitlines()
    commands = [line.split("would run: ")[1] for line in shown if "would run: gcloud" in line]
    assert commands
    for command in commands:
        answer = subprocess.run(
            ["gcloud", "meta", "lint-gcloud-commands", f"--command-string={command}"],
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "CLOUDSDK_CONFIG": str(stage.folder / "nobody")},
        )
        assert [result["error_message"] for result in json.loads(answer.stdout)] == [None]
