"""What was built, for the terminal: rows and wordings by task, and what each filter left out."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coin_jax.data.set_format import MANIFEST, Manifest
from coin_jax.untrusted import printable

MOST_TASKS = 40
"""Lines of the table; the manifest has all tasks."""


def print_summary(manifest: Manifest, output: pathlib.Path, console: Console) -> None:
    """Prints a set's tables and where it lies."""
    console.print(_tasks(manifest))
    left_out = left_out_table(manifest.record)
    if left_out.row_count:
        console.print(left_out)
    for name, usage in manifest.record["paraphrasers"].items():
        used = ", ".join(
            f"{value:,.2f} {what}" if what == "dollars" else f"{value:,} {what.replace('_', ' ')}"
            for what, value in usage.items()
            if value
        )
        console.print(Text(f"wordings by {name}: {used}"), highlight=False)
    if hits := manifest.record["decontamination"].get("hits"):
        found = ", ".join(f"{count:,} {kind}s" for kind, count in hits.items())
        console.print(f"overlap with evaluation: {found}", highlight=False)
    if first := manifest.record["first_unreadable"]:
        console.print(Text(printable(f"first unreadable row: {first}")), style="dim")
    console.print(Text(f"manifest      {output / MANIFEST}"), soft_wrap=True)
    console.print(Text(f"content hash  {manifest.content_hash}"), soft_wrap=True)


def _tasks(manifest: Manifest) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("task", overflow="fold")
    for name in ("answers", "wordings", "held out", "train", "evaluation"):
        table.add_column(name, justify="right")
    numbers = [
        (
            len(task.answers),
            sum(not wording.held_out for wording in task.wordings),
            sum(wording.held_out for wording in task.wordings),
            *(split.rows_of_task[number] for split in manifest.splits.values()),
        )
        for number, task in enumerate(manifest.tasks)
    ]
    for task, row in list(zip(manifest.tasks, numbers, strict=True))[:MOST_TASKS]:
        table.add_row(
            Text(task.name), f"{row[0]}" if row[0] else "free", *map("{:,}".format, row[1:])
        )
    if len(numbers) > MOST_TASKS:
        table.add_row(f"… {len(numbers) - MOST_TASKS} more", *[""] * 5)
    table.add_section()
    totals = [sum(column) for column in zip(*numbers, strict=True)]
    table.add_row(f"{len(numbers)} tasks", "", *map("{:,}".format, totals[1:]))
    return table


def left_out_table(record: Mapping[str, Any], task: str | None = None) -> Table:
    """What each filter left out, of instances and of wordings, by the manifest's record."""
    counts: dict[tuple[str, str], collections.Counter] = {}
    for name, content in _mapping(record.get("tasks")).items():
        if task in (None, name):
            for of, field in (("instances", "left_out"), ("wordings", "wordings_left_out")):
                for reason, count in _mapping(_mapping(content).get(field)).items():
                    if isinstance(count, int) and count > 0:
                        counts.setdefault((of, reason), collections.Counter())[name] += count
    table = Table(title="Left out", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("what")
    table.add_column("why", overflow="fold")
    table.add_column("how many", justify="right")
    if task is None:
        table.add_column("most of them in", overflow="fold")
    for (of, reason), by_task in sorted(counts.items(), key=lambda item: -item[1].total()):
        most = [f"{name} {count:,}" for name, count in by_task.most_common(2)]
        cells = [of, reason, f"{by_task.total():,}", ", ".join(most)]
        table.add_row(*(Text(printable(cell)) for cell in cells[: len(table.columns)]))
    return table


def _mapping(value: Any) -> Mapping[str, Any]:
    """Of a record, which may be a stranger's: nothing where it is no object."""
    return value if isinstance(value, Mapping) else {}
