"""The tables of an evaluation on the terminal. docs/results.md names the fields they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coin_jax.robustness.results import ALL, AVERAGE
from coin_jax.robustness.significance import LEVEL

MISSING = "–"
_RATIOS = ("sensitivity", "consistency")
_STATISTICS = {
    "mean": "mean",
    "worst": "worst",
    "std": "std",
    "drop_rate": "drop\nrate",
    "sensitivity": "sensi-\ntivity",
    "consistency": "consis-\ntency",
    "invalid": "invalid",
    "majority": "major-\nity",
}

Row = Mapping[str, Any]


def print_report(results: Mapping[str, Any], console: Console) -> None:
    """All tables, the seeds of a group averaged. Parts that are absent are left out."""
    suite = results["suite"]
    for note in suite.get("notes") or ():
        console.print(Text(f"! {note}", style="bold yellow"))
    for table in _tables(results, console.width):
        # A table's own title would be folded to the width of the table.
        title, table.title = table.title, None
        console.print(title, table)


def pooled(rows: Iterable[Row], keys: Sequence[str], name_of: Callable[[str], str]) -> list[dict]:
    """Rows alike in `keys` and in name_of(run), averaged; `run` becomes that name.

    Numbers are averaged where they are not null (None where all are), the rest is the first row's.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((name_of(row["run"]), *(row[key] for key in keys)), []).append(row)
    averaged = []
    for (name, *_), members in groups.items():
        row = {field: _mean([member.get(field) for member in members]) for field in members[0]}
        averaged.append(row | {key: members[0][key] for key in keys} | {"run": name})
    return averaged


def _mean(values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    if not known or not all(isinstance(value, int | float) for value in known):
        return values[0]
    return float(np.mean(known))


def group_names(results: Mapping[str, Any]) -> dict[str, str]:
    """{run: the group whose seeds it is one of}, in the order of the runs."""
    return {run["name"]: run["group"] for run in results["runs"]}


def conditions(results: Mapping[str, Any]) -> list[str]:
    """In the suite's order, then those of attacks, last the one that means all of them."""
    names = [*results["suite"]["conditions"], *(cell["condition"] for cell in results["cells"])]
    return sorted(dict.fromkeys(names), key=ALL.__eq__)


def condition_label(average: Row, suite: Row) -> str:
    """The condition of an average, and over how many tasks where it has prompts for some alone."""
    tasks = int(average.get("tasks") or len(suite["tasks"]))
    few = tasks < len(suite["tasks"])
    return average["condition"] + f" ({tasks} task{'s' * (tasks > 1)})" * few


def verdict(comparison: Row, instances: Mapping[str, int]) -> str:
    """What a comparison says, in words; `instances` counts a task's items."""
    if not comparison["resolvable"]:
        everything = sum(instances.values())
        items = comparison.get("items") or instances.get(comparison["task"], everything)
        smallest = comparison["smallest"]
        limit = "" if smallest is None else f" resolve {percent(smallest)} points"
        return f"too few items to tell ({items} items{limit})"
    if comparison["p_holm"] is None or comparison["p_holm"] > LEVEL:
        return "no difference shown"
    return f"{comparison['a' if comparison['difference'] > 0 else 'b']} is better"


def percent(share: float | None, signed: bool = False) -> str:
    """A share in 0..1 as percent with one decimal; a dash for None."""
    if share is None or not np.isfinite(share):
        return MISSING
    return f"{100 * share:+.1f}" if signed else f"{100 * share:.1f}"


def p_value(p: float | None) -> str:
    """Three decimals; what is smaller says so."""
    return MISSING if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _tables(results: Mapping[str, Any], width: int) -> Iterator[Table]:
    suite, groups = results["suite"], group_names(results)
    averages = pooled(results["averages"], ("condition", "scoring"), groups.__getitem__)
    cells = pooled(results["cells"], ("task", "condition", "scoring"), groups.__getitem__)
    order, names = conditions(results), list(dict.fromkeys(groups.values()))
    for scoring in results["scoring"]:
        rows = {(r["condition"], r["run"]): r for r in averages if r["scoring"] == scoring}
        yield _averages_table(rows, order, names, suite, f"by {scoring}", width)
        means = {
            (c["task"], c["condition"], c["run"]): c["mean"]
            for c in cells
            if c["scoring"] == scoring
        }
        yield from _task_tables(means, order, names, suite, f"by {scoring}", width)
        yield from _comparison_tables(results, scoring, width)
    if results.get("attacks"):
        table = _table("Attacks: mean accuracy before and after, %", width)
        _columns(table, ["condition", "run"], ["before", "after", "change", "queries"])
        for row in pooled(results["attacks"], ("condition",), groups.__getitem__):
            change = row["accuracy"] - row["clean_accuracy"]
            shares = percent(row["clean_accuracy"]), percent(row["accuracy"]), percent(change, True)
            table.add_row(*_texts(row["condition"], row["run"], *shares, f"{row['queries']:.0f}"))
        yield table
    if results.get("gaps"):
        table = _table("Cosines: paraphrases and hard negatives", width)
        _columns(table, ["pooling", "run"], ["paraphrases", "negatives", "gap"])
        for row in pooled(results["gaps"], ("pooling",), groups.__getitem__):
            cosines = (_ratio(row[name]) for name in ("positive", "negative", "gap"))
            table.add_row(*_texts(row["pooling"], row["run"], *cosines))
        yield table


def _averages_table(rows, order, names, suite, how: str, width: int) -> Table:
    majority = float(np.mean(list(suite["majority"].values())))
    table = _table(
        f"Accuracy {how} over wordings, %, averaged over {len(suite['tasks'])} tasks", width
    )
    _columns(table, ["condition", "run"], _STATISTICS.values())
    for condition in order:
        present = [name for name in names if (condition, name) in rows]
        for number, name in enumerate(present):
            row = {"majority": majority} | dict(rows[condition, name])
            values = (
                _ratio(row.get(s)) if s in _RATIOS else percent(row.get(s)) for s in _STATISTICS
            )
            label = condition_label(row, suite)
            table.add_row(*_texts("" if number else label, name, *values))
    return table


def _task_tables(means, order, names, suite, how: str, width: int) -> Iterator[Table]:
    """Conditions and runs down, tasks across, in as many tables as the width asks for."""
    room = width - 2 - min(max(map(len, order)), 20) - min(max(map(len, names)), 20)
    parts: list[list[str]] = [[]]
    for task in suite["tasks"]:
        if parts[-1] and sum(max(len(name), 5) + 1 for name in [*parts[-1], task]) > room:
            parts.append([])
        parts[-1].append(task)
    for number, part in enumerate(parts):
        title = f"Mean accuracy {how} by task, %" + (f" ({number + 1})" if number else "")
        table = _table(title, width)
        _columns(table, ["condition", "run"], part)
        majority = (percent(suite["majority"].get(task)) for task in part)
        table.add_row(*_texts("majority", "", *majority), style="dim", end_section=True)
        for condition in order:
            for place, name in enumerate(names):
                values = (percent(means.get((task, condition, name))) for task in part)
                table.add_row(*_texts("" if place else condition, name, *values))
        yield table


def _comparison_tables(results: Mapping[str, Any], scoring: str, width: int) -> Iterator[Table]:
    rows = [row for row in results.get("comparisons") or () if row["scoring"] == scoring]
    for a, b in dict.fromkeys((row["a"], row["b"]) for row in rows):
        table = _table(f"{a} minus {b} by {scoring}, points, with 95% interval", width)
        _columns(table, ["condition"], ["points", "interval", "p Holm"])
        table.add_column("what it says", ratio=1)
        pair = [row for row in rows if (row["a"], row["b"]) == (a, b)]
        for task in sorted(dict.fromkeys(row["task"] for row in pair), key=AVERAGE.__ne__):
            table.add_row(Text(task if task != AVERAGE else "average over tasks"), style="dim")
            rows = [row for row in pair if row["task"] == task]
            silent = [row for row in rows if not row["resolvable"] and task != AVERAGE]
            for row in rows:
                if len(silent) > 1 and row in silent:
                    continue
                interval = f"{percent(row['low'], True)} to {percent(row['high'], True)}"
                words = verdict(row, results["suite"]["instances"])
                numbers = percent(row["difference"], True), interval, p_value(row["p_holm"])
                style = "bold" if words.endswith("better") else ""
                table.add_row(*_texts(f"  {row['condition']}", *numbers, words), style=style)
            if len(silent) > 1:
                words = verdict(max(silent, key=_smallest), results["suite"]["instances"])
                others = f"  {len(silent)} {'others' if len(silent) < len(rows) else 'conditions'}"
                table.add_row(*_texts(others, "", "", "", words))
        yield table


def _smallest(comparison: Row) -> float:
    return comparison["smallest"] or 0.0


def _table(title: str, width: int) -> Table:
    """Two blanks between columns, one where the terminal is narrow."""
    return Table(
        title=Text(title, style="bold"),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, int(width >= 100)),
        collapse_padding=True,
    )


def _columns(table: Table, words: Iterable[str], numbers: Iterable[str]) -> None:
    for word in words:
        table.add_column(Text(word), overflow="fold")
    for number in numbers:
        table.add_column(Text(number), justify="right", no_wrap=True)


def _texts(*values: str) -> Iterator[Text]:
    """Text, not markup: names and prompts may hold brackets."""
    return (Text(value) for value in values)


def _ratio(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"
