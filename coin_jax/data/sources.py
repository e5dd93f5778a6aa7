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
        yield _attempt(_task_row, where, record)


def read_pair_rows(files: Iterable[pathlib.Path]) -> Iterator[PairRow | DataError]:
    """Rows of CSV, JSONL or Parquet files with the columns `original_instruction`,
    `paraphrased_instruction`, `targets`, and `task` or `task_name`; other columns are ignored."""
    readers = {
        ".csv": _read_csv,
        ".jsonl": lambda file: _read_jsonl([file]),
        ".json": lambda file: _read_jsonl([file]),
        ".parquet": _read_parquet,
    }
    for file in files:
        if file.suffix.lower() not in readers:
            raise DataError(f"{file}: ready pairs are read from {', '.join(readers)} files")
        for where, record in readers[file.suffix.lower()](file):
            yield _attempt(_pair_row, where, record)


def read_text(files: Iterable[pathlib.Path]) -> Iterator[str | DataError]:
    """The lines of .txt and .txt.gz files that are not blank: a paragraph each."""
    for where, line in _read_lines(files):
        if isinstance(line, DataError):
            yield line
        elif line.strip():
            yield _attempt(lambda _, text: text, where, line)


Record = Mapping[str, Any] | DataError


def _attempt(make: Callable[[str, Any], Any], where: str, record: Record | str) -> Any:
    if isinstance(record, DataError):
        return record
    try:
        return make(where, record)
    except DataError as error:
        return error


def _task_row(where: str, record: Mapping[str, Any]) -> TaskRow:
    inputs = record.get("inputs")
    if not isinstance(inputs, dict) or not inputs:
        raise DataError(f"{where}: `inputs` must map field names to texts, and is {inputs!r}")
    label = record.get("label")
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    return TaskRow(
        _text(where, "task", record.get("task")),
        {name: _text(where, f"inputs.{name}", value) for name, value in inputs.items()},
        _text(where, "label", label),
        where,
    )


def _pair_row(where: str, record: Mapping[str, Any]) -> PairRow:
    if None in record:  # csv.DictReader's name for cells without a column
        raise DataError(f"{where}: more cells than columns; is a comma not quoted?")
    task_column = next((name for name in TASK_COLUMNS if name in record), None)
    missing = [name for name in PAIR_COLUMNS if name not in record]
    if task_column is None:
        missing.append(" or ".join(TASK_COLUMNS))
    if missing:
        raise DataError(
            f"{where}: no column {', '.join(missing)}; the columns are {', '.join(record)}"
        )
    texts = (_text(where, name, record[name]) for name in (task_column, *PAIR_COLUMNS))
    return PairRow(*texts, where)


def _text(where: str, name: str, value: Any) -> str:
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
                    try:
                        yield where, line.decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")
                    except UnicodeDecodeError as error:
                        reason = f"{where}: not valid UTF-8 at byte {error.start + 1} of the line"
                        yield where, DataError(reason)
        except (OSError, EOFError) as error:
            raise DataError(f"{file}: cannot be read after line {number}: {error}") from None


def _read_jsonl(files: Iterable[pathlib.Path]) -> Iterator[tuple[str, Record]]:
    for where, line in _read_lines(files):
        if isinstance(line, DataError):
            yield where, line
        elif line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield where, DataError(f"{where}: not JSON: {error}")
                continue
            if not isinstance(record, dict):
                record = DataError(f"{where}: a row must be a JSON object, and is {record!r:.80}")
            yield where, record


def _read_csv(file: pathlib.Path) -> Iterator[tuple[str, Record]]:
    # Bytes that are not UTF-8 pass as surrogates, so that the row that holds them can be named.
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        rows = csv.DictReader(stream, strict=True)  # strict: a quote left open is an error
        while True:
            where = f"{file}:{max(2, rows.line_num + 1)}"  # the first line names the columns
            try:
                yield where, next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield where, DataError(f"{where}: not CSV: {error}")


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
