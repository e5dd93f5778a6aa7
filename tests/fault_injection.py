"""Kills a training at random moments and compares what comes out with a run left in peace.

    python tests/fault_injection.py --kills 50 --seed 0

`pytest --slow` runs it as well. Each start of the run is killed with SIGKILL: at any moment, in the
steps, or aimed at a restore, a save or the removal of an old checkpoint by watching the folder.
Between two starts the newest checkpoint is damaged now and then. After each kill every checkpoint
that has a name must be whole; at the end parameters, optimizer state, data position, metrics and
predictions must be those of the undisturbed run, bit for bit.

The processes are forked from this one once everything is imported, which saves most of their start;
the runtimes of JAX and TensorFlow begin in each of them. This process starts none before the end.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time

SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
}
AIMS = ("moment", "restore", "save", "removal", "step")
PATIENCE = 600.0
"""Seconds without a sign of life, on a machine that is busy with other things."""


class WrongError(AssertionError):
    """A promise that does not hold."""


class Run:
    """One run directory and the processes that work on it, one after the other."""

    def __init__(self, folder: pathlib.Path, steps: int):
        self.directory = folder / "run"
        self.checkpoints = self.directory / "checkpoints"
        self.metrics = self.directory / "metrics.jsonl"
        self.printed = folder / "printed"
        self._arguments = ["--config", str(folder / "config.py"), "--output", str(folder)]
        for name, value in {
            "optimizer.learning-rate": 0.001,
            "optimizer.warmup-steps": 10,
            "evaluation.every": steps // 3,
            "checkpoint.every": 7,
            "checkpoint.keep-last": 2,
            "training.steps": steps,
        }.items():
            self._arguments += [f"--{name}", str(value)]
        folder.mkdir()
        from training_runs import CONFIG  # only now: it imports jax

        (folder / "config.py").write_text(CONFIG)

    def start(self) -> int:
        """The process id of a new start of the training."""
        from coin_jax import train

        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            output = os.open(self.printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            status = train.main(self._arguments)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def steps(self) -> list[int]:
        if not self.checkpoints.is_dir():
            return []
        return sorted(int(path.name) for path in self.checkpoints.iterdir() if path.name.isdigit())

    def unfinished(self) -> bool:
        return any(self.checkpoints.glob("*.orbax-checkpoint-tmp"))

    def went_on_from(self) -> int | None:
        """The step that the last start began with; None where it did not come that far."""
        text = self.printed.read_text(errors="replace")
        if found := re.search(r"Going on from step (\d+)", text):
            return int(found[1])
        return 0 if "Starting in" in text else None


def ended(pid: int) -> int | None:
    """The exit status of a process that has ended by itself."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def wait_for(pid: int, happened, pause: float = 0.001) -> int | None:
    """Waits until `happened()`, or the process ends: then returns its exit status.

    pause: seconds between two looks.
    """
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if (status := ended(pid)) is not None:
            return status
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            raise WrongError(f"nothing happened for {PATIENCE:.0f} s")
        time.sleep(pause)
    return None


def reads_checkpoint(pid: int, folder: pathlib.Path) -> bool:
    """Whether a process has a file of a checkpoint open, which none but a restoring one has."""
    with contextlib.suppress(OSError):
        for descriptor in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(descriptor.path).startswith(f"{folder}/"):
                    return True
    return False


def kill(run: Run, pid: int, aim: str, dice: random.Random, usual: float) -> int | None:
    """Kills the process at a moment of that kind; returns its exit status if it was quicker.

    usual: seconds from the start of a process to its first record.
    """
    started = time.monotonic()
    after = 0.0
    if aim == "moment":
        until = started + dice.uniform(0, 1.5 * usual)
        status = wait_for(pid, lambda: time.monotonic() >= until)
    elif aim == "restore":
        status = wait_for(pid, lambda: reads_checkpoint(pid, run.checkpoints) or run.unfinished())
        after = dice.uniform(0, 0.05)
    elif aim == "save":
        wanted = dice.randint(0, 2)
        first = run.steps()[-1:]
        moved = lambda: len([s for s in run.steps() if [s] > first]) >= min(wanted, 1)  # noqa: E731
        status = wait_for(pid, lambda: moved() and run.unfinished())
        after = dice.uniform(0, 0.15)
    elif aim == "removal":
        before = set(run.checkpoints.glob("*.removed"))
        known = set(run.steps())
        status = wait_for(
            pid,
            lambda: (
                set(run.checkpoints.glob("*.removed")) - before or len(set(run.steps()) - known) > 2
            ),
            pause=0.0001,
        )
        after = dice.choice((0, dice.uniform(0, 0.004)))
    else:
        size = run.metrics.stat().st_size if run.metrics.exists() else 0
        inode = run.metrics.stat().st_ino if run.metrics.exists() else 0

        def stepped() -> bool:
            with contextlib.suppress(OSError):
                now = run.metrics.stat()
                return now.st_ino != inode and now.st_size > size
            return False

        status = wait_for(pid, stepped)
        after = dice.uniform(0, 1.5)
    if status is not None:
        return status
    time.sleep(after)
    if (status := ended(pid)) is not None:
        return status
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def damage(folder: pathlib.Path, dice: random.Random) -> str:
    """Cuts, alters or removes one file of a checkpoint; returns what was done."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
    files = [p for p in files if p.name not in ("_CHECKPOINT_METADATA", "commit_success.txt")]
    files = [p for p in files if p.name != "manifest.json"]
    path = dice.choice(files)
    content = bytearray(path.read_bytes())
    kind = dice.choice(("cut", "a bit flipped", "removed"))
    if kind == "removed":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[: dice.randrange(len(content))])
    else:
        place = dice.randrange(len(content))
        content[place] ^= 1 << dice.randrange(8)
        path.write_bytes(content)
    return f"{path.relative_to(folder)} {kind}"


def run_in_peace(run: Run) -> float:
    """Seconds that a run takes which nothing happens to."""
    start = time.monotonic()
    status = os.waitstatus_to_exitcode(os.waitpid(run.start(), 0)[1])
    if status:
        raise WrongError(f"exit status {status}:\n{run.printed.read_text()}")
    return time.monotonic() - start


def time_a_start(run: Run) -> float:
    """Seconds from the start of a process to its first record, with everything compiled."""
    start = time.monotonic()
    pid = run.start()
    wait_for(pid, lambda: run.metrics.exists() and run.metrics.stat().st_size > 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return time.monotonic() - start


def run_under_fire(run: Run, kills: int, dice: random.Random, usual: float, say) -> dict:
    """Starts the run until it ends by itself, with the first `kills` starts killed."""
    from coin_jax.training.manifest import fault

    counts: dict[str, int] = collections.Counter()
    begins: set[int] = set()
    damaged: set[int] = set()

    def newest() -> int:
        """Of the checkpoints that have a name, each of which must be whole."""
        for step in run.steps():
            reason = fault(run.checkpoints / str(step))
            if reason is not None and step not in damaged:
                raise WrongError(f"checkpoint {step}: {reason}")
        return max(set(run.steps()) - damaged, default=0)

    for number in range(1, kills + 1):
        expected, done = newest(), ""
        if len(set(run.steps()) - damaged) > 1 and dice.random() < 0.15:
            done = damage(run.checkpoints / str(expected), dice)
            damaged.add(expected)
            expected = newest()
            counts["damaged checkpoints"] += 1
        aim = dice.choice(AIMS)
        status = kill(run, run.start(), aim, dice, usual)
        if status is not None:
            text = run.printed.read_text(errors="replace")
            raise WrongError(f"start {number} ended by itself, exit status {status}:\n{text}")
        began = run.went_on_from()
        if began not in (None, expected):
            raise WrongError(f"start {number} began at {began}, not at {expected}")
        if began is not None:
            damaged.clear()  # they have been moved, and their steps may have been saved again
        if newest() < expected:
            raise WrongError(f"after kill {number} ({aim}) checkpoint {expected} is gone")
        begins.add(expected)
        counts[f"aimed at: {aim}"] += 1
        counts["before the restore was done"] += began is None
        counts["with a checkpoint half written"] += run.unfinished()
        counts["with one half removed"] += any(run.checkpoints.glob("*.removed"))
        say(
            f"kill {number:3d} {aim:8s} began {began}, left {run.steps()}"
            + (" and a half one" if run.unfinished() else "")
            + (f"; before: {done}" if done else "")
        )
    status = os.waitstatus_to_exitcode(os.waitpid(run.start(), 0)[1])
    if status:
        raise WrongError(f"exit status {status}:\n{run.printed.read_text()}")
    counts["different steps gone on from"] = len(begins)
    return counts


def compare(run: Run, peaceful: Run, last: int) -> dict[str, int]:
    """Raises where the two differ in a bit; returns how much was compared."""
    from training_runs import assert_same_run, checkpoint, records

    assert_same_run(run.directory, peaceful.directory, step=last)
    found, wanted = (
        json.loads((r.directory / "evaluation.json").read_text())["predictions"]
        for r in (run, peaceful)
    )
    if found != wanted:
        raise WrongError("the predictions differ")
    arrays, _ = checkpoint(run.directory, last)
    return {
        "arrays equal": len(arrays),
        "numbers in them": sum(array.size for array in arrays.values()),
        "metric records equal": len(records(run.directory)),
        "predictions equal": len(found),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--keep", action="store_true", help="leave the run directories")
    arguments = parser.parse_args()
    root = pathlib.Path(__file__).parent.parent
    sys.path[:0] = [str(root), str(root / "tests")]
    folder = pathlib.Path(tempfile.mkdtemp(prefix="faults-"))
    os.environ.update(SETTINGS, JAX_COMPILATION_CACHE_DIR=str(folder / "compiled"))
    for name in ("coin_jax.train", "tensorflow", "matplotlib.pyplot"):
        __import__(name)

    say = lambda line: print(line, flush=True)  # noqa: E731
    begin = time.monotonic()
    try:
        peaceful, run = (Run(folder / n, arguments.steps) for n in ("peaceful", "under_fire"))
        seconds = run_in_peace(peaceful)
        usual = time_a_start(Run(folder / "again", arguments.steps))
        say(f"undisturbed: {arguments.steps} steps in {seconds:.0f} s; a start takes {usual:.1f} s")
        dice = random.Random(arguments.seed)
        counts = run_under_fire(run, arguments.kills, dice, usual, say)
        counts |= compare(run, peaceful, arguments.steps)
    except WrongError as error:
        say(f"WRONG: {error}\nseed {arguments.seed}; the runs are in {folder}")
        return 1
    for name, count in counts.items():
        say(f"  {count:6,}  {name}")
    say(f"{arguments.kills} kills survived in {time.monotonic() - begin:.0f} s, bit for bit")
    if not arguments.keep:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
