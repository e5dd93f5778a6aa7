"""What a run shows while it works: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

from rich.console import Console

from coin_jax.progress import SECONDS_BETWEEN_LINES, Bar


class ProgressDisplay:
    """Step, loss parts, tokens per second and time left. A context manager."""

    def __init__(self, console: Console, start: int, last: int):
        self._console, self._last = console, last
        self._live = console.is_terminal
        self._progress = Bar(console, disable=not self._live)
        self._task = self._progress.add_task(
            "training", total=last, completed=start, note="compiling the training step"
        )
        self._first = start
        self._started: float | None = None
        self._next_line = 0.0
        self._is_stopping = False

    def advance(self, step: int) -> None:
        if self._started is None:  # compilation says nothing about the time left
            self._started, self._first = time.monotonic(), step
            if self._live and self._progress.tasks[0].fields["note"].startswith("compiling"):
                self._progress.update(self._task, note="")
        self._progress.update(self._task, completed=step)

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """The latest means of `metrics`, named as the train step names them."""
        self._progress.update(self._task, completed=step, note=describe(metrics))
        now = time.monotonic()
        if not self._live and (now >= self._next_line or step == self._last):
            self._next_line = now + SECONDS_BETWEEN_LINES
            line = f"step {step}/{self._last}  {describe(metrics)}"
            if self._started is not None and step > self._first:
                left = (now - self._started) / (step - self._first) * (self._last - step)
                line += f"  {left:.0f} s left"
            self._console.print(line, highlight=False, soft_wrap=True)

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

    def stopping(self) -> None:
        """Says that the step at hand is the last one. Prints nothing: signal handlers call it."""
        self._is_stopping = True
        self._progress.update(self._task, description="stopping")

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Shows another word while something else than training goes on."""
        self._progress.update(self._task, description=what)
        try:
            yield
        finally:
            after = "stopping" if self._is_stopping else "training"
            self._progress.update(self._task, description=after)

    def __enter__(self) -> ProgressDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def describe(metrics: Mapping[str, float]) -> str:
    """The loss parts, how many target tokens are right, and the speed, in one short line."""
    if "contrastive_loss" in metrics:
        parts = [
            f"generation {metrics['generation_loss']:.3f}",
            f"contrastive {metrics['contrastive_loss']:.3f}",
        ]
    else:
        parts = [f"loss {metrics['loss']:.3f}"]
    parts.append(f"token accuracy {metrics['token_accuracy']:.0%}")
    parts.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
    return "  ".join(parts)
