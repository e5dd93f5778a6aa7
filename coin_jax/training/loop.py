"""The training loop: batches in, steps out; logging, evaluation, checkpoints, and how it ends.

It ends after the last step, or earlier and in order on Ctrl-C and SIGTERM: the step at hand is
finished and saved, and the same command goes on from there, bit for bit. So it is where the data
cannot be read any more. A loss, gradient or parameter that is not finite stops the run at once; the
batch is saved, the state is not.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import functools
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from rich.console import Console

from coin_jax.config import Config
from coin_jax.data.packing import PackingError
from coin_jax.data.sources import DataError
from coin_jax.training.checkpoint import OWED, Checkpoints
from coin_jax.training.endings import (
    RunStoppedError,
    StopAskedError,
    check_metrics,
    check_state,
    stop_requests,
)
from coin_jax.training.logging import MetricLog
from coin_jax.training.progress import ProgressDisplay
from coin_jax.training.state import TrainState
from coin_jax.training.throughput import Throughput

Evaluate = Callable[[Any], Mapping[str, float]]
"""Parameters -> metrics."""


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
    agree: Callable[[int], int] = lambda signal_or_0: signal_or_0,
) -> Ending:
    """Runs `train_step` up to config.training.steps and returns how that ended.

    place: a host's numpy batch -> global arrays. evaluate: None where nothing is held out.
    unlogged: from the checkpoint that `state` comes from.
    agree: called at every step with the signal that this process got, or 0; returns the one that
    all processes stop for.
    Raises RunStoppedError (DivergedError where numbers are not finite), CheckpointError, OSError;
    the last checkpoint is whole by then.
    """
    # Data in mapped memory that vanishes is no exception but a signal, and else a silent end.
    if not faulthandler.is_enabled():
        faulthandler.enable()
    last = config.training.steps
    step = int(state.step)
    pending: tuple[int, dict, dict] | None = None
    sums = dict(unlogged or {})  # of the metrics since the last record, and how many `steps`
    saved_at = checkpoints.latest_step
    position: Mapping[str, int] | None = None
    # A run that goes on has evaluated its first step before it stopped, unless the stop cut that
    # short; a finished one shows again.
    owes_evaluation = bool(sums.pop(OWED, 0))
    start_step, evaluated_at = step, step if 0 < step < last and not owes_evaluation else None
    evaluated: Mapping[str, float] | None = None
    alone = jax.process_count() == 1

    with (
        ProgressDisplay(console, step, last) as display,
        stop_requests(display.stopping, may_give_up=alone) as requests,
    ):

        def settle() -> None:
            """Fetches the metrics of the step before, while the device works on the next one."""
            nonlocal pending
            if pending is None:
                return
            number, metrics, batch = pending
            pending = None
            metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
            check_metrics(metrics, number, batch, config.run_directory, saved_at)
            throughput.add(metrics)
            for name, value in (metrics | {"steps": 1}).items():
                sums[name] = sums.get(name, 0) + value
            if number % config.training.log_every == 0 or number == last:
                mean = {name: sums[name] / sums["steps"] for name in metrics}
                sums.clear()
                record = mean | throughput.rates()
                log.write(number, {f"train/{name}": value for name, value in record.items()})
                display.show(number, record)
                checkpoints.check()
            display.advance(number)

        def keep() -> None:
            """Begins to save the step at hand, unless it is."""
            nonlocal saved_at
            if not step or saved_at == step:
                return
            settle()  # a state that diverged is not worth keeping
            start = time.perf_counter()
            check_state(state, step, saved_at)
            log.flush()  # the records up to a checkpoint are on the disk before it is
            fresh = evaluated if evaluated_at == step else None
            due = sums | ({OWED: 1} if owes_evaluation else {})
            checkpoints.save(state, position or batches.state(), config, fresh, due)
            throughput.pause(time.perf_counter() - start)
            saved_at = step

        while True:
            if is_due(step, config.evaluation.every, last) and evaluate and evaluated_at != step:
                settle()
                start = time.perf_counter()
                try:
                    with display.doing("evaluating"):
                        evaluated = requests.unless_stopped(
                            functools.partial(evaluate, state.evaluation_params)
                        )
                except StopAskedError:
                    owes_evaluation = True
                else:
                    if step > start_step or owes_evaluation:
                        log.write(step, evaluated)
                    if owes_evaluation and saved_at == step:
                        log.flush()
                        checkpoints.add_metrics(evaluated)
                    owes_evaluation = False
                    display.note_evaluation(step, evaluated)
                    evaluated_at = step
                throughput.pause(time.perf_counter() - start)
            stopping = agree(requests.signals[0] if requests else 0)
            is_candidate = config.checkpoint.keep_best and evaluated_at == step
            if stopping or is_candidate or is_due(step, config.checkpoint.every, last):
                keep()
            if step >= last or stopping:
                settle()
                break

            # Waiting may be cut where the batch is there and not yet here. Asking for the position
            # takes all processes, and then waiting is not cut.
            position = batches.state() if alone else None
            try:
                batch = requests.unless_stopped(lambda: next(batches))
            except StopAskedError:
                continue
            except Exception as error:
                if alone:
                    keep()
                    checkpoints.wait()
                if isinstance(error, OSError) or (isinstance(error, DataError) and saved_at):
                    raise _data_failed(error, saved_at) from error
                raise
            placed = place(batch)
            with jax.transfer_guard("disallow"):
                state, metrics = train_step(state, placed)
            position = None
            if step == start_step:
                throughput.restart()  # the first call compiled
            step += 1
            settle()
            pending = (step, metrics, batch)

        checkpoints.wait()
    done = step >= last and not owes_evaluation
    if requests and not done:
        name = signal.Signals(requests.signals[0]).name
        console.print(f"{name} was answered in {requests.seconds():.1f} s.", highlight=False)
    return Ending(state, None if done else stopping, evaluated if done else None)


def is_due(step: int, every: int, last: int) -> bool:
    """Every `every` steps (0: never before the end), and at the end."""
    return step == last or bool(step and every and step % every == 0)


def _data_failed(error: Exception, saved: int | None) -> RunStoppedError:
    on = "nothing was saved before"
    if saved:
        on = f"step {saved} is saved, and the same command goes on from there"
    if isinstance(error, OSError):
        return RunStoppedError(f"The data cannot be read any more: {error}. Bring it back; {on}.")
    cure = "Mend that row, without adding or removing any"  # which would change the order
    if isinstance(error, PackingError):
        cure = "Make batch.encoder_length, batch.decoder_length or batch.rows larger"
    return RunStoppedError(f"{error}\n{cure}; {on}.")
