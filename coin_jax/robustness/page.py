"""The page of an evaluation: one HTML file that holds its data, its style and its script.

Nothing is loaded from elsewhere and the page's content security policy forbids it. All texts reach
the page as JSON and become text nodes there, so that prompts are shown and never run.
"""

from __future__ import annotations

import difflib
import json
import math
import pathlib
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from coin_jax.robustness.report import (
    Row,
    condition_label,
    conditions,
    group_names,
    pooled,
    verdict,
)

WORST = 5
"""Prompts shown for each run and task."""

_PLACE = ("task", "condition", "index", "scoring")
_WORD = re.compile(r"\{\w+\}|\w+|\s+|[^\w\s]")


def write_page(results: Mapping[str, Any], path: str | pathlib.Path) -> pathlib.Path:
    """Writes the page and returns its path. Parts of `results` that are absent are left out."""
    template = resources.files(__package__).joinpath("page.html").read_text("utf-8")
    before, after = template.split("__RESULTS__")
    path = pathlib.Path(path)
    path.write_text(before + embedded(page_data(results)) + after, "utf-8")
    return path


def embedded(data: Any) -> str:
    """JSON that cannot end the script element it stands in: without <, > or &."""
    text = json.dumps(_finite(data), separators=(",", ":"), allow_nan=False)
    return text.translate({ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"})


def page_data(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows.

    `views` holds cells, averages, prompts, gaps and worst prompts twice: of each run, and of each
    group of seeds, averaged. Prompts name their text by its place in `texts`.
    """
    groups = group_names(results)
    texts: dict[str, int] = {}
    views = {"groups": _view(results, groups, texts)}
    if len(set(groups.values())) < len(groups):
        views["runs"] = _view(results, {run: run for run in groups}, texts)
    instances = results["suite"]["instances"]
    return {
        "suite": results["suite"] | {"conditions": conditions(results)},
        "created": results.get("created", ""),
        "scoring": results["scoring"],
        "runs": results["runs"],
        "views": views,
        "comparisons": [
            dict(row) | {"verdict": verdict(row, instances)}
            for row in results.get("comparisons") or ()
        ],
        "map": [part for part in results.get("map") or () if part["points"]],
        "attacks": _with_changes(results.get("attacks") or (), results),
        "texts": list(texts),
    }


def changes(origin: str | None, text: str) -> list[tuple[str, str]]:
    """How a text came from its origin, word by word: ("same" | "gone" | "new", part).

    A changed word is shown whole, once gone and once new, which reads better than its letters;
    changed words side by side are one change.
    """
    if origin is None:
        return [("same", text)]
    old, new = _WORD.findall(origin), _WORD.findall(text)
    parts: list[tuple[str, str]] = []
    gone = fresh = ""
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for operation, i, j, k, m in [*matcher.get_opcodes(), ("equal", 0, 0, 0, 0)]:
        before, after = "".join(old[i:j]), "".join(new[k:m])
        if operation != "equal" or ((gone or fresh) and after.isspace() and m < len(new)):
            gone, fresh = gone + before, fresh + after
            continue
        parts += [("gone", gone)] * bool(gone) + [("new", fresh)] * bool(fresh)
        parts += [("same", after)] * bool(after)
        gone = fresh = ""
    return parts


def _view(
    results: Mapping[str, Any], name_of: Mapping[str, str], texts: dict[str, int]
) -> dict[str, Any]:
    # A prompt that an attack found for one run is not the same as another run's of that number.
    prompts = pooled(results["prompts"], (*_PLACE, "text"), name_of.__getitem__)
    return {
        "names": list(dict.fromkeys(name_of.values())),
        "cells": pooled(results["cells"], ("task", "condition", "scoring"), name_of.__getitem__),
        "averages": [
            row | {"label": condition_label(row, results["suite"])}
            for row in pooled(results["averages"], ("condition", "scoring"), name_of.__getitem__)
        ],
        "gaps": pooled(results.get("gaps") or (), ("pooling",), name_of.__getitem__),
        "prompts": [
            {field: prompt[field] for field in ("run", *_PLACE, "accuracy", "invalid")}
            | {"text": texts.setdefault(prompt["text"], len(texts))}
            for prompt in prompts
        ],
        "worst": _worst(results, prompts, name_of),
    }


def _worst(
    results: Mapping[str, Any], prompts: Iterable[Row], name_of: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Prompts that lose most against their task's clean mean, with the answers they turned.

    The runner gives such answers for the worst prompt of each condition; the others stay out.
    """

    def place_of(row: Row) -> tuple:
        return row["run"], *(row[key] for key in _PLACE)

    texts = {place_of(prompt): prompt["text"] for prompt in results["prompts"]}
    flips: dict[tuple, list[Row]] = {}
    for flip in results.get("flips") or ():
        named = place_of(dict(flip) | {"run": name_of[flip["run"]]})
        flips.setdefault((*named, texts[place_of(flip)]), []).append(flip)
    clean: dict[tuple, list[float]] = {}
    for row in prompts:
        if row["condition"] == results["suite"]["clean"]:
            clean.setdefault((row["run"], row["task"], row["scoring"]), []).append(row["accuracy"])
    found: dict[tuple, list[dict]] = {}
    for row in prompts:
        known = clean.get((row["run"], row["task"], row["scoring"]))
        if known and (turned := flips.get((*place_of(row), row["text"]))):
            lost = sum(known) / len(known) - row["accuracy"]
            found.setdefault((row["run"], row["task"], row["scoring"]), []).append(
                dict(row) | {"lost": lost, "flips": turned}
            )
    shown = [
        row for rows in found.values() for row in sorted(rows, key=lambda row: -row["lost"])[:WORST]
    ]
    return _with_changes(shown, results)


def _with_changes(rows: Iterable[Row], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows with `changes` instead of `text`; suite["origins"] may name the condition of origins."""
    suite = results["suite"]
    origins = suite.get("origins") or {}
    texts = {
        (prompt["task"], prompt["condition"], prompt["index"]): prompt["text"]
        for prompt in results["prompts"]
        if prompt["condition"] in {suite["clean"], *origins.values()}
    }
    changed = []
    for row in rows:
        base = origins.get(row["condition"], suite["clean"])
        origin = texts.get((row["task"], base, row.get("origin")))
        fields = {key: value for key, value in row.items() if key != "text"}
        changed.append(fields | {"changes": changes(origin, row["text"])})
    return changed


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON lacks, rounded: the page shows three digits."""
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value
