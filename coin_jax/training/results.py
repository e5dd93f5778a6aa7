"""What a run leaves for people: the final table, the predictions, a picture of its curves."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from coin_jax.training.logging import read_metrics
from coin_jax.training.storage import write_whole


def save_results(directory: pathlib.Path, accuracy: Any) -> dict[str, pathlib.Path]:
    """Writes evaluation.json (summary, rows, every prediction). Returns what was written.

    accuracy: a robustness.scoring.WordingAccuracy, or None where nothing was evaluated.
    """
    if accuracy is None:
        return {}
    path = directory / "evaluation.json"
    content = {
        "summary": accuracy.metrics(),
        "tasks": accuracy.rows(),
        "predictions": accuracy.predictions,
    }
    write_whole(path, json.dumps(content))
    return {"predictions": path}


def print_results(
    console: Console,
    accuracy: Any,
    metrics_path: pathlib.Path,
    paths: Mapping[str, pathlib.Path],
    notes: Mapping[str, str],
    seconds: float,
) -> None:
    """The closing tables: accuracy over wordings, then speed and where everything lies."""
    if accuracy is not None:
        console.print(accuracy_table(accuracy))
    facts = Table.grid(padding=(0, 2))
    facts.add_column()
    facts.add_column(overflow="fold")  # a path that is cut is of no use
    if speeds := [r for r in read_metrics(metrics_path) if "train/tokens_per_second" in r]:
        # The median: the first record includes compilation.
        middle = sorted(speeds, key=lambda r: r["train/tokens_per_second"])[len(speeds) // 2]
        facts.add_row(
            "speed",
            f"{middle['train/tokens_per_second']:,.0f} tokens/s, "
            f"{middle['train/model_flops_per_second'] / 1e9:,.1f} GFLOP/s, "
            f"utilization {middle['train/utilization']:.0%}",
        )
    facts.add_row("time", f"{seconds:.0f} s in all")
    for name, note in notes.items():
        facts.add_row(name, Text(note))
    for name, path in paths.items():
        facts.add_row(name, Text(str(path)))
    console.print(facts)


def accuracy_table(accuracy: Any) -> Table:
    """Per task and on average: mean, worst and standard deviation over wordings, in percent."""
    table = Table(title="Accuracy over wordings of the same instructions, %", title_justify="left")
    table.add_column("task", overflow="fold")
    table.add_column("majority", justify="right", style="dim")
    for group in ("seen", "unseen"):
        for statistic in ("mean", "worst", "std"):
            table.add_column(f"{group}\n{statistic}", justify="right")

    def cells(values: Mapping[str, float] | None) -> list[str]:
        if values is None:
            return ["–"] * 3
        return [f"{100 * values[name]:.1f}" for name in ("mean", "worst", "std")]

    by_task: dict[str, dict[str, Any]] = {}
    for row in accuracy.rows():
        by_task.setdefault(row["task"], {})[row["group"]] = row
    for task, groups in by_task.items():
        majority = next(iter(groups.values()))["majority"]
        table.add_row(
            Text(task),
            f"{100 * majority:.1f}",
            *cells(groups.get("seen")),
            *cells(groups.get("unseen")),
            end_section=task == list(by_task)[-1],
        )
    summary = accuracy.metrics("all")

    def average(group: str) -> dict[str, float] | None:
        names = ("mean", "worst", "std", "majority")
        found = {n: summary[f"all/{group}/{n}"] for n in names if f"all/{group}/{n}" in summary}
        return found or None

    seen, unseen = average("seen"), average("unseen")
    majority = (seen or unseen or {}).get("majority", float("nan"))
    table.add_row("average", f"{100 * majority:.1f}", *cells(seen), *cells(unseen), style="bold")
    return table


def plot_curves(metrics_path: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    """A picture of the loss parts, the cosines and the accuracies over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read_metrics(metrics_path)
    panels = {
        "loss parts": {
            "generation": "train/generation_loss",
            "contrastive": "train/contrastive_loss",
        },
        "cosine of pooled states": {
            "same instance, other wording": "train/cosine_positive",
            "hard negative": "train/cosine_negative",
        },
        "accuracy over wordings": {
            "seen, mean": "evaluation/seen/mean",
            "seen, worst": "evaluation/seen/worst",
            "unseen, mean": "evaluation/unseen/mean",
            "unseen, worst": "evaluation/unseen/worst",
        },
    }
    present = {
        title: lines
        for title, lines in panels.items()
        if any(name in record for record in records for name in lines.values())
    }
    figure, axes = pyplot.subplots(
        1, max(len(present), 1), figsize=(4.6 * max(len(present), 1), 3.4), squeeze=False
    )
    for axis, (title, lines) in zip(axes[0], present.items(), strict=False):
        for label, name in lines.items():
            points = [(record["step"], record[name]) for record in records if name in record]
            if points:
                axis.plot(*zip(*points, strict=True), label=label, marker="o" * (len(points) < 20))
        axis.set_title(title)
        if title == "loss parts":
            axis.set_yscale("log")  # the parts differ by orders of magnitude
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
