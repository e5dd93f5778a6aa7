"""The house keeps its floors, and every file the same style."""

import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def run(tool, *arguments):
    """Runs a tool that is installed beside this Python."""
    beside = pathlib.Path(sys.executable).parent / tool
    program = str(beside) if beside.exists() else shutil.which(tool)
    if program is None:
        pytest.skip(f"{tool} is not installed (requirements-dev.txt)")
    return subprocess.run(
        [program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_room_imports_only_from_lower_floors():
    result = run("lint-imports", "--no-cache")
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_file_passes_the_linter():
    result = run("ruff", "check", "--no-cache", ".")
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_file_is_formatted():
    result = run("ruff", "format", "--no-cache", "--check", ".")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("module", ["coin_jax.training.step", "coin_jax.model.t5"])
def test_the_step_needs_nothing_heavy_beside_jax(module):
    """It runs where TensorFlow, transformers and pydantic are not installed."""
    program = (
        "import sys\n"
        "for name in 'tensorflow transformers pydantic tyro datasets'.split():\n"
        "    sys.modules[name] = None\n"
        f"import {module}\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_no_file_is_longer_than_500_lines():
    long = {
        str(path.relative_to(ROOT)): count
        for folder in ("coin_jax", "configs", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if (count := len(path.read_text().splitlines())) > 500
    }
    assert not long
