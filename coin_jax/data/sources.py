"""Reading rows: task rows (JSONL), ready pairs (CSV, JSONL, Parquet) and plain text.

Readers yield a record or the `DataError` that says where a row stands and what is wrong with it;
`Rows` decides whether an error ends the run or is counted.
"""

from __future__ import annotations

import csv
import glob
import gzip
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from coin_jax.untrusted import (
    LONGEST_LINE,
    MOST_BAD_ROWS,
    Expansion,
    UntrustedError,
    is_name,
    parse_json,
    printable,
    read_line,
    shown,
)

TASK_COLUMNS = ("task", "task_name")
PAIR_COLUMNS = ("original_instruction", "paraphrased_instruction", "targets")


class DataError(ValueError):
    """Data that cannot be used: names the file and row, and what is wrong there.

    Data may come from strangers, so what the message repeats of it cannot steer a terminal.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class TaskRow(NamedTuple):
    """One instance of a task, as a task file has it."""

    task: str
    inputs: dict[str, str]
    label: str
    where: str


class PairRow(NamedTuple):
    """One ready pair: an instance in two wordings, and the answer."""

    task: str
    original: str
    paraphrased: str
    target: str
    where: str


def expand_files(patterns: Sequence[str], field: str) -> list[pathlib.Path]:
    """Files that the names and glob patterns mean, each once, in order.

    Raises: DataError naming the config field and the pattern that matches nothing.
    """
    if not patterns:
        raise DataError(f"{field} is empty: name the files or a glob pattern for them")
    files: dict[pathlib.Path, None] = {}
    for pattern in patterns:
        # A name that exists is meant as it stands, even with brackets in it.
        try:
            exists = pathlib.Path(pattern).is_file()
            found = [pattern] if exists else sorted(glob.glob(pattern, recursive=True))
            found = [name for name in found if pathlib.Path(name).is_file()]
        except (OSError, ValueError, re.error):  # too long, a zero byte, half a letter
            found = []
        if not found:
            raise DataError(f"{field}: {shown(pattern, 1000)} matches no file")
        files.update(dict.fromkeys(map(pathlib.Path, found)))
    return list(files)


def collect(
    rows: Iterable[Any], bad_rows: Literal["error", "skip"]
) -> tuple[list[Any], list[DataError]]:
    """(usable rows, errors of the others); with "error" the first one is raised."""
    good, bad = [], []
    for row in rows:
        if not isinstance(row, DataError):
            good.append(row)
        elif bad_rows == "error":
            raise row
        else:
            bad.append(row)
            if len(bad) > MOST_BAD_ROWS:
                raise DataError(f"more than {MOST_BAD_ROWS:,} unreadable rows; the first: {bad[0]}")
    return good, bad


def read_task_rows(files: Iterable[pathlib.Path]) -> Iterator[TaskRow | DataError]:
    """Rows {"task", "inputs": {field: text}, "label"} of JSONL files."""
    for where, record in _read_jsonl(files):
        yield attempt(task_row, where, record)


def read_pair_rows(files: Iterable[pathlib.Path]) -> Iterator[PairRow | DataError]:
    """Rows of CSV, JSONL or Parquet files with the columns `original_instruction`,
    `paraphrased_instruction`, `targets`, and `task` or `task_name`; other columns are ignored."""
    readers = {
        ".csv": read_csv,
        ".jsonl": lambda file: _read_jsonl([file]),
        ".json": lambda file: _read_jsonl([file]),
        ".parquet": _read_parquet,
    }
    for file in files:
        if file.suffix.lower() not in readers:
            raise DataError(f"{file}: ready pairs are read from {', '.join(readers)} files")
        for where, record in readers[file.suffix.lower()](file):
            yield attempt(pair_row, where, record)


def read_text(files: Iterable[pathlib.Path]) -> Iterator[str | DataError]:
    """The lines of .txt and .txt.gz files that are not blank: a paragraph each."""
    for where, line in _read_lines(files):
        if isinstance(line, DataError):
            yield line
        elif line.strip():
            yield attempt(lambda _, text: text, where, line)


Record = Mapping[str, Any] | DataError


def attempt(make: Callable[[str, Any], Any], where: str, record: Record | str) -> Any:
    """What `make` makes of a record, or the DataError that it raises or that the record is."""
    if isinstance(record, DataError):
        return record
    try:
        return make(where, record)
    except DataError as error:
        return error.with_traceback(None)  # which would keep the row, and kilobytes, for each


def task_row(where: str, record: Mapping[str, Any]) -> TaskRow:
    """A row {"task", "inputs": {field: text}, "label"}.

    Raises: DataError naming the place and the field, as `pair_row` does.
    """
    inputs = record.get("inputs")
    if not isinstance(inputs, dict) or not inputs:
        raise DataError(f"{where}: `inputs` must map field names to texts, and is {shown(inputs)}")
    for name in inputs:
        checked_name(where, "inputs", name)
    label = record.get("label")
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    return TaskRow(
        checked_name(where, "task", record.get("task")),
        {name: checked_text(where, f"inputs.{name}", value) for name, value in inputs.items()},
        checked_text(where, "label", label),
        where,
    )


def pair_row(where: str, record: Mapping[str, Any]) -> PairRow:
    """A row with the columns of ready pairs."""
    task_column = next((name for name in TASK_COLUMNS if name in record), None)
    missing = [name for name in PAIR_COLUMNS if name not in record]
    if task_column is None:
        missing.append(" or ".join(TASK_COLUMNS))
    if missing:
        raise DataError(
            f"{where}: no column {', '.join(missing)}; the columns are {', '.join(record)}"
        )
    texts = (checked_text(where, name, record[name]) for name in PAIR_COLUMNS)
    return PairRow(checked_name(where, task_column, record[task_column]), *texts, where)


def checked_text(where: str, name: str, value: Any) -> str:
    """The value, where it is text that is not blank.

    Raises: DataError naming the place and the field.
    """
    if not isinstance(value, str):
        reason = "is missing" if value is None else f"must be text, and is {shown(value)}"
        raise DataError(f"{where}: `{name}` {reason}")
    if not value.strip():
        raise DataError(f"{where}: `{name}` is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # bytes kept as surrogates, or an escape like "\ud800"
        raise DataError(
            f"{where}: `{name}` is not valid UTF-8 at character {error.start + 1}"
        ) from None
    return value


def checked_name(where: str, name: str, value: Any) -> str:
    """The value, where it is text that can name something: it will stand in tables and errors."""
    text = checked_text(where, name, value)
    if not is_name(text):
        raise DataError(
            f"{where}: `{name}` is {shown(text)}, which is no name: too long, or with characters "
            "that break lines or steer a terminal"
        )
    return text


def _read_lines(files: Iterable[pathlib.Path]) -> Iterator[tuple[str, str | DataError]]:
    """(place, line without its end) of text files, which may be gzipped."""
    for file in files:
        for where, line in _bounded_lines(file):
            yield where, line if isinstance(line, DataError) else decode_line(where, line)


def _bounded_lines(
    file: pathlib.Path, **opening: Any
) -> Iterator[tuple[str, bytes | str | DataError]]:
    """(place, line) of a file, which may be gzipped; bytes, or text where `opening` says so.

    Raises: DataError where nothing more of the file can be read.
    """
    is_packed = file.suffix.lower() == ".gz"
    number = 0
    try:
        expansion = Expansion(file) if is_packed else None
        with (gzip.open if is_packed else open)(file, **opening or {"mode": "rb"}) as stream:
            while True:
                line, length = read_line(stream)
                if not length:
                    return
                number += 1
                if expansion is not None:
                    expansion.add(length)
                where = f"{file}:{number}"
                if length > LONGEST_LINE:
                    line = DataError(
                        f"{where}: a line of length {length:,}; at most {LONGEST_LINE:,} is read"
                    )
                yield where, line
    except (OSError, EOFError, zlib.error, UntrustedError) as error:
        raise DataError(f"{file}: cannot be read after line {number}: {error}") from None


def decode_line(where: str, line: bytes) -> str | DataError:
    """A line of text without its end."""
    try:
        return line.decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return DataError(f"{where}: not valid UTF-8 at byte {error.start + 1} of the line")


def json_row(where: str, line: str | DataError) -> Record:
    """The JSON object that a line holds."""
    if isinstance(line, DataError):
        return line
    try:
        record = parse_json(line)
    except UntrustedError as error:
        return DataError(f"{where}: {error}")
    if not isinstance(record, dict):
        return DataError(f"{where}: a row must be a JSON object, and is {shown(record)}")
    return record


def _read_jsonl(files: Iterable[pathlib.Path]) -> Iterator[tuple[str, Record]]:
    for where, line in _read_lines(files):
        if isinstance(line, DataError) or line.strip():
            yield where, json_row(where, line)


def read_csv(file: pathlib.Path, delimiter: str = ",") -> Iterator[tuple[str, Record]]:
    """(place, row) of a CSV or TSV file, which may be gzipped; its first line names the columns.

    Cells that are missing are None.
    """
    # Bytes that are not UTF-8 pass as surrogates, so that the row that holds them can be named.
    lines = _bounded_lines(
        file, mode="rt", encoding="utf-8-sig", errors="surrogateescape", newline=""
    )
    # strict: a quote left open is an error
    rows = csv.DictReader(map(_csv_line, lines), delimiter=delimiter, strict=True)
    while True:
        where = f"{file}:{max(2, rows.line_num + 1)}"  # the first line names the columns
        try:
            row = next(rows)
            if len(set(rows.fieldnames)) < len(rows.fieldnames):
                raise DataError(f"{file}:1: a column stands there twice: {shown(rows.fieldnames)}")
        except StopIteration:
            return
        except csv.Error as error:
            row = DataError(f"{where}: not CSV: {error}")
        else:
            if None in row:  # csv.DictReader's name for cells without a column
                reason = "more cells than columns; is a comma not quoted?"
                row = DataError(f"{where}: {reason}")
        yield where, row


def _csv_line(line: tuple[str, str | DataError]) -> str:
    if isinstance(line[1], DataError):
        raise csv.Error(str(line[1])) from line[1]  # of one row only, as all that csv finds
    return line[1]


PARQUET_ROWS = 256
"""Rows of Parquet held at a time: one dictionary entry may stand in all of them."""


def _read_parquet(file: pathlib.Path) -> Iterator[tuple[str, Record]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        expansion = Expansion(file)
        with pyarrow.parquet.ParquetFile(file) as parquet:
            fields = [field for field in parquet.schema_arrow if field.name in _WANTED]
            if len({field.name for field in fields}) < len(fields):
                raise UntrustedError("a column stands there twice")
            for field in fields:
                is_packed = pyarrow.types.is_dictionary(field.type)
                kind = field.type.value_type if is_packed else field.type
                if str(kind) not in ("string", "large_string", "string_view", "null"):
                    raise UntrustedError(f"the column {field.name} is {field.type}, not text")
            names = [field.name for field in fields]
            for batch in parquet.iter_batches(PARQUET_ROWS, columns=names):
                batch.validate(full=True)  # offsets, UTF-8
                for record in batch.to_pylist():
                    number += 1
                    expansion.add(sum(len(text) for text in record.values() if text))
                    yield f"{file}, row {number}", record
    except UntrustedError as error:
        raise DataError(f"{file}: cannot be read after row {number}: {error}") from None
    # A name of a column that is not UTF-8 is an error of Python's.
    except (OSError, MemoryError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise DataError(f"{file}: not Parquet: {_first_line(error)}") from None


_WANTED = {*TASK_COLUMNS, *PAIR_COLUMNS}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
