"""How a run ends before its last step: on a signal, or because it cannot or should not go on."""

from __future__ import annotations

import contextlib
import math
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Result = TypeVar("Result")


class RunStoppedError(RuntimeError):
    """What ended a run early, what is saved of it, and what to do."""


class DivergedError(RunStoppedError):
    """The loss, its gradient or what the optimizer made of it is not finite."""


class StopAskedError(Exception):
    """Raised inside `StopRequests.unless_stopped` when a signal arrives."""


class StopRequests:
    """The signals that asked a run to stop, and since when.

    may_give_up: whether waiting for data and evaluating may be given up; not where other processes
    take part in them.
    """

    def __init__(self, notice: Callable[[], None], may_give_up: bool):
        self.signals: list[int] = []
        self._notice, self._may_give_up = notice, may_give_up
        self._is_waiting = False
        self._since = 0.0

    def __bool__(self) -> bool:
        return bool(self.signals)

    def seconds(self) -> float:
        """Since the first signal."""
        return time.monotonic() - self._since

    def unless_stopped(self, work: Callable[[], Result]) -> Result:
        """What `work` returns. Raises StopAskedError as soon as a signal asks for the end.

        `work` should change nothing: it is cut anywhere, even where its result is there already.
        """
        try:
            self._is_waiting = self._may_give_up
            if self._is_waiting and self.signals:
                raise StopAskedError
            return work()
        finally:
            self._is_waiting = False

    def note(self, number: int) -> None:
        """A signal's handler."""
        if not self.signals:
            self._since = time.monotonic()
        self.signals.append(number)
        self._notice()
        if self._is_waiting:
            self._is_waiting = False
            raise StopAskedError


@contextlib.contextmanager
def stop_requests(notice: Callable[[], None], may_give_up: bool = True) -> Iterator[StopRequests]:
    """Notes SIGINT and SIGTERM while it is open.

    A second Ctrl-C acts as it always does. A second SIGTERM does nothing: schedulers send it to the
    process and to its group, and the first one is being answered.
    """
    requests = StopRequests(notice, may_give_up)
    before: dict[int, Any] = {}

    def note(number: int, _frame: Any) -> None:
        if number == signal.SIGINT:
            signal.signal(number, before[number])
        elif number in requests.signals:
            return
        requests.note(number)

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


def check_metrics(
    metrics: Mapping[str, float],
    step: int,
    batch: Mapping[str, np.ndarray],
    run_directory: pathlib.Path,
    saved: int | None,
) -> None:
    """Raises DivergedError, with the batch saved, where the loss or its gradient is not finite."""
    if math.isfinite(metrics["loss"]) and math.isfinite(metrics["gradient_norm"]):
        return
    # Of several processes each has its part of the batch.
    part = f"_{jax.process_index()}" if jax.process_count() > 1 else ""
    path = run_directory / f"diverged_batch_{step}{part}.npz"
    where = f"Its batch is in {path}."
    try:
        np.savez_compressed(path, **batch)
    except OSError as error:  # the loss is what people should read of
        where = f"Its batch could not be saved: {error}."
    bad = [f"{name} = {value}" for name, value in metrics.items() if not math.isfinite(value)]
    named = {n: v for n, v in metrics.items() if n.endswith("loss") or n in _TELLING}
    parts = ", ".join(f"{name} = {value:.4g}" for name, value in named.items())
    raise DivergedError(
        f"Step {step} is not finite: {', '.join(bad)}. The parts of its loss: {parts}. {where} "
        f"{_kept(saved)} {_ADVICE}"
    )


_TELLING = ("gradient_norm", "learning_rate")
_ADVICE = (
    "A lower optimizer.learning_rate, a longer optimizer.warmup_steps or a smaller "
    "optimizer.clip_norm usually helps."
)


def check_state(state: Any, step: int, saved: int | None) -> None:
    """Raises DivergedError where a number in `state` is not finite: it is not to be saved.

    The metrics of a step tell of the parameters before it, not of those that it made.
    """
    leaves = [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    finite = jax.device_get(_are_finite([leaf for _, leaf in leaves]))
    bad = [name for (name, _), fine in zip(leaves, finite, strict=True) if not fine]
    if bad:
        raise DivergedError(
            f"After step {step}, {len(bad)} of {len(leaves)} arrays of the state are not finite: "
            f"{', '.join(bad[:3])}{', ..' if len(bad) > 3 else ''}. {_kept(saved)} {_ADVICE}"
        )


@jax.jit
def _are_finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]


def _kept(saved: int | None) -> str:
    if saved is None:
        return "Nothing was saved before it."
    return f"No state after it is saved; the checkpoint of step {saved} is intact."
