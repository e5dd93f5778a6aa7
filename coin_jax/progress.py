"""How far long work is: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rich import progress as rich_progress
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Progress = Callable[[int, int, str], None]
"""Told (done, of how many, what else there is to say)."""
SECONDS_BETWEEN_LINES = 15.0
"""Where the output is no terminal, such as a log file."""


class Bar(rich_progress.Progress):
    """A live bar for tasks with the field `note`, which stands in a line of its own: neither it nor
    the bar is cut at 80 columns."""

    def __init__(self, console: Console, **options: Any):
        columns = (
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]elapsed"),
            TimeRemainingColumn(),
            TextColumn("[dim]left"),
        )
        super().__init__(*columns, console=console, expand=True, **options)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if note := task.fields["note"]:
                yield Text("  " + note, no_wrap=True, overflow="ellipsis")


@contextlib.contextmanager
def progress_bar(console: Console, description: str) -> Iterator[Progress]:
    """Yields what is told how far the work is."""
    if console.is_terminal:
        with Bar(console) as bar:
            task = bar.add_task(description, total=None, note="")
            yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)
        return

    started = last_line = time.monotonic()
    first: int | None = None

    def show(done: int, total: int, note: str) -> None:
        nonlocal last_line, first
        now = time.monotonic()
        first = done if first is None else first  # what a cache had took no time
        if now - last_line < SECONDS_BETWEEN_LINES and done < total:
            return
        last_line = now
        parts = [f"{description} {done}/{total}", *filter(None, [note])]
        if first < done < total:
            parts.append(f"{(now - started) / (done - first) * (total - done):.0f} s left")
        console.print(", ".join(parts), highlight=False, markup=False, soft_wrap=True)

    yield show


class Count:
    """Counts what is done and tells it on.

    Args:
      note: what else there is to say; it may change.
    """

    def __init__(self, progress: Progress, total: int, note: str = ""):
        self._progress, self._total, self.done, self.note = progress, total, 0, note

    def add(self, count: int = 1) -> None:
        self.done += count
        self._progress(self.done, self._total, self.note)

    def show_part(self, count: int, done: int, total: int, note: str) -> None:
        """Shows that of the next `count` the share done / total is done."""
        notes = ", ".join(filter(None, [self.note, note]))
        self._progress(self.done + count * done // max(1, total), self._total, notes)
