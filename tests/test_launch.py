"""launch/worker.sh says what it would do, and refuses what it cannot."""

import pathlib
import subprocess

WORKER = pathlib.Path(__file__).parent.parent / "launch" / "worker.sh"


def run(*arguments):
    return subprocess.run(
        ["bash", WORKER, *arguments],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "COIN_JAX_VENV": "no-such-environment"},
    )


def test_a_dry_run_prints_every_command_and_runs_none():
    result = run("tpu", "--dry-run", "--config", "configs/flan_t5.py:xl")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert all(line.startswith("would run: ") for line in lines)
    assert lines[1].endswith("pip install -r requirements.txt jax[tpu]")
    assert lines[-1].endswith("-m coin_jax.train --config configs/flan_t5.py:xl")
    assert not (WORKER.parent.parent / "no-such-environment").exists()


def test_an_unknown_accelerator_is_refused_with_the_known_ones():
    result = run("abacus", "--config", "configs/quickstart.py")
    assert result.returncode == 2
    assert "'abacus'; allowed are cpu, cuda13 and tpu" in result.stderr


def test_without_arguments_it_tells_its_usage():
    result = run()
    assert result.returncode == 2
    assert "launch/worker.sh cpu|cuda13|tpu" in result.stderr
