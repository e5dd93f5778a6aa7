"""Prints pairs of a set side by side, their differences marked, and what the filters left out."""

from __future__ import annotations

import difflib
import pathlib
import re
from collections.abc import Iterator

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coin_jax.curation.summary import left_out_table
from coin_jax.data.contrastive_set import load_set
from coin_jax.data.draws import draw_order, mix, stable_hash
from coin_jax.data.order import shuffled
from coin_jax.data.pairs import PairSource
from coin_jax.data.set_format import Manifest, read_manifest
from coin_jax.data.sources import DataError
from coin_jax.data.templates import Prompt

MOST_WORDS = 160
"""Of a prompt that are shown; of longer ones the middle is left out."""

_WORD = re.compile(r"\s*(?:\w+(?:['’]\w+)*|[^\w\s])")
_ROLES = ("anchor", "positive", "hard negative", "hard negative, reworded")


def inspect(
    folder: pathlib.Path, count: int, console: Console, task: str | None = None, seed: int = 0
) -> None:
    """Shows `count` training pairs with their hard negatives, of one task or in turn of all.

    Which ones, the seed decides. What a prompt does not share with its neighbour is marked: the
    positive and the anchor with each other, a hard negative with the prompt above it. On a console
    without colours the marks are «».

    Raises: DataError for a folder without a set, and a task that it does not have.
    """
    manifest = read_manifest(folder)
    source = load_set(folder, seed)
    _check_task(task, manifest, source)
    rows = ", ".join(
        f"{sum(split.rows_of_task):,} {name}" for name, split in manifest.splits.items()
    )
    wordings = sum(len(each.wordings) for each in manifest.tasks)
    console.print(
        Text(f"{folder}", style="bold"),
        Text(f"rows: {rows}; tasks: {len(manifest.tasks):,}; wordings: {wordings:,}"),
        Text(f"content hash {manifest.content_hash}", style="dim"),
        sep="\n",
    )
    left_out = left_out_table(manifest.record, task)
    if left_out.row_count:
        console.print("", left_out)
    for number, (name, index) in enumerate(_choose(source, count, task, seed), start=1):
        title = Text(f"{number}. {name}, set {index - source.tasks[name].start:,}", style="bold")
        console.print("", title, _pair(source.get(index, 0).sequences, console), sep="\n")


def _check_task(task: str | None, manifest: Manifest, source: PairSource) -> None:
    names = [each.name for each in manifest.tasks]
    if task is None or source.tasks.get(task):
        return
    if task in names:
        raise DataError(f"task {task!r} has no training pair")
    near = difflib.get_close_matches(task, names, 3, 0.4) or names[:10]
    raise DataError(
        f"the set has no task {task!r}; it has {len(names)}, among them {', '.join(near)}"
    )


def _choose(
    source: PairSource, count: int, task: str | None, seed: int
) -> Iterator[tuple[str, int]]:
    """(task, index) of `count` different sets; of all tasks in turn, in a drawn order."""
    names = [name for name, sets in source.tasks.items() if sets]
    order = draw_order(len(names), seed, "inspected tasks")
    names = [task] if task is not None else [names[number] for number in order]
    shown = 0
    for turn in range(max((len(source.tasks[name]) for name in names), default=0)):
        for name in names:
            sets = source.tasks[name]
            if shown == count:
                return
            if turn < len(sets):
                key = mix(seed, stable_hash("inspected", name))
                yield name, sets[int(shuffled(np.array([turn]), len(sets), key)[1][0])]
                shown += 1


def _pair(prompts: tuple[Prompt, ...], console: Console) -> Table:
    """Two columns: anchor and positive, and below them the hard negative under both wordings."""
    has_colours = console.color_system is not None and not console.no_color
    table = Table(box=box.ROUNDED, expand=True, show_lines=True, show_header=False)
    for _ in range(2):
        table.add_column(ratio=1, overflow="fold")
    texts = [_visible(prompt.text) for prompt in prompts]
    cells = []
    for place, (role, prompt) in enumerate(zip(_ROLES, prompts, strict=True)):
        neighbour = texts[(1, 0, 0, 1)[place]]
        style = "green" if place < 2 else "red"
        cell = Text(f"{role}\n", style="")
        cell.stylize("bold cyan", 0, len(role))
        cell.append_text(_marked(texts[place], neighbour, style, has_colours))
        cell.append("\n→ ", style="dim").append(_visible(prompt.answer), style="bold")
        cells.append(cell)
    table.add_row(*cells[:2])
    table.add_row(*cells[2:])
    return table


def _marked(text: str, other: str, style: str, has_colours: bool) -> Text:
    """The text, marked where its words are not those of the other."""
    words, others = _WORD.findall(_shortened(text)), _WORD.findall(_shortened(other))
    matcher = difflib.SequenceMatcher(
        None, [word.strip() for word in words], [word.strip() for word in others], autojunk=False
    )
    marked = Text()
    for kind, start, stop, *_ in matcher.get_opcodes():
        run = "".join(words[start:stop])
        if kind == "equal":
            marked.append(run)
        elif run:
            bare = run.lstrip()
            marked.append(run[: len(run) - len(bare)])
            marked.append(bare if has_colours else f"«{bare}»", style=f"bold {style}")
    return marked


def _shortened(text: str) -> str:
    words = list(re.finditer(r"\S+", text))
    if len(words) <= MOST_WORDS:
        return text
    half = MOST_WORDS // 2
    left_out = f" … [{len(words) - 2 * half:,} words] … "
    return text[: words[half - 1].end()] + left_out + text[words[-half].start() :]


def _visible(text: str) -> str:
    """The text without characters that would command the terminal."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else " " if letter == "\t" else "\ufffd"
        for letter in text.strip()
    )
