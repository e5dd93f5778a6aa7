"""The training loop: batches in, steps out; logging, evaluation, checkpoints, and how it ends.

It ends after the last step, or earlier and in order on Ctrl-C and SIGTERM: the step at hand is
finished and saved, and the same command goes on from there, bit for bit. A loss or gradient that is
not finite stops the run at once; its batch is saved, its state is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from rich.console import Console

from coin_jax.config import Config
from coin_jax.training.checkpoint import Checkpoints
from coin_jax.training.logging import MetricLog
from coin_jax.training.progress import ProgressDisplay
from coin_jax.training.state import TrainState
from coin_jax.training.throughput import Throughput

Evaluate = Callable[[Any], Mapping[str, float]]
"""Parameters -> metrics."""


class DivergedError(RuntimeError):
    """The loss or its gradient is not finite."""


class Batches(Protocol):
    def __next__(self) -> dict[str, np.ndarray]: ...

    def state(self) -> dict[str, int]:
        """The position after the batch last handed out."""


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a call of `train` ended."""

    state: TrainState
    signal: int | None = None
    """The signal that asked it to stop before the last step."""
    evaluated: Mapping[str, float] | None = None
    """The metrics of the final evaluation, if the last step was reached."""


def train(
    config: Config,
    state: TrainState,
    train_step: Callable,
    batches: Batches,
    place: Callable[[dict[str, np.ndarray]], dict[str, jax.Array]],
    evaluate: Evaluate | None,
    checkpoints: Checkpoints,
    log: MetricLog,
    throughput: Throughput,
    console: Console,
    unlogged: Mapping[str, float] | None = None,
) -> Ending:
    """Runs `train_step` up to config.training.steps and returns how that ended.

    place: a host's numpy batch -> global arrays. evaluate: None where nothing is held out.
    unlogged: from the checkpoint that `state` comes from.
    Raises DivergedError, and what reading the data raises; the last checkpoint is whole by then.
    """
    last = config.training.steps
    step = int(state.step)
    pending: tuple[int, dict, dict] | None = None
    sums = dict(unlogged or {})  # of the metrics since the last record, and how many `steps`
    saved_at = checkpoints.latest_step
    # A run that goes on has evaluated its first step before it stopped; a finished one shows again.
    start_step, evaluated_at = step, step if 0 < step < last else None
    evaluated: Mapping[str, float] | None = None

    with (
        ProgressDisplay(console, step, last) as display,
        _stop_requests(display.stopping) as requests,
    ):

        def settle() -> None:
            """Fetches the metrics of the step before, while the device works on the next one."""
            nonlocal pending
            if pending is None:
                return
            number, metrics, batch = pending
            pending = None
            metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["gradient_norm"])):
                raise _diverged(config.run_directory, number, metrics, batch)
            throughput.add(metrics)
            for name, value in (metrics | {"steps": 1}).items():
                sums[name] = sums.get(name, 0) + value
            if number % config.training.log_every == 0 or number == last:
                mean = {name: sums[name] / sums["steps"] for name in metrics}
                sums.clear()
                record = mean | throughput.rates()
                log.write(number, {f"train/{name}": value for name, value in record.items()})
                display.show(number, record)
            display.advance(number)

        while True:
            if is_due(step, config.evaluation.every, last) and evaluate and evaluated_at != step:
                settle()
                start = time.perf_counter()
                with display.doing("evaluating"):
                    evaluated = evaluate(state.evaluation_params)
                if step > start_step:
                    log.write(step, evaluated)
                display.note_evaluation(step, evaluated)
                throughput.pause(time.perf_counter() - start)
                evaluated_at = step
            stopping = bool(requests)
            is_candidate = config.checkpoint.keep_best and evaluated_at == step
            save = stopping or is_candidate or is_due(step, config.checkpoint.every, last)
            if save and step and saved_at != step:
                settle()  # a state that diverged is not worth keeping
                start = time.perf_counter()
                fresh = evaluated if evaluated_at == step else None
                checkpoints.save(state, batches.state(), config, fresh, sums)
                throughput.pause(time.perf_counter() - start)
                saved_at = step
            if step >= last or stopping:
                settle()
                break

            batch = next(batches)
            placed = place(batch)
            with jax.transfer_guard("disallow"):
                state, metrics = train_step(state, placed)
            if step == start_step:
                throughput.restart()  # the first call compiled
            step += 1
            settle()
            pending = (step, metrics, batch)

    checkpoints.wait()
    done = step >= last
    return Ending(state, None if done else requests[0], evaluated if done else None)


def is_due(step: int, every: int, last: int) -> bool:
    """Every `every` steps (0: never before the end), and at the end."""
    return step == last or bool(step and every and step % every == 0)


@contextlib.contextmanager
def _stop_requests(notice: Callable[[], None]) -> Iterator[list[int]]:
    """A list to which SIGINT and SIGTERM are appended; calls `notice` at the first.

    A second signal of the same kind acts as it always does.
    """
    requests: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, _frame: Any) -> None:
        requests.append(number)
        signal.signal(number, before[number])
        notice()

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:
        pass  # not the main thread: signals are somebody else's
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _diverged(
    run_directory: pathlib.Path, step: int, metrics: dict[str, float], batch: dict[str, np.ndarray]
) -> DivergedError:
    path = run_directory / f"diverged_batch_{step}.npz"
    np.savez_compressed(path, **batch)
    bad = [f"{name} = {value}" for name, value in metrics.items() if not math.isfinite(value)]
    return DivergedError(
        f"Step {step} is not finite: {', '.join(bad)}. Its batch is in {path}; no state "
        "after it is saved. A lower optimizer.learning_rate, a longer optimizer.warmup_steps or a "
        "smaller optimizer.clip_norm usually helps."
    )
