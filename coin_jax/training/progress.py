"""What a run shows while it works: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 15.0
"""Where the output is no terminal, such as a log file."""


class ProgressDisplay:
    """Step, loss parts, tokens per second and time left. A context manager."""

    def __init__(self, console: Console, start: int, last: int):
        self._console, self._last = console, last
        self._live = console.is_terminal
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._live,
        )
        self._task = self._progress.add_task(
            "training", total=last, completed=start, numbers="compiling"
        )
        self._started, self._first = time.monotonic(), start
        self._next_line = 0.0

    def advance(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """The latest means of `metrics`, named as the train step names them."""
        self._progress.update(self._task, completed=step, numbers=describe(metrics))
        now = time.monotonic()
        if not self._live and (now >= self._next_line or step == self._last):
            self._next_line = now + SECONDS_BETWEEN_LINES
            left = (now - self._started) / max(step - self._first, 1) * (self._last - step)
            self._console.print(
                f"step {step}/{self._last}  {describe(metrics)}  {left:.0f} s left", highlight=False
            )

    def note_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        parts = [
            f"{group} {metrics[f'evaluation/{group}/mean']:.1%}"
            for group in ("seen", "unseen")
            if f"evaluation/{group}/mean" in metrics
        ]
        if parts and step < self._last:
            self._console.print(
                f"step {step}: accuracy on wordings " + ", ".join(parts), highlight=False
            )

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Shows another word while something else than training goes on."""
        self._progress.update(self._task, description=what)
        try:
            yield
        finally:
            self._progress.update(self._task, description="training")

    def __enter__(self) -> ProgressDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def describe(metrics: Mapping[str, float]) -> str:
    """The loss parts and the speed, in one short line."""
    parts = [f"generation {metrics['generation_loss']:.3f}"]
    if "contrastive_loss" in metrics:
        parts.append(f"contrastive {metrics['contrastive_loss']:.3f}")
    parts.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
    return "  ".join(parts)
