"""Writes a contrastive set: Parquet shards, a dataset card, and last the manifest.

All is written into a folder beside the output, `NAME.partial-…`, which takes the output's name
once it is whole: a partly written set is never read, and an older set of the name stays until then.

Hard negatives are row numbers, known only when the rows are: they are put into the shards in a
second pass, a row group at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet

from coin_jax.curation.card import dataset_card
from coin_jax.data.mapped_rows import arrow_schema
from coin_jax.data.pairs import content_hash
from coin_jax.data.set_format import (
    COLUMNS,
    FORMAT,
    MANIFEST,
    SPLITS,
    VERSION,
    InstructionTask,
    Manifest,
    Shard,
    Split,
    manifest_json,
    read_manifest,
    set_hash,
)
from coin_jax.data.sources import DataError

ROWS_PER_GROUP = 4096
"""Rows of a row group, the unit that is held in memory."""
CARD = "README.md"

Choose = Callable[[Sequence[pathlib.Path]], Iterable[np.ndarray]]
"""Shards of a split -> the negatives of its rows in their order, in blocks of any length.

A block is int64 [rows, K]: row numbers in the split, best first; -1 where there is none.
"""


class Row(NamedTuple):
    """One instance, as a set keeps it."""

    inputs: Mapping[str, str]
    """By field; an instance need not have every field of its task."""
    target: str
    negatives: Sequence[int] = ()
    """Row numbers in the same split, where they are known before the rows are written."""


class SetWriter:
    """Streams the rows of a set into shards; the same rows make the same bytes.

    To be used in a `with`, which clears up what a failed run has written.

    Args:
      output: folder of the set to be.
      overwrite: replaces a set that is there; it is lost only once its successor is whole.

    Raises: DataError where `output` holds something else than a set, or a set without `overwrite`.
    """

    def __init__(
        self,
        output: pathlib.Path,
        tasks: Sequence[InstructionTask],
        rows_per_shard: int,
        overwrite: bool = False,
    ):
        self._output = pathlib.Path(output).resolve()
        self._tasks = tuple(tasks)
        self._overwrite = overwrite
        self._is_whole = False
        self.check(self._output, overwrite)
        beside, name = self._output.parent, self._output.name
        try:
            beside.mkdir(parents=True, exist_ok=True)
            self.folder = pathlib.Path(tempfile.mkdtemp(prefix=f"{name}.partial-", dir=beside))
        except OSError as error:
            raise DataError(f"{beside}: cannot be written: {error.strerror}") from None
        """Where the set grows; what else lies there goes with it."""
        self.folder.chmod(0o755)
        self._splits = {
            name: _SplitWriter(self.folder, name, self._tasks, rows_per_shard) for name in SPLITS
        }

    def __enter__(self) -> SetWriter:
        return self

    def __exit__(self, *_) -> None:
        for split in self._splits.values():
            split.close()
        if not self._is_whole:
            shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, split: str, task_number: int, row: Row) -> None:
        """Adds a row; the tasks of a split come in their order.

        Raises: DataError for a row that does not fit its task.
        """
        self._splits[split].write(task_number, row)

    def add_negatives(self, split: str, choose: Choose) -> None:
        """Gives the rows of a split their hard negatives; none can be written to it afterwards."""
        self._splits[split].add_negatives(choose)

    def finish(self, record: Mapping[str, Any]) -> Manifest:
        """Writes card and manifest, and gives the set its name.

        record: how it was made, JSON (`set_format.Manifest.record`).

        Raises: DataError where there is no row to train on or the tasks contradict themselves; and
        where the name cannot be taken: then the set stays where it has grown, which is named.
        """
        splits = {name: split.finish() for name, split in self._splits.items()}
        if not splits["train"].shards:
            raise DataError(f"{self._output}: no row to train on is left; nothing was written")
        manifest = Manifest(self._tasks, splits, set_hash(self._tasks, splits), dict(record))
        card = dataset_card(manifest, self._output.name)
        (self.folder / CARD).write_text(card, encoding="utf-8")
        (self.folder / MANIFEST).write_text(manifest_json(manifest), encoding="utf-8")
        manifest = read_manifest(self.folder)  # nothing takes a set's place that cannot be read
        self._is_whole = True
        try:
            self.check(self._output, self._overwrite)
            self._take_place()
        except (DataError, OSError) as error:
            raise DataError(f"{error}. The set is whole and stands in {self.folder}") from None
        return manifest

    @staticmethod
    def check(output: pathlib.Path, overwrite: bool) -> None:
        """Raises: DataError where a set must not take the place of what is there."""
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            return
        if not (output / MANIFEST).is_file():
            raise DataError(f"{output}: is there and is no contrastive set; choose another")
        if not overwrite:
            raise DataError(
                f"{output}: a contrastive set is there already; --overwrite replaces it"
            )

    def _take_place(self) -> None:
        if not (self._output / MANIFEST).exists():
            os.rename(self.folder, self._output)  # an empty folder gives way
            return
        # Two renames, so that one of the two sets is whole under some name at any time.
        name = self.folder.name.replace(".partial-", ".replaced-")
        replaced = self._output.with_name(name)
        os.rename(self._output, replaced)
        try:
            os.rename(self.folder, self._output)
        except OSError:
            os.rename(replaced, self._output)
            raise
        shutil.rmtree(replaced, ignore_errors=True)


class _SplitWriter:
    """The shards of one split, one after the other."""

    def __init__(
        self,
        folder: pathlib.Path,
        split: str,
        tasks: Sequence[InstructionTask],
        rows_per_shard: int,
    ):
        self._folder, self._split, self._tasks = folder, split, tasks
        self._rows_per_shard = rows_per_shard
        metadata = {"format": FORMAT, "version": str(VERSION), "split": split}
        self._schema = arrow_schema(metadata)
        self._answers = [{answer: i for i, answer in enumerate(task.answers)} for task in tasks]
        self._buffer: dict[str, list] = {name: [] for name in COLUMNS}
        self._shard: pyarrow.parquet.ParquetWriter | None = None
        self._rows_in_shard = 0
        self._last_task = 0
        self._is_complete = False
        self._shards: list[pathlib.Path] = []
        self.rows_of_task = [0] * len(tasks)

    def write(self, number: int, row: Row) -> None:
        if self._is_complete:
            raise ValueError("no row can be written once the negatives are chosen")
        if number < self._last_task:
            raise ValueError(f"rows of task {number} after those of task {self._last_task}")
        task = self._tasks[number]
        inputs = [row.inputs.get(field) for field in task.fields]
        texts = [text for text in inputs if text is not None]
        if len(texts) < len(row.inputs):
            unknown = min(row.inputs.keys() - set(task.fields))
            raise DataError(
                f"task {task.name!r} has no field {unknown!r}; its fields are "
                f"{', '.join(task.fields)}"
            )
        answer = self._answers[number].get(row.target, -1)
        if answer < 0 and task.answers:
            raise DataError(
                f"task {task.name!r}: {row.target!r} is none of its answers "
                f"{', '.join(map(repr, task.answers))}"
            )
        self._last_task = number
        self.rows_of_task[number] += 1
        buffer = self._buffer
        buffer["task"].append(number)
        buffer["inputs"].append(inputs)
        buffer["target"].append(row.target)
        buffer["answer"].append(answer)
        buffer["content"].append(content_hash(texts, row.target))
        buffer["negatives"].append(row.negatives)
        rows = len(buffer["task"])
        if rows == min(ROWS_PER_GROUP, self._rows_per_shard - self._rows_in_shard):
            self._flush()

    def _flush(self) -> None:
        """Writes the buffer as a row group, and ends the shard if that fills it."""
        rows = len(self._buffer["task"])
        if rows:
            if self._shard is None:
                self._shards.append(self._folder / f"{self._split}-{len(self._shards):05d}.parquet")
                self._shard = _parquet_writer(self._shards[-1], self._schema)
            self._shard.write_table(pyarrow.table(self._buffer, schema=self._schema))
            for column in self._buffer.values():
                column.clear()
            self._rows_in_shard += rows
        if self._rows_in_shard == self._rows_per_shard:
            self.close()

    def close(self) -> None:
        """Ends the shard that is being written."""
        if self._shard is not None:
            self._shard.close()
        self._shard, self._rows_in_shard = None, 0

    def _complete(self) -> None:
        self._is_complete = True
        self._flush()
        self.close()

    def add_negatives(self, choose: Choose) -> None:
        self._complete()
        chosen = _Stream(choose(self._shards))
        column = self._schema.get_field_index("negatives")
        for path in self._shards:
            rewritten = path.with_suffix(".negatives")
            with (
                pyarrow.parquet.ParquetFile(path) as shard,
                contextlib.closing(_parquet_writer(rewritten, self._schema)) as writer,
            ):
                for group in range(shard.num_row_groups):
                    table = shard.read_row_group(group)
                    negatives = _as_lists(chosen.take(table.num_rows))
                    writer.write_table(
                        table.set_column(column, self._schema.field(column), negatives)
                    )
            os.replace(rewritten, path)
        chosen.expect_end()

    def finish(self) -> Split:
        self._complete()
        return Split(tuple(map(_described, self._shards)), tuple(self.rows_of_task))


def _parquet_writer(path: pathlib.Path, schema: pyarrow.Schema) -> pyarrow.parquet.ParquetWriter:
    return pyarrow.parquet.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=["task", "target", "answer"],  # inputs hardly repeat
        write_statistics=["task"],
    )


def _described(path: pathlib.Path) -> Shard:
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    rows = pyarrow.parquet.read_metadata(path).num_rows
    return Shard(path.name, rows, path.stat().st_size, digest)


class _Stream:
    """Blocks of negatives, taken in portions of other lengths."""

    def __init__(self, blocks: Iterable[np.ndarray]):
        self._blocks: Iterator[np.ndarray] = iter(blocks)
        self._rest = np.empty((0, 0), np.int64)

    def take(self, rows: int) -> list[np.ndarray]:
        """Blocks of `rows` rows together."""
        portion = []
        while rows:
            if not len(self._rest):
                self._rest = next(self._blocks, None)
                if self._rest is None:
                    raise ValueError("negatives were chosen for fewer rows than there are")
            portion.append(self._rest[:rows])
            self._rest = self._rest[rows:]
            rows -= len(portion[-1])
        return portion

    def expect_end(self) -> None:
        if len(self._rest) or any(len(block) for block in self._blocks):
            raise ValueError("negatives were chosen for more rows than there are")


def _as_lists(blocks: Sequence[np.ndarray]) -> pyarrow.ChunkedArray:
    """Lists of the numbers that are not -1."""
    lists = []
    for block in blocks:
        is_there = block >= 0
        offsets = np.concatenate([[0], np.cumsum(is_there.sum(axis=1))]).astype(np.int32)
        values = pyarrow.array(block[is_there], pyarrow.int64())
        lists.append(pyarrow.ListArray.from_arrays(offsets, values))
    return pyarrow.chunked_array(lists)
