"""The launch scripts for GKE, SLURM, SkyPilot and a GPU machine, against stand-ins."""

import json
import os
import signal
import subprocess

import pytest
import yaml
from stand_ins.stage import PROJECT, Stage

TRAINING = ["--", "--config", "configs/my config's.py"]


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    stage.tell(trainings="finish", log="step 1")
    yield stage
    stage.close()


# GKE


def rendered(stage, *flags, training=TRAINING):
    result = stage("gke.sh", "render", "--env", stage.settings, *flags, *training)
    assert result.returncode == 0, result.stderr
    return yaml.safe_load(result.stdout)


def pod_of(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    return job, job["template"]["spec"], job["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("topology", "chips", "hosts"),
    [("4x4", 4, 4), ("2x2", 4, 1), ("2x2x4", 4, 4), ("16x16", 4, 64)],
)
def test_a_slice_has_a_pod_for_every_host(topology, chips, hosts, stage):
    flags = ["--topology", topology, "--chips-per-host", chips]
    job, pod, container = pod_of(rendered(stage, *flags))
    assert job["parallelism"] == job["completions"] == hosts
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert container["env"] == []  # GKE tells them


def test_gpu_nodes_are_told_who_coordinates(stage):
    flags = ["--topology", "", "--nodes", "3", "--gke-accelerator", "nvidia-h100-80gb"]
    job, pod, container = pod_of(rendered(stage, *flags, "--on-demand"))
    assert job["parallelism"] == 3
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert container["env"] == [
        {"name": "COIN_JAX_COORDINATOR", "value": "coin-xl-workers-0-0.coin-xl:8476"},
        {"name": "COIN_JAX_PROCESSES", "value": "3"},
        {"name": "COIN_JAX_PROCESS", "valueFrom": {"fieldRef": {"fieldPath": index}}},
    ]


@pytest.mark.parametrize(
    "word", ["it's", 'a "b"', "back\\slash", "{a: 1}", "# no", "${NAME}", "& ; $(id)", "", "日本"]
)
def test_training_arguments_arrive_as_they_were_typed(word, stage):
    _, _, container = pod_of(rendered(stage, training=["--", "--config", word]))
    assert container["args"] == ["--config", word, "--output", "/mnt/coin_jax/runs"]


def test_an_output_that_was_chosen_stays(stage):
    _, _, container = pod_of(rendered(stage, training=["--", "--output=/elsewhere"]))
    assert container["args"] == ["--output=/elsewhere"]


def test_preempted_pods_do_not_use_up_the_restarts(stage):
    jobset = rendered(stage, "--restarts", "7")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 7
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    job, pod, _ = pod_of(jobset)
    assert job["backoffLimit"] == 0
    assert job["podFailurePolicy"]["rules"] == [
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    ]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy wants it


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--topology", "4y4"], "chips along each axis"),
        (["--topology", "3x3"], "9 chips (3x3) cannot be shared out by"),
        (["--chips-per-host", "0"], "cannot be shared out"),
        (["--volume-claim", ""], "not set: COIN_JAX_VOLUME_CLAIM"),
        (["--worker", "all"], "one at a time"),
    ],
)
def test_what_cannot_be_rendered_is_refused(flags, reason, stage):
    result = stage("gke.sh", "run", "--env", stage.settings, *flags, *TRAINING)
    assert result.returncode == 2
    assert reason in result.stderr
    assert stage.calls() == []


def test_a_jobset_is_applied_and_followed_to_its_end(stage):
    stage.tell(phases="\nPending\nRunning", end="Completed", delay="0.02")
    result = stage("gke.sh", "run", "--env", stage.settings, "--context", "my", *TRAINING)
    assert result.returncode == 0, result.stderr
    assert "step 1" in result.stdout
    assert "the pod of worker 0: Pending" in result.stderr
    assert "the training is done" in result.stderr
    assert all(call[1:3] == ["--context=my", "--namespace=default"] for call in stage.calls())
    applied = yaml.safe_load((stage.folder / "applied.yaml").read_text())
    assert applied == rendered(stage)


def test_a_jobset_that_failed_is_an_error(stage):
    stage.tell(phases="Failed", end="Failed")
    result = stage("gke.sh", "run", "--env", stage.settings, *TRAINING)
    assert result.returncode == 1
    assert "the JobSet has failed; 'gke.sh logs' shows why" in result.stderr


def test_a_cluster_that_refuses_the_jobset_is_not_followed(stage):
    stage.tell(fail="apply")
    result = stage("gke.sh", "run", "--env", stage.settings, *TRAINING)
    assert result.returncode == 1
    assert not stage.calls("logs")


def test_a_cluster_that_stays_silent_ends_the_waiting(stage):
    stage.tell(fail="get\n" * 12)
    result = stage("gke.sh", "run", "--env", stage.settings, *TRAINING)
    assert result.returncode == 1
    assert "no answer ten times; the JobSet goes on" in result.stderr


def test_ctrl_c_leaves_the_jobset_running_and_says_so(stage):
    stage.tell(phases="Running", hold="")
    running = stage.begin("gke.sh", "run", "--env", stage.settings, *TRAINING)
    stage.wait_for("step 1")
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(10) == 130
    assert "The training goes on" in stage.shown()
    assert not stage.calls("delete")


def test_stop_suspends_and_resume_goes_on(stage):
    for action, patch in (("stop", True), ("resume", False)):
        assert stage("gke.sh", action, "--env", stage.settings).returncode == 0
        call = stage.calls("patch")[-1]
        assert call[2:6] == ["patch", "jobset", "coin-xl", "--type=merge"]
        assert json.loads(call[7]) == {"spec": {"suspend": patch}}


# SLURM


def test_a_job_is_submitted_once_with_what_was_set(stage):
    flags = ["--nodes", "2", "--partition", "gpu", "--account", "mine"]
    result = stage("slurm.sbatch", "run", "--env", stage.settings, *flags, *TRAINING)
    assert result.returncode == 0, result.stderr
    (call,) = stage.calls("sbatch")
    assert call[1:] == [
        "--job-name=coin-xl",
        "--nodes=2",
        "--gpus-per-node=8",
        "--ntasks-per-node=8",  # JAX wants a process a GPU
        "--signal=B:USR1@120",
        "--output=runs/slurm-coin-xl.log",
        "--time=24:00:00",
        "--partition=gpu",
        "--account=mine",
        "launch/slurm.sbatch",
        "inside",
        "--config",
        "configs/my config's.py",
    ]
    stage.tell(queue="77")
    again = stage("slurm.sbatch", "run", "--env", stage.settings, *flags, *TRAINING)
    assert again.returncode == 1
    assert "a job of the name coin-xl is there already: 77" in again.stderr


def inside(stage):
    return subprocess.Popen(
        stage.command("slurm.sbatch", "inside", "--config", "a b"),
        env=stage.environment | {"SLURM_JOB_ID": "77"},
        cwd=stage.project,
        stdout=(stage.folder / "shown").open("w"),
        stderr=subprocess.STDOUT,
    )


@pytest.mark.parametrize(("fate", "status"), [("finish", 0), ("refuse", 1), ("crash", 137)])
def test_a_job_ends_as_its_training_does(fate, status, stage):
    stage.tell(trainings=fate)
    assert inside(stage).wait(20) == status
    assert stage.calls("python")[0][1:] == ["-m", "coin_jax.train", "--config", "a b"]
    assert len(stage.calls("-m", "venv")) == 1
    assert not stage.calls("scontrol")


def test_a_job_whose_time_is_up_saves_and_queues_itself_again(stage):
    stage.tell(trainings="hold")
    job = inside(stage)
    stage.wait_for("training until")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(10) == 143
    assert "saved and stopped" in stage.shown()
    assert stage.calls("scancel") == [["scancel", "--signal=TERM", "77"]]
    assert stage.calls("scontrol") == [["scontrol", "requeue", "77"]]


def test_a_job_that_is_stopped_saves_and_is_not_queued_again(stage):
    stage.tell(trainings="hold", queue="77")
    job = inside(stage)
    stage.wait_for("training until")
    job.send_signal(signal.SIGTERM)  # a preemption tells the batch script too, which leaves it be
    assert stage("slurm.sbatch", "stop", "--env", stage.settings).returncode == 0
    assert job.wait(10) == 143
    assert "saved and stopped" in stage.shown()
    assert not stage.calls("scontrol")


@pytest.mark.parametrize(
    ("queue", "reason"), [("", "no job of the name coin-xl"), ("77\n78", "several jobs")]
)
def test_which_job_to_stop_is_never_guessed(queue, reason, stage):
    (stage.folder / "queue").write_text(queue)
    for action in (["stop"], ["delete", "coin-xl"]):
        result = stage("slurm.sbatch", *action, "--env", stage.settings)
        assert result.returncode == 1
        assert reason in result.stderr
        assert not stage.calls("scancel")


# SkyPilot


@pytest.mark.parametrize(
    ("accelerators", "kind"), [("H100:8", "cuda13"), ("tpu-v5litepod-16", "tpu")]
)
def test_sky_is_told_hardware_bucket_and_arguments(accelerators, kind, stage):
    flags = ["--accelerators", accelerators]
    result = stage("sky.sh", "run", "--env", stage.settings, *flags, *TRAINING)
    assert result.returncode == 0, result.stderr
    launch, logs = stage.calls("sky")
    assert launch[1:4] == ["jobs", "launch", "launch/sky.yaml"]
    assert {"--use-spot", "--yes", accelerators, "gcp"} <= set(launch)
    assert f"COIN_JAX_ACCELERATOR={kind}" in launch
    assert "COIN_JAX_BUCKET=gs://my-bucket" in launch
    assert logs[1:] == ["jobs", "logs", "--name", "coin-xl", "--follow"]


def test_arguments_survive_the_way_through_sky(stage):
    """The lines that sky.sh sends, read back by the commands of sky.yaml."""
    stage.programs.joinpath("sky").unlink()
    stage.programs.joinpath("sky").write_text(
        '#!/bin/bash\nfor word in "$@"; do [[ $word != COIN_JAX_ARGUMENTS=* ]] ||\n'
        f'printf "%s" "${{word#*=}}" >"{stage.folder}/lines"; done\n'
    )
    stage.programs.joinpath("sky").chmod(0o755)
    training = ["--", "--config", "configs/my config's.py", "--name", "", "--note", '$(id) "a" \\']
    assert stage("sky.sh", "run", "--env", stage.settings, *training).returncode == 0
    task = yaml.safe_load((PROJECT / "launch" / "sky.yaml").read_text())
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2"}
    result = subprocess.run(
        ["bash", "-c", task["run"]],
        env=stage.environment
        | {"COIN_JAX_ACCELERATOR": "cuda13", "SKYPILOT_NODE_RANK": "1"}
        | {"COIN_JAX_ARGUMENTS": (stage.folder / "lines").read_text()}
        | nodes,
        cwd=stage.project,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    (call,) = stage.calls("coin_jax.train")
    assert call[3:] == [*training[1:], "--output", "/mnt/coin_jax/runs"]


def test_sky_refuses_what_it_cannot_pass_on(stage):
    result = stage("sky.sh", "run", "--env", stage.settings, "--", "--config", "a\nb")
    assert result.returncode == 2
    assert "line break" in result.stderr
    result = stage("sky.sh", "run", "--env", stage.settings, "--shared", "host:/path", *TRAINING)
    assert "SkyPilot mounts buckets" in result.stderr


# One GPU machine


def test_a_gpu_machine_trains_in_the_background_and_shows_the_log(stage):
    result = stage("gpu.sh", "run", *TRAINING)
    assert result.returncode == 0, result.stderr
    assert "H100" in result.stdout
    assert "training until it will finish" in result.stdout
    (call,) = stage.calls("coin_jax.train")
    assert call[3:] == TRAINING[1:]


def test_a_gpu_training_outlives_its_terminal_and_stops_when_asked(stage):
    stage.tell(trainings="hold")
    running = stage.begin("gpu.sh", "run", *TRAINING)
    stage.wait_for("training until")
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(10) == 130
    assert "The training goes on" in stage.shown()
    assert stage("gpu.sh", "status").stdout == "coin_jax-job running\n"
    joined = stage.begin("gpu.sh", "run", *TRAINING)
    stage.wait_for("it runs already; following")
    assert stage("gpu.sh", "stop").returncode == 0
    assert joined.wait(10) == 143
    assert "saved and stopped" in stage.shown()
    assert len(stage.calls("coin_jax.train")) == 1


def test_a_failed_gpu_training_is_an_error(stage):
    stage.tell(trainings="refuse")
    result = stage("gpu.sh", "run", *TRAINING)
    assert result.returncode == 1
    assert "must be positive" in result.stdout


def test_a_container_gets_the_gpus_the_runs_and_time_to_save(stage):
    result = stage("gpu.sh", "run", "--image", "image", "--name", "big", *TRAINING)
    assert result.returncode == 0, result.stderr
    (call,) = stage.calls("docker", "run")
    assert {"--gpus", "all", "--ipc=host", "--rm", "120"} <= set(call)
    assert f"{stage.project}/runs:/coin_jax/runs" in call
    assert call[-3:] == ["image", "--config", "configs/my config's.py"]


def test_a_driver_that_finds_no_gpu_is_named(stage):
    stage.tell(fail="nvidia-smi")
    result = stage("gpu.sh", "run", *TRAINING)
    assert result.returncode == 1
    assert "the driver finds no GPU that works" in result.stderr
    assert not stage.calls("coin_jax.train")
