"""How a contrastive set on disk scales: start-up, memory and throughput at growing numbers of rows.

Sets of made-up rows are written straight as Parquet and a manifest, about 150 bytes a row: four
tasks with closed answers, one with free ones, four wordings each. A process of its own then loads
each set for the first time, and another one once more, draws sets of random rows and runs batches
of byte tokens through the pipeline. What grows with the rows would grow without end.

    python -m benchmarks.set_scale --rows 10000 1000000 10000000
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
import rich.box
import rich.console
import rich.table

from coin_jax.config import BatchConfig
from coin_jax.data.contrastive_set import load_set
from coin_jax.data.order import random_bits, shuffled
from coin_jax.data.pairs import TokenizedPairs
from coin_jax.data.pipeline import BatchPipeline
from coin_jax.data.set_format import (
    MANIFEST,
    InstructionTask,
    Manifest,
    Shard,
    Split,
    Wording,
    manifest_json,
    set_hash,
)
from coin_jax.data.tokenizer import ByteTokenizer

TASKS = 5
ROWS_PER_SHARD = 100_000
WORDS = [f"{first}{second}" for first in ("ra", "mo", "ki", "tes", "lu") for second in "bdnprst"]
BATCH = BatchConfig(rows=64, encoder_length=512, decoder_length=96)
HEADINGS = (
    "rows",
    "Parquet\nMB",
    "map\nMB",
    "first\nstart s",
    "its peak\nMiB",
    "later\nstart s",
    "own\n+MiB",
    "mapped\n+MiB",
    "sets/s",
    "batches/s",
    "padding",
)
CAPTION = (
    "Peak: of the first start, imports included. Own, mapped: what loading and drawing sets adds "
    "of the process's own memory, and of pages of the map that the system may drop. Batches: "
    f"{BATCH.rows} rows of {BATCH.encoder_length} byte tokens, rendered, tokenised and packed."
)


def make_set(folder: pathlib.Path, rows: int) -> int:
    """A set with so many training rows; returns the bytes of its shards."""
    wordings = ("{text} Which?\n{options_}", "Say which: {text}", "{text}", "Of {text}, which?")
    tasks = tuple(
        InstructionTask(
            f"task{number}",
            ("text",),
            tuple(
                Wording(f"task{number}/{place}", "Look. " + wording, "template")
                for place, wording in enumerate(wordings if number else wordings[1:])
            ),
            ("left", "right", "neither") if number else (),
        )
        for number in range(TASKS)
    )
    sizes = np.diff(np.arange(TASKS + 1) * rows // TASKS)
    ends = np.cumsum(sizes)
    shards = []
    for first in range(0, rows, ROWS_PER_SHARD):
        numbers = np.arange(first, min(first + ROWS_PER_SHARD, rows))
        task = np.searchsorted(ends, numbers, "right").astype(np.int32)
        path = folder / f"train-{len(shards):05d}.parquet"
        pyarrow.parquet.write_table(_table(task, first), path, row_group_size=4096)
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        shards.append(Shard(path.name, len(numbers), path.stat().st_size, digest))
    splits = {
        "train": Split(tuple(shards), tuple(sizes.tolist())),
        "evaluation": Split((), (0,) * TASKS),
    }
    manifest = Manifest(tasks, splits, set_hash(tasks, splits), {})
    (folder / MANIFEST).write_text(manifest_json(manifest))
    return sum(shard.bytes for shard in shards)


def _table(task: np.ndarray, first: int) -> pyarrow.Table:
    rows = len(task)
    words = pyarrow.array([f"{word} " for word in WORDS])
    picks = (random_bits(rows * 24, first) % len(WORDS)).reshape(24, rows)
    columns = [words.take(pyarrow.array(row.astype(np.int32))) for row in picks]
    texts = pyarrow.compute.binary_join_element_wise(*columns, "")
    answer = np.where(task == 0, -1, picks[0].astype(np.int32) % 3).astype(np.int32)
    closed = pyarrow.array(["left", "right", "neither"]).take(pyarrow.array(answer % 3))
    target = pyarrow.compute.if_else(pyarrow.array(task == 0), columns[1], closed)
    none = np.zeros(rows + 1, np.int32)
    return pyarrow.table(
        {
            "task": task,
            "inputs": pyarrow.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32), texts),
            "target": target,
            "answer": answer,
            "content": (random_bits(rows, first + 1) & 0x7FFFFFFF).astype(np.int32),
            "negatives": pyarrow.ListArray.from_arrays(none, pyarrow.array([], pyarrow.int64())),
        }
    )


def memory() -> tuple[float, float, float]:
    """MiB of this process (Linux): its own, of mapped files, and both together at their highest."""
    status = pathlib.Path("/proc/self/status").read_text()
    sizes = dict(line.split(":", 1) for line in status.splitlines())
    return tuple(int(sizes[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile", "VmHWM"))


def measure(folder: pathlib.Path, seconds: float) -> dict[str, float]:
    """What one process measures: start-up and memory, then with `seconds` the rates."""
    own, mapped, _ = memory()
    start = time.perf_counter()
    source = load_set(folder, seed=0)
    source.get(len(source) // 2, 0)
    result = {"start": time.perf_counter() - start, "peak": memory()[2]}
    if seconds:
        start, sets = time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < seconds:
            _, indices = shuffled(np.arange(sets, sets + 1024), len(source), 0)
            for index in indices.tolist():
                source.get(index, 0)
            sets += len(indices)
        result["sets"] = sets / passed
        result["own"], result["mapped"] = np.subtract(memory()[:2], (own, mapped))
        tokenized = TokenizedPairs(source, ByteTokenizer(), BATCH)
        with BatchPipeline(tokenized, BATCH, seed=0) as pipeline:
            for _ in range(BATCH.prefetch + 1):
                next(pipeline)
            start, batches = time.perf_counter(), 0
            while (passed := time.perf_counter() - start) < seconds:
                next(pipeline)
                batches += 1
            result["padding"] = pipeline.statistics()["encoder_padding"]
        result["batches"] = batches / passed
    return result


def in_a_process(folder: pathlib.Path, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.set_scale", "--measure", str(folder)]
    finished = subprocess.run(
        [*command, "--seconds", str(seconds)], check=True, capture_output=True, text=True
    )
    return json.loads(finished.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--folder", default=None, help="for the sets; empty: a temporary one")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--measure", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.seconds)))
        return

    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, caption=CAPTION)
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for rows in options.rows:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="set_scale-", dir=options.folder))
        try:
            size = make_set(folder, rows)
            first = in_a_process(folder, 0)
            later = in_a_process(folder, options.seconds)
            mapped = sum(path.stat().st_size for path in folder.rglob("*.arrow"))
        finally:
            shutil.rmtree(folder)
        table.add_row(
            f"{rows:,}",
            f"{size / 1e6:,.1f}",
            f"{mapped / 1e6:,.1f}",
            f"{first['start']:.2f}",
            f"{first['peak']:,.0f}",
            f"{later['start']:.2f}",
            f"{later['own']:.1f}",
            f"{later['mapped']:,.0f}",
            f"{later['sets']:,.0f}",
            f"{later['batches']:.1f}",
            f"{later['padding']:.1%}",
        )
    rich.console.Console(width=120).print(table)


if __name__ == "__main__":
    main()
