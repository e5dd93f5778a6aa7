"""Reading rows: task rows (JSONL), ready pairs (CSV, JSONL, Parquet) and plain text.

Readers yield a record or the `DataError` that says where a row stands and what is wrong with it;
`Rows` decides whether an error ends the run or is counted.
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

TASK_COLUMNS = ("task", "task_name")
PAIR_COLUMNS = ("original_instruction", "paraphrased_instruction", "targets")


class DataError(ValueError):
    """Data that cannot be used: names the file and row, and what is wrong there."""


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
        exists = pathlib.Path(pattern).is_file()
        found = [pattern] if exists else sorted(glob.glob(pattern, recursive=True))
        found = [name for name in found if pathlib.Path(name).is_file()]
        if not found:
            raise DataError(f"{field}: {pattern!r} matches no file")
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
        return error


def task_row(where: str, record: Mapping[str, Any]) -> TaskRow:
    """A row {"task", "inputs": {field: text}, "label"}.

    Raises: DataError naming the place and the field, as `pair_row` does.
    """
    inputs = record.get("inputs")
    if not isinstance(inputs, dict) or not inputs:
        raise DataError(f"{where}: `inputs` must map field names to texts, and is {inputs!r}")
    label = record.get("label")
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    return TaskRow(
        checked_text(where, "task", record.get("task")),
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
    texts = (checked_text(where, name, record[name]) for name in (task_column, *PAIR_COLUMNS))
    return PairRow(*texts, where)


def checked_text(where: str, name: str, value: Any) -> str:
    """The value, where it is text that is not blank.

    Raises: DataError naming the place and the field.
    """
    if not isinstance(value, str):
        reason = "is missing" if value is None else f"must be text, and is {value!r}"
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


def _read_lines(files: Iterable[pathlib.Path]) -> Iterator[tuple[str, str | DataError]]:
    """(place, line without its end) of text files, which may be gzipped."""
    for file in files:
        opener = gzip.open if file.suffix == ".gz" else open
        number = 0
        try:
            with opener(file, "rb") as stream:
                for number, line in enumerate(stream, start=1):
                    where = f"{file}:{number}"
                    yield where, decode_line(where, line)
        except (OSError, EOFError) as error:
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
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return DataError(f"{where}: not JSON: {error}")
    if not isinstance(record, dict):
        return DataError(f"{where}: a row must be a JSON object, and is {record!r:.80}")
    return record


def _read_jsonl(files: Iterable[pathlib.Path]) -> Iterator[tuple[str, Record]]:
    for where, line in _read_lines(files):
        if isinstance(line, DataError) or line.strip():
            yield where, json_row(where, line)


def read_csv(file: pathlib.Path, delimiter: str = ",") -> Iterator[tuple[str, Record]]:
    """(place, row) of a CSV or TSV file, which may be gzipped; its first line names the columns.

    Cells that are missing are None.
    """
    opener = gzip.open if file.suffix == ".gz" else open
    # Bytes that are not UTF-8 pass as surrogates, so that the row that holds them can be named.
    with opener(file, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        # strict: a quote left open is an error
        rows = csv.DictReader(stream, delimiter=delimiter, strict=True)
        while True:
            where = f"{file}:{max(2, rows.line_num + 1)}"  # the first line names the columns
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                row = DataError(f"{where}: not CSV: {error}")
            else:
                if None in row:  # csv.DictReader's name for cells without a column
                    reason = "more cells than columns; is a comma not quoted?"
                    row = DataError(f"{where}: {reason}")
            yield where, row


def _read_parquet(file: pathlib.Path) -> Iterator[tuple[str, Record]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            wanted = {*TASK_COLUMNS, *PAIR_COLUMNS}
            columns = [name for name in parquet.schema_arrow.names if name in wanted]
            rows = (
                record
                for batch in parquet.iter_batches(columns=columns)
                for record in batch.to_pylist()
            )
            for number, record in enumerate(rows, start=1):
                yield f"{file}, row {number}", record
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file}: not Parquet: {error}") from None
