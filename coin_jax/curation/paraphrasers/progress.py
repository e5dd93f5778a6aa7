"""How far rewording is: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich import progress as rich_progress
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from coin_jax.curation.paraphrasers.paraphraser import Progress

SECONDS_BETWEEN_LINES = 15.0
"""Where the output is no terminal, such as a log file."""


@contextlib.contextmanager
def progress_bar(console: Console, description: str) -> Iterator[Progress]:
    """Yields what a paraphraser tells its progress to."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("[dim]left[/dim]  {task.fields[note]}", markup=True),
        )
        with rich_progress.Progress(*columns, console=console) as bar:
            task = bar.add_task(description, total=None, note="")
            yield lambda done, total, note: bar.update(
                task, completed=done, total=total, note=note.replace("[", r"\[")
            )
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
