"""How building a contrastive set scales: rows per second and memory at growing numbers of rows.

Task files of made-up sentences, about 150 bytes a row, four tasks of four wordings, are built into
a set by a process of its own each, with the default filters and, for comparison, without the
search for near-duplicates, which takes most of the time.

    python -m benchmarks.build_set --rows 10000 1000000
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pathlib
import tempfile
import time

import numpy as np
import rich.box
import rich.console
import rich.table

from coin_jax.curation.build import build
from coin_jax.curation.config import FilterConfig, SetConfig, SourceConfig

TASKS = 4
ANSWERS = ("low", "middle", "high")
WORDS = 20_000
SENTENCE = 18
"""Words of a row's text."""
CHUNK = 100_000


def write_rows(folder: pathlib.Path, rows: int) -> None:
    """rows.jsonl and templates.json."""
    random = np.random.default_rng(0)
    words = np.array([f"{'bcdfghklmnprstvz'[i % 16]}a{i:x}" for i in range(WORDS)])
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as stream:
        for start in range(0, rows, CHUNK):
            count = min(CHUNK, rows - start)
            # Words are as frequent as in a language: rank r in proportion to 1 / r.
            ranks = np.exp(random.random((count, SENTENCE)) * np.log(WORDS)).astype(int)
            labels = random.integers(len(ANSWERS), size=count)
            for place, (text, label) in enumerate(zip(words[ranks], labels, strict=True)):
                row = {
                    "task": f"task{(start + place) % TASKS}",
                    "inputs": {"text": " ".join(text)},
                    "label": ANSWERS[label],
                }
                stream.write(json.dumps(row) + "\n")
    wordings = ("{text}\nIs it low, middle or high?", "Rate this: {text}\n{options_}")
    wordings += ("How high is it?\n{text}\n{options_}", "{options_}\nWhich one fits? {text}")
    templates = [{"input": wording, "target": "{answer}"} for wording in wordings]
    content = {f"task{number}": templates for number in range(TASKS)}
    (folder / "templates.json").write_text(json.dumps(content), encoding="utf-8")


def measure(folder: pathlib.Path, near_duplicate: float) -> dict[str, float]:
    """Builds the set; seconds and MiB. For a process of its own, whose peak counts."""
    source = SourceConfig(
        files=(str(folder / "rows.jsonl"),), template_files=(str(folder / "templates.json"),)
    )
    config = SetConfig(sources=(source,), filters=FilterConfig(near_duplicate=near_duplicate))
    began, used = time.perf_counter(), time.process_time()
    manifest = build(config, folder / "set", overwrite=True)
    return {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - used,
        "peak": peak_kilobytes() / 1024,
        "rows": sum(sum(split.rows_of_task) for split in manifest.splits.values()),
        "bytes": sum(shard.bytes for split in manifest.splits.values() for shard in split.shards),
    }


def peak_kilobytes() -> int:
    """Of this process alone; `ru_maxrss` would count what its parent had when it was forked."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--near-duplicate", type=float, nargs="+", default=[0.9, 0.0])
    arguments = parser.parse_args()
    console = rich.console.Console()
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, title="Building a contrastive set")
    for name in ("rows", "dedup", "written", "rows/s", "CPU s", "MB on disk", "peak MiB"):
        table.add_column(name, justify="right", no_wrap=True)
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            write_rows(folder, rows)
            for threshold in arguments.near_duplicate:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    found = pool.apply(measure, (folder, threshold))
                table.add_row(
                    f"{rows:,}",
                    f"{threshold:g}",
                    f"{found['rows']:,}",
                    f"{rows / found['seconds']:,.0f}",
                    f"{found['cpu']:.1f}",
                    f"{found['bytes'] / 1e6:,.1f}",
                    f"{found['peak']:,.0f}",
                )
    console.print(table)


if __name__ == "__main__":
    main()
