"""The rows of a contrastive set, memory-mapped: random access at any size, in little memory.

Parquet is compressed and comes in row groups. So the shards of a set are turned once into one
uncompressed Arrow file a split, which is opened by a memory map from then on; what is read of it is
the operating system's to keep or to drop. The files stand in a cache folder that has the set's
content hash in its name, beside the set where that can be written, otherwise in the user's cache.

Only the shards are checked row by row, so a map is used where it was made: one that came with a
downloaded or copied set is not the file that its seal names, and is left alone.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import itertools
import os
import pathlib
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from coin_jax.data.set_format import (
    COLUMNS,
    SPLITS,
    InstructionTask,
    Manifest,
    Split,
    needed_fields,
)
from coin_jax.data.sources import PARQUET_ROWS, DataError
from coin_jax.untrusted import Expansion, read_arrays

CHUNK, CHUNK_BYTES = 16_384, 1 << 29
"""Rows and bytes of an Arrow batch at most; 32-bit offsets reach 2 GiB."""
LONGEST = 512
"""Rows that are remembered as the longest, of finished prompts and of free answers each."""
_PARTIAL = "partial-"
_ABANDONED_AFTER = 24 * 3600.0
"""Seconds; the largest sets take minutes."""
_LAYOUT = 2
"""Of the cached files; another number makes them anew."""


class Row:
    """One row; what is asked of it is read from the map."""

    __slots__ = ("_chunk", "_place")

    def __init__(self, chunk: _Chunk, place: int):
        self._chunk, self._place = chunk, place

    @property
    def answer(self) -> int:
        return self._chunk.answer[self._place]

    @property
    def content(self) -> int:
        return self._chunk.content[self._place]

    @property
    def target(self) -> str:
        return _text(self._chunk.targets, self._place)

    @property
    def negatives(self) -> list[int]:
        offsets, values = self._chunk.negatives
        return values[offsets[self._place] : offsets[self._place + 1]].tolist()

    @property
    def present(self) -> int:
        """Bit n is set where it has its task's field n."""
        chunk = self._chunk
        if chunk.valid is None:
            return -1
        start, stop = chunk.inputs[self._place], chunk.inputs[self._place + 1]
        bits = int.from_bytes(chunk.valid[start >> 3 : (stop + 7) >> 3], "little")
        return bits >> (start & 7) & ((1 << stop - start) - 1)

    def text(self, field: int) -> str:
        """Of a field, by its number; empty where the row does not have it."""
        return _text(self._chunk.texts, self._chunk.inputs[self._place] + field)


class MappedRows:
    """The rows of one split."""

    def __init__(self, path: pathlib.Path):
        facts = read_arrays(_facts_beside(path))
        if facts.pop("seal").tolist() != _seal(path):
            raise _ForeignMapError(path)
        self.facts = Facts(**facts)
        self._file = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
        self._chunks = [_Chunk(batch) for batch in self._batches()]
        lengths = [len(chunk.answer) for chunk in self._chunks]
        self._starts = list(itertools.accumulate(lengths, initial=0))

    def _batches(self) -> Iterator[pyarrow.RecordBatch]:
        return map(self._file.get_batch, range(self._file.num_record_batches))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: int) -> Row:
        number = bisect.bisect_right(self._starts, row) - 1
        return Row(self._chunks[number], row - self._starts[number])

    def answers(self, rows: range) -> np.ndarray:
        """int32 [rows]."""
        blocks = [block for _, block in self._answer_blocks(rows.start, rows.stop)]
        return np.concatenate([np.empty(0, np.int32), *blocks])

    def with_other_answer(self, rows: range, first: int, answer: int) -> Iterator[int]:
        """Those of the rows with another answer, from `first` on and round to it again."""
        for bounds in ((first, rows.stop), (rows.start, first)):
            for start, block in self._answer_blocks(*bounds):
                for place in np.flatnonzero(block != answer):
                    yield start + int(place)

    def _answer_blocks(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, answers) of the chunks that hold the rows [start, stop)."""
        for number in range(bisect.bisect_right(self._starts, start) - 1, len(self._chunks)):
            offset = self._starts[number]
            if offset >= stop:
                return
            skipped = max(0, start - offset)
            yield offset + skipped, np.asarray(self._chunks[number].answer)[skipped : stop - offset]

    def asked_by_fewer_than_two(self, rows: range, task: InstructionTask) -> np.ndarray:
        """Those of a task's rows that fewer than two training wordings can ask, int64 [n]."""
        found = [np.empty(0, np.int64)]
        for offset, batch in zip(self._starts, self._batches(), strict=False):
            start, stop = max(rows.start - offset, 0), min(rows.stop - offset, len(batch))
            if start < stop:
                inputs = batch.column("inputs").slice(start, stop - start)
                few = np.flatnonzero(_possible_wordings(inputs, task) < 2)
                found.append(few + offset + start)
        return np.concatenate(found)


class Facts(NamedTuple):
    """What is known of a split's rows from the time when they were converted, int64 each."""

    unpaired: np.ndarray
    """Rows that fewer than two training wordings can ask, ascending."""
    longest_prompts: np.ndarray
    """Rows of the LONGEST finished prompts."""
    longest_targets: np.ndarray
    """Rows of the LONGEST free answers."""


class _Chunk:
    """Views of a record batch's buffers; plain memory views index faster than numpy arrays."""

    __slots__ = ("answer", "content", "inputs", "negatives", "targets", "texts", "valid")

    def __init__(self, batch: pyarrow.RecordBatch):
        rows = len(batch)
        column = {name: batch.column(name) for name in COLUMNS}
        self.answer = _view(column["answer"].buffers()[1], "i", rows)
        self.content = _view(column["content"].buffers()[1], "i", rows)
        _, offsets, data = column["target"].buffers()
        self.targets = _view(offsets, "i", rows + 1), _view(data, "B")
        _, offsets, valid, text_offsets, data = column["inputs"].buffers()
        self.inputs = _view(offsets, "i", rows + 1)
        has_nulls = valid is not None and column["inputs"].values.null_count
        self.valid = _view(valid, "B") if has_nulls else None
        self.texts = _view(text_offsets, "i"), _view(data, "B")
        _, offsets, _, values = column["negatives"].buffers()
        self.negatives = _view(offsets, "i", rows + 1), _view(values, "q")


def _view(buffer: pyarrow.Buffer | None, kind: str, length: int | None = None) -> memoryview:
    content = memoryview(buffer or b"").cast("B")
    size = len(content) - len(content) % np.dtype(kind).itemsize
    return content[:size].cast(kind)[:length]


def _text(strings: tuple[memoryview, memoryview], place: int) -> str:
    offsets, data = strings
    return str(data[offsets[place] : offsets[place + 1]], "utf-8")


class _ForeignMapError(ValueError):
    """A map that was made elsewhere: nothing in it has been checked."""


def _seal(path: pathlib.Path) -> list[int]:
    """What is true of this file alone: no archive or download brings its number and time along."""
    status = path.stat()
    return [status.st_ino, status.st_ctime_ns]


def open_rows(manifest: Manifest, folder: pathlib.Path) -> dict[str, MappedRows]:
    """The rows of each split; the first time, the shards are verified and converted.

    Raises: DataError for a shard that is not what the manifest says, and where there is no room.
    """
    name = f"{manifest.content_hash}-{_LAYOUT}"
    user = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    places = [folder / ".mapped" / name, user / "coin_jax" / "sets" / name]
    if places[0].parent.is_symlink():  # what is written must stay in the folder
        del places[0]
    for place in tuple(places):
        if place.is_dir():
            try:
                return _open(manifest, place)
            except _ForeignMapError:
                if place != places[-1]:
                    places.remove(place)
                else:
                    shutil.rmtree(place, ignore_errors=True)
            except (
                OSError,
                ValueError,
                TypeError,
                KeyError,
                MemoryError,
                EOFError,
                zipfile.BadZipFile,
                pyarrow.ArrowException,
            ):
                shutil.rmtree(place, ignore_errors=True)  # damaged since then, and made anew
    return _open(manifest, _convert(manifest, folder, places))


def _open(manifest: Manifest, place: pathlib.Path) -> dict[str, MappedRows]:
    rows = {split: MappedRows(place / f"{split}.arrow") for split in SPLITS}
    for name, split in manifest.splits.items():
        if len(rows[name]) != sum(split.rows_of_task):
            raise ValueError(f"{place}: {len(rows[name])} rows in the map of {name}")
    return rows


def _convert(
    manifest: Manifest, folder: pathlib.Path, places: Sequence[pathlib.Path]
) -> pathlib.Path:
    """Makes the Arrow files in the first of the places that can be written; returns it.

    They grow under another name: half a file is never read, and of two processes one comes first.
    """
    partial, place = _make_folder(places)
    try:
        for name in SPLITS:
            converter = _Converter(manifest.tasks, manifest.splits[name])
            converter.convert(folder, partial / f"{name}.arrow")
        try:
            os.rename(partial, place)
        except OSError:
            if not place.is_dir():
                raise
    except OSError as error:
        raise DataError(
            f"{partial}: the set's memory map cannot be written: {error}. It needs about as much "
            "room as the set's texts"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # after the renaming, there is none
    return place


def _make_folder(places: Sequence[pathlib.Path]) -> tuple[pathlib.Path, pathlib.Path]:
    """(a new folder beside the place, the place) for the first that can be written."""
    errors = []
    for place in places:
        for abandoned in place.parent.glob(f"{_PARTIAL}*"):  # by a process that was killed
            with contextlib.suppress(OSError):
                if time.time() - abandoned.stat().st_mtime > _ABANDONED_AFTER:
                    shutil.rmtree(abandoned)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            partial = pathlib.Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=place.parent))
            partial.chmod(0o755)
        except OSError as error:
            errors.append(f"{place.parent}: {error.strerror}")
        else:
            return partial, place
    raise DataError(f"no folder for the set's memory map can be written: {'; '.join(errors)}")


def _facts_beside(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".npz")


class _Converter:
    """Turns the shards of one split into an Arrow file, and checks each row on the way."""

    def __init__(self, tasks: Sequence[InstructionTask], split: Split):
        self._tasks, self._split = tasks, split
        self._ends = np.cumsum(split.rows_of_task)
        self._field_counts = np.array([len(task.fields) for task in tasks])
        self._answer_counts = np.array([len(task.answers) for task in tasks])
        self._first_answers = np.cumsum(self._answer_counts) - self._answer_counts
        answers = [answer for task in tasks for answer in task.answers]
        self._answers = pyarrow.array(answers, pyarrow.string())
        self._unpaired = [np.empty(0, np.int64)]
        self._longest_prompts, self._longest_targets = _Longest(), _Longest()

    def convert(self, folder: pathlib.Path, path: pathlib.Path) -> None:
        row = 0
        schema = arrow_schema()
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, schema) as writer:
            for shard in self._split.shards:
                shard_path = folder / shard.file
                try:
                    with open(shard_path, "rb") as stream:
                        if hashlib.file_digest(stream, "sha256").hexdigest() != shard.sha256:
                            raise DataError(
                                f"{shard_path}: not the file that the manifest describes (its "
                                "SHA-256 differs); copy or build the set again"
                            )
                    batches = _read_shard(shard_path, schema, shard.rows)
                    for batch in batches:
                        self._check(batch, row, shard_path)
                        self._note(batch, row)
                        writer.write_batch(batch)
                        row += len(batch)
                except (MemoryError, ValueError, OSError, pyarrow.ArrowException) as error:
                    if isinstance(error, DataError):
                        raise
                    raise DataError(f"{shard_path}: cannot be read: {error}") from None
        np.savez(
            _facts_beside(path),
            seal=np.array(_seal(path)),
            unpaired=np.concatenate(self._unpaired),
            longest_prompts=self._longest_prompts.rows,
            longest_targets=self._longest_targets.rows,
        )

    def _check(self, batch: pyarrow.RecordBatch, first: int, path: pathlib.Path) -> None:
        """Raises: DataError for the first row that is not as the manifest says."""
        batch.validate(full=True)
        for name in COLUMNS:
            if batch.column(name).null_count:
                raise DataError(f"{path}: nulls in the column {name!r}")
        column = {name: batch.column(name).to_numpy() for name in ("task", "answer", "content")}
        expected = np.searchsorted(self._ends, np.arange(first, first + len(batch)), "right")
        self._refuse(column["task"] != expected, "task", batch, first, path)
        tasks, answers = column["task"], column["answer"]
        fields = pyarrow.compute.list_value_length(batch.column("inputs")).to_numpy()
        self._refuse(fields != self._field_counts[tasks], "inputs", batch, first, path)
        counts = self._answer_counts[tasks]
        known = (answers >= 0) & (answers < counts)
        self._refuse(~known & ((counts > 0) | (answers != -1)), "answer", batch, first, path)
        texts = self._answers.take(pyarrow.array(self._first_answers[tasks] + answers, mask=~known))
        same = pyarrow.compute.equal(texts, batch.column("target")).fill_null(True)
        self._refuse(~same.to_numpy(zero_copy_only=False), "target", batch, first, path)
        self._refuse(column["content"] < 0, "content", batch, first, path)
        negatives = batch.column("negatives")
        numbers = negatives.flatten().to_numpy()
        if ((numbers < 0) | (numbers >= self._ends[-1])).any():
            raise DataError(f"{path}: negatives that are no rows of the split")

    def _refuse(
        self,
        bad: np.ndarray,
        name: str,
        batch: pyarrow.RecordBatch,
        first: int,
        path: pathlib.Path,
    ) -> None:
        if bad.any():
            place = int(np.argmax(bad))
            value = batch.column(name)[place].as_py()
            raise DataError(
                f"{path}: row {first + place} of the split: {name} {value!r:.80} does not fit the "
                "manifest's tasks"
            )

    def _note(self, batch: pyarrow.RecordBatch, first: int) -> None:
        """Keeps the rows that `Facts` names."""
        tasks = batch.column("task").to_numpy()
        starts = np.flatnonzero(np.diff(tasks, prepend=-1))
        for start, stop in itertools.pairwise([*starts.tolist(), len(batch)]):
            task = self._tasks[tasks[start]]
            rows = np.arange(first + start, first + stop)
            inputs = batch.column("inputs").slice(start, stop - start)
            self._unpaired.append(rows[_possible_wordings(inputs, task) < 2])
            finished = [needed_fields(task, w)[0] for w in task.wordings if w.is_finished]
            if finished:
                lengths = pyarrow.compute.binary_length(inputs.flatten()).fill_null(0).to_numpy()
                lengths = lengths.reshape(len(rows), -1)[:, finished].max(axis=1)
                self._longest_prompts.add(rows, lengths)
            if not task.answers:
                targets = batch.column("target").slice(start, stop - start)
                self._longest_targets.add(rows, pyarrow.compute.binary_length(targets).to_numpy())


class _Longest:
    """The rows of the LONGEST greatest lengths, the longest first."""

    def __init__(self):
        self.rows, self._lengths = np.empty(0, np.int64), np.empty(0, np.int32)

    def add(self, rows: np.ndarray, lengths: np.ndarray) -> None:
        if len(self.rows) == LONGEST:
            longer = lengths > self._lengths[-1]
            rows, lengths = rows[longer], lengths[longer]
        rows, lengths = np.append(self.rows, rows), np.append(self._lengths, lengths)
        order = np.argsort(-lengths, kind="stable")[:LONGEST]
        self.rows, self._lengths = rows[order], lengths[order]


def _read_shard(
    path: pathlib.Path, schema: pyarrow.Schema, rows: int
) -> Iterator[pyarrow.RecordBatch]:
    with pyarrow.parquet.ParquetFile(path) as file:
        found = {field.name: field.type for field in file.schema_arrow}
        for field in schema:
            if found.get(field.name) != field.type:
                raise DataError(
                    f"{path}: column {field.name!r} must be {field.type}, and is "
                    f"{found.get(field.name, 'missing')}"
                )
        if file.metadata.num_rows != rows:
            raise DataError(f"{path}: {file.metadata.num_rows} rows, not the manifest's {rows}")
        expansion = Expansion(path)
        few: list[pyarrow.RecordBatch] = []
        held_rows = held_bytes = 0
        for batch in file.iter_batches(min(CHUNK, PARQUET_ROWS), columns=schema.names):
            expansion.add(batch.nbytes, len(batch))
            if few and (held_rows + len(batch) > CHUNK or held_bytes + batch.nbytes > CHUNK_BYTES):
                yield _joined(few)
                few, held_rows, held_bytes = [], 0, 0
            few.append(batch.select(schema.names).cast(schema))
            held_rows, held_bytes = held_rows + len(batch), held_bytes + batch.nbytes
        if few:
            yield _joined(few)


def _joined(batches: Sequence[pyarrow.RecordBatch]) -> pyarrow.RecordBatch:
    for batch in batches:
        batch.validate(full=True)  # offsets may point anywhere until then
    return pyarrow.concat_batches(batches)


def _possible_wordings(inputs: pyarrow.ListArray, task: InstructionTask) -> np.ndarray:
    """How many training wordings can ask each row of the task, int [rows]."""
    needs = [needed_fields(task, wording) for wording in task.wordings if not wording.held_out]
    texts = inputs.flatten()
    if not texts.null_count:
        return np.full(len(inputs), len(needs))
    there = texts.is_valid().to_numpy(zero_copy_only=False).reshape(len(inputs), -1)
    return sum((there[:, need].all(axis=1) for need in needs), np.zeros(len(inputs), int))


def arrow_schema(metadata: Mapping[str, str] | None = None) -> pyarrow.Schema:
    """That of a set's shards."""
    columns = [(name, _arrow_type(kind)) for name, kind in COLUMNS.items()]
    return pyarrow.schema(columns, metadata)


def _arrow_type(kind: str) -> pyarrow.DataType:
    if kind.startswith("list<"):
        return pyarrow.list_(_arrow_type(kind[len("list<") : -1]))
    return pyarrow.type_for_alias(kind)
