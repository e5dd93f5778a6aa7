"""The card that a dataset page shows: README.md, with the YAML front matter that a hub reads."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable

from coin_jax.data.set_format import Manifest

_LICENCES = {
    *("apache-2.0", "mit", "bsd-3-clause", "gpl-3.0", "odc-by", "odbl", "cc0-1.0"),
    *("cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nd-4.0"),
    *("cc-by-nc-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
}
"""Identifiers that a hub knows for data; any other licence is `other` there."""


def dataset_card(manifest: Manifest, name: str) -> str:
    """Front matter, then ten lines: what the set is, how much, how made, how to train on it."""
    tasks, record = manifest.tasks, manifest.record
    rows = {split: sum(content.rows_of_task) for split, content in manifest.splits.items()}
    wordings = [wording for task in tasks for wording in task.wordings]
    made = "".join(f", {key} {value}" for key, value in record.get("versions", {}).items())
    lines = [
        f"**{name}**: instances, and several wordings of the instruction that asks for each, to "
        f"train models that hold when an instruction is put in other words.",
        f"Made with coin_jax for Contrastive Instruction Tuning (arXiv 2402.11138): seed "
        f"{record.get('seed', 'unknown')}{made}; `manifest.json` says how, field by field.",
        f"- {rows['train']:,} rows to train on, {rows['evaluation']:,} to evaluate on.",
        f"- {len(tasks):,} tasks, {sum(bool(task.answers) for task in tasks):,} of them with a "
        f"closed set of answers.",
        f"- {len(wordings):,} wordings, {sum(one.held_out for one in wordings):,} of them kept "
        f"from training; by origin: {_counted(one.origin for one in wordings)}.",
        "- A row has its task's number, the values of the task's fields, and the answer; the "
        "wordings and the names stand in `manifest.json`.",
        "- `negatives` are row numbers of the same split: hard negatives, best first; where there "
        "are none, training draws a row of the task with another answer.",
        f"- Licences by tasks, as the sources state them: "
        f"{_counted(task.licence or 'not stated' for task in tasks)}.",
        f"- Content hash: `{manifest.content_hash}`.",
        "- To train: `python -m coin_jax.train --config configs/flan_t5.py:base --data.source set "
        "--data.files FOLDER`, where FOLDER holds this file.",
    ]
    return "\n".join([*_front_matter(manifest, name, sum(rows.values())), "", *lines, ""])


def _front_matter(manifest: Manifest, name: str, rows: int) -> list[str]:
    """YAML, its values written as JSON, which is YAML as well."""
    licences = {_licence(task.licence) for task in manifest.tasks}
    closed = {bool(task.answers) for task in manifest.tasks}
    language = manifest.record.get("language")
    fields = {
        "pretty_name": name,
        "license": sorted(licences),
        **({"language": [language]} if language else {}),
        "size_categories": [_size_category(rows)],
        "task_categories": [
            *(["text-classification"] if True in closed else []),
            *(["text-generation"] if False in closed else []),
        ],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": f"{split}-*.parquet"}
                    for split, content in manifest.splits.items()
                    if content.shards
                ],
            }
        ],
    }
    lines = (f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items())
    return ["---", *lines, "---"]


def _licence(text: str) -> str:
    if not text:
        return "unknown"
    identifier = "-".join(text.casefold().split())
    return identifier if identifier in _LICENCES else "other"


def _size_category(rows: int) -> str:
    """As hubs name them: n<1K, 1K<n<10K, …, n>1T."""
    units = [f"{unit}{scale}" for scale in "KMBT" for unit in (1, 10, 100)]
    place = max(0, len(str(rows)) - 3)
    if place == 0:
        return "n<1K"
    return f"{units[place - 1]}<n<{units[place]}" if place < len(units) else "n>1T"


def _counted(names: Iterable[str]) -> str:
    counts = collections.Counter(names).most_common()
    return ", ".join(f"{name} {count:,}" for name, count in counts)
