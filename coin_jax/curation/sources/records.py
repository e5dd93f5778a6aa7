"""Rows of files by number, in memory that hardly grows with them.

JSON lines are read where they lie. Whatever cannot be entered in the middle (gzip, CSV, a JSON
array) is put away once as JSON lines in a temporary file, and Parquet as Arrow, in the folder that
TMPDIR names; both go when the process ends. What stays in memory is 4 or 8 bytes a row.
"""

from __future__ import annotations

import array
import bisect
import contextlib
import io
import itertools
import json
import os
import pathlib
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, Protocol

import numpy as np

from coin_jax.data.sources import DataError, Record, decode_line, json_row, read_csv
from coin_jax.untrusted import LONGEST_LINE, Expansion, UntrustedError, decode_json, shown, unpack

SUFFIXES = (
    *(f".{kind}{packed}" for kind in ("jsonl", "json", "csv", "tsv") for packed in ("", ".gz")),
    ".parquet",
)
"""Of the files that Records reads; a .json file holds an array of objects, or an object a line."""

_CHUNK = 1 << 22
_ARROW_ROWS = 4096
"""Of a batch: each may hold the same long text."""
_MOST_OPEN = 200
"""Files that are kept open to be read; of more, each is opened anew for every row."""
_OPEN, _COMMA, _CLOSE, _EMPTY = (
    re.compile(pattern) for pattern in (r"\s*\[\s*", r"\s*,\s*", r"\s*\]\s*", r"\s*\[\s*\]\s*")
)
"""Of a JSON array."""

PlacedRow = tuple[str, Record]
"""A row and its place: file and line, or file and row."""
Columns = tuple[Any, ...] | DataError


class Records:
    """The rows of files, in the order of the files, by number.

    A row is a dict as its file has it, or the DataError that says what is wrong with it. Blank
    lines are no rows. Several threads may read.

    Raises: DataError for a file that cannot be read at all.
    """

    def __init__(self, files: Sequence[pathlib.Path] = (), rows: Iterable[PlacedRow] | None = None):
        """rows: rows that come from elsewhere, behind those of the files; they are spooled."""
        keep_open = len(files) <= _MOST_OPEN
        self._parts = [_open(pathlib.Path(file), keep_open) for file in files]
        if rows is not None:
            self._parts.append(_Spooled(rows))
        self._starts = list(itertools.accumulate(map(len, self._parts), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def record(self, index: int) -> PlacedRow:
        number = bisect.bisect_right(self._starts, index) - 1
        return self._parts[number].load(index - self._starts[number])

    def scan(self, *columns: str) -> Iterator[Columns]:
        """These columns of every row in order, None where a row lacks one.

        The fast way through all rows; of Parquet nothing else is read.
        """
        return itertools.chain.from_iterable(part.scan(columns) for part in self._parts)


class _Part(Protocol):
    """The rows of one file."""

    def __len__(self) -> int: ...
    def load(self, row: int) -> PlacedRow: ...
    def scan(self, columns: Sequence[str]) -> Iterator[Columns]: ...


def _open(file: pathlib.Path, keep_open: bool) -> _Part:
    name = file.name.lower()
    if not name.endswith(SUFFIXES):
        raise DataError(f"{file}: rows are read from {', '.join(SUFFIXES)} files")
    kind = name.removesuffix(".gz").rpartition(".")[2]
    try:
        if kind == "parquet":
            return _Arrow(file)
        if kind in ("csv", "tsv"):
            return _Spooled(read_csv(file, "\t" if kind == "tsv" else ","))
        if kind == "json" and _is_array(file):
            return _Spooled(_read_array(file))
        return _Lines(file, keep_open)
    except (OSError, EOFError, zlib.error, UntrustedError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from None


class _Stored:
    """Rows that are lines of a file, found by where each begins."""

    _bounds: np.ndarray
    """[rows + 1] unsigned: where each row begins, and where the last one ends."""

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def load(self, row: int) -> PlacedRow:
        start, stop = map(int, self._bounds[row : row + 2])
        with self._opened() as stream:
            return self._row(row, os.pread(stream.fileno(), stop - start, start))

    def scan(self, columns: Sequence[str]) -> Iterator[Columns]:
        with self._opened() as stream:
            row = 0
            while row < len(self):
                start = int(self._bounds[row])
                after = int(np.searchsorted(self._bounds, start + _CHUNK, "right")) - 1
                after = max(row + 1, after)
                bounds = (self._bounds[row : after + 1].astype(np.int64) - start).tolist()
                content = os.pread(stream.fileno(), bounds[-1], start)
                for begin, end in itertools.pairwise(bounds):
                    record = self._row(row, content[begin:end])[1]
                    row += 1
                    if not isinstance(record, DataError):
                        record = tuple(map(record.get, columns))
                    yield record

    def _opened(self) -> contextlib.AbstractContextManager[IO[bytes]]:
        raise NotImplementedError

    def _row(self, row: int, content: bytes) -> PlacedRow:
        raise NotImplementedError


class _Lines(_Stored):
    """JSON lines, in the file itself or, of a gzipped one, in a temporary copy."""

    def __init__(self, file: pathlib.Path, keep_open: bool):
        self._file = file
        self._stream = None
        if file.suffix.lower() == ".gz":
            self._stream = tempfile.TemporaryFile()  # noqa: SIM115 (lives with it, as below)
            with unpack(file) as stream:
                shutil.copyfileobj(stream, self._stream, _CHUNK)
            self._stream.seek(0)
        elif keep_open:
            self._stream = open(file, "rb")  # noqa: SIM115
        with self._opened() as stream:
            self._bounds, self._lines_before_blank = _find_lines(stream)

    def _opened(self) -> contextlib.AbstractContextManager[IO[bytes]]:
        return contextlib.nullcontext(self._stream) if self._stream else open(self._file, "rb")

    def _row(self, row: int, content: bytes) -> PlacedRow:
        blank_lines = np.searchsorted(self._lines_before_blank, row, "right")
        where = f"{self._file}:{row + 1 + blank_lines}"
        return where, json_row(where, decode_line(where, content))


class _Spooled(_Stored):
    """Rows put away as JSON lines [place, row], or [place, what is wrong with the row]."""

    def __init__(self, rows: Iterable[PlacedRow]):
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives with it)
        bounds = array.array("Q", [0])
        for where, record in rows:
            content = str(record) if isinstance(record, DataError) else record
            # ASCII: an escape brings half a surrogate back as it was, for a person to be told.
            self._file.write(json.dumps([where, content], separators=(",", ":")).encode("ascii"))
            bounds.append(self._file.tell())
        self._file.flush()
        self._bounds = _compact(np.frombuffer(bounds, np.uint64))

    def _opened(self) -> contextlib.AbstractContextManager[IO[bytes]]:
        return contextlib.nullcontext(self._file)

    def _row(self, row: int, content: bytes) -> PlacedRow:
        where, record = json.loads(content)
        return where, DataError(record) if isinstance(record, str) else record


class _Arrow:
    """The rows of a Parquet file, mapped from an uncompressed copy."""

    def __init__(self, file: pathlib.Path):
        import pyarrow
        import pyarrow.parquet

        self._file = file
        try:
            with tempfile.NamedTemporaryFile(suffix=".arrow") as copy:  # stays while it is mapped
                with (
                    pyarrow.parquet.ParquetFile(file, pre_buffer=False) as parquet,
                    pyarrow.ipc.new_stream(copy.name, parquet.schema_arrow) as stream,
                ):
                    # Without threads: they hold several row groups in memory at a time.
                    expansion = Expansion(file)
                    for batch in parquet.iter_batches(_ARROW_ROWS, use_threads=False):
                        expansion.add(batch.nbytes, len(batch))
                        batch.validate(full=True)  # what is read from the map is not looked at
                        stream.write_batch(batch)
                self._batches = list(pyarrow.ipc.open_stream(pyarrow.memory_map(copy.name)))
        except (UnicodeDecodeError, pyarrow.ArrowException) as error:
            raise DataError(f"{file}: not Parquet: {error}") from None
        except (MemoryError, UntrustedError) as error:
            raise DataError(f"{file}: cannot be read: {error}") from None
        pyarrow.default_memory_pool().release_unused()
        sizes = (batch.num_rows for batch in self._batches)
        self._starts = list(itertools.accumulate(sizes, initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def load(self, row: int) -> PlacedRow:
        number = bisect.bisect_right(self._starts, row) - 1
        batch = self._batches[number].slice(row - self._starts[number], 1)
        return f"{self._file}, row {row + 1}", batch.to_pylist()[0]

    def scan(self, columns: Sequence[str]) -> Iterator[Columns]:
        for batch in self._batches:
            for start in range(0, batch.num_rows, 4096):
                rows = batch.slice(start, 4096)
                missing = [None] * rows.num_rows
                names = rows.schema.names
                yield from zip(
                    *(rows[name].to_pylist() if name in names else missing for name in columns),
                    strict=True,
                )


def _find_lines(stream: IO[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """(where the lines begin that are not blank, and the end; for each blank line how many others
    stand above it)."""
    starts, blanks = [], []
    offset = count = 0
    rest = b""
    while True:
        chunk = stream.read(_CHUNK)
        if len(rest) > LONGEST_LINE:
            raise UntrustedError(f"a line of more than {LONGEST_LINE:,} bytes")
        content = np.frombuffer(rest + chunk, np.uint8)
        if not len(content):
            break
        begins = np.concatenate([[0], np.flatnonzero(content == ord("\n")) + 1])
        if chunk or begins[-1] == len(content):
            whole = int(begins[-1])  # the last line goes on in the next chunk, or is none
            begins = begins[:-1]
        else:
            whole = len(content)
        if len(begins):
            # A line without a byte above that of a blank is blank.
            is_text = np.maximum.reduceat(content[:whole], begins) > ord(" ")
            blanks.append(count + np.cumsum(is_text)[~is_text])
            starts.append(offset + begins[is_text])
            count += len(starts[-1])
        rest = content[whole:].tobytes()
        offset += whole
        if not chunk:
            break
    bounds = np.concatenate([*starts, [offset]]).astype(np.uint64)
    return _compact(bounds), np.concatenate([*blanks, []]).astype(np.int64)


def _compact(bounds: np.ndarray) -> np.ndarray:
    return bounds.astype(np.min_scalar_type(bounds[-1]))


def _is_array(file: pathlib.Path) -> bool:
    with _text(file) as stream:
        while piece := stream.read(4096):  # all of it may be one line
            if piece.strip():
                return piece.lstrip().startswith("[")
    return False


def _text(file: pathlib.Path) -> IO[str]:
    # Bytes that are not UTF-8 pass as surrogates, so that the row that holds them can be named.
    stream = unpack(file) if file.suffix.lower() == ".gz" else open(file, "rb")  # noqa: SIM115
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape")


def _read_array(file: pathlib.Path) -> Iterator[PlacedRow]:
    """The objects of a JSON array, one at a time.

    Raises: DataError where it is no JSON, since nothing behind that place can be read.
    """
    with _text(file) as stream:
        text, position = "", 0
        for number in itertools.count(1):
            where = f"{file}, row {number}"
            separator, ending = (_OPEN, _EMPTY) if number == 1 else (_COMMA, _CLOSE)
            while True:  # until all of the row has been read
                try:
                    begin = separator.match(text, position)
                    if not begin:
                        raise ValueError("the rows of an array must stand between commas")
                    record, end = decode_json(text, begin.end())
                    if end < len(text):  # a number at the end might go on
                        break
                    fault = ValueError("the array does not end")
                except (ValueError, RecursionError) as error:
                    fault = getattr(error, "msg", error)  # its position is the buffer's
                if len(text) - position > LONGEST_LINE:
                    fault = f"a row of more than {LONGEST_LINE:,} characters"
                    raise DataError(f"{where}: not JSON that is read: {fault}") from None
                more = stream.read(max(_CHUNK, len(text) - position))
                if not more:
                    if ending.fullmatch(text, position):
                        return
                    raise DataError(f"{where}: not JSON: {fault}") from None
                text, position = text[position:] + more, 0
            if not isinstance(record, dict):
                record = DataError(f"{where}: a row must be a JSON object, and is {shown(record)}")
            yield where, record
            position = end
