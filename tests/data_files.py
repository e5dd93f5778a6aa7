"""Small data files of the published forms, for the tests of the data sources."""

import csv
import json
import os
import pathlib

import pytest

REAL_DATA = pathlib.Path(
    os.environ.get("COIN_JAX_DATA", pathlib.Path(__file__).parents[1].parent / "shared" / "data")
)
"""Real task files, where they are: tasks/ and templates/, and the tokenizers beside the folder."""

WEATHER = [
    {"input": "Report: {report}\nIs it wet or dry?\n\n{options_}", "target": "{answer}"},
    {"input": "{report}\nDo you need an umbrella?\n{options_}", "target": "{answer}"},
    {"input": "What about the ground after this? {report}", "target": "{answer}"},
    {"input": "Say wet or dry.\n{report}\n{options_}", "target": "{answer}"},
    {"input": "Write a {answer} weather report.", "target": "{report}"},
]
"""Four wordings of one instruction, and one template that turns the task round."""


def real_data(*parts: str) -> pathlib.Path:
    """A path of the real data; the test is skipped where it is missing."""
    path = REAL_DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no {'/'.join(parts)} in the folder that COIN_JAX_DATA names ({REAL_DATA})")
    return path


def weather_rows(count: int, labels=("rain", "sun")) -> list[dict]:
    return [
        {
            "task": "weather",
            "inputs": {"text": f"{labels[i % len(labels)]} in town number {i}"},
            "label": labels[i % len(labels)],
        }
        for i in range(count)
    ]


def pair_rows(count: int, answers=("wet", "dry"), task: str = "weather") -> list[dict]:
    return [
        {
            "task": task,
            "original_instruction": f"Is town number {i} at the river wet or dry?",
            "paraphrased_instruction": f"Tell me: town number {i} at the river, dry or wet?",
            "targets": answers[i % len(answers)],
        }
        for i in range(count)
    ]


def write_jsonl(path: pathlib.Path, rows) -> pathlib.Path:
    """Rows as JSON lines; a row of type str or bytes is written as it is."""
    lines = (row if isinstance(row, (str, bytes)) else json.dumps(row) for row in rows)
    path.write_bytes(
        b"".join(
            line + b"\n" if isinstance(line, bytes) else f"{line}\n".encode() for line in lines
        )
    )
    return path


def write_json(path: pathlib.Path, content) -> pathlib.Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_csv(path: pathlib.Path, rows) -> pathlib.Path:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path
