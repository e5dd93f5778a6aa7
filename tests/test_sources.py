"""Readers of rows: what is read, and what is said of rows that cannot be."""

import gzip

import pyarrow
import pyarrow.parquet
import pytest
from data_files import pair_rows, weather_rows, write_csv, write_jsonl

from coin_jax.data.sources import (
    DataError,
    collect,
    expand_files,
    read_pair_rows,
    read_task_rows,
    read_text,
)

GOOD = {"task": "t", "inputs": {"text": "It rains."}, "label": "yes"}


def test_task_rows_are_read_with_their_place(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", [GOOD, "", {**GOOD, "label": 3}])
    first, second = read_task_rows([file])
    assert first == ("t", {"text": "It rains."}, "yes", f"{file}:1")
    assert (second.label, second.where) == ("3", f"{file}:3")


BAD_TASK_ROWS = {
    "bad JSON": ('{"task": "t", ', "not JSON"),
    "no object": ("[1, 2]", "must be a JSON object"),
    "bad UTF-8": (b'{"task": "t\xff"}', "not valid UTF-8 at byte 12"),
    "half a surrogate": ({**GOOD, "label": "a\ud800"}, "`label` is not valid UTF-8"),
    "no task": ({"inputs": {"a": "b"}, "label": "c"}, "`task` is missing"),
    "no label": ({"task": "t", "inputs": {"a": "b"}}, "`label` is missing"),
    "no inputs": ({"task": "t", "label": "c"}, "`inputs` must map field names to texts"),
    "inputs a text": ({**GOOD, "inputs": "b"}, "`inputs` must map field names to texts"),
    "input a number": ({**GOOD, "inputs": {"a": 5}}, "`inputs.a` must be text, and is 5"),
    "input null": ({**GOOD, "inputs": {"a": None}}, "`inputs.a` is missing"),
    "label true": ({**GOOD, "label": True}, "`label` must be text, and is True"),
    "empty text": ({**GOOD, "inputs": {"a": " \n"}}, "`inputs.a` is empty"),
    "deep": ("[" * 100_000, "not JSON"),
}


@pytest.mark.parametrize(("row", "reason"), BAD_TASK_ROWS.values(), ids=BAD_TASK_ROWS)
def test_a_task_row_that_cannot_be_read_is_an_error_with_file_line_and_reason(
    tmp_path, row, reason
):
    file = write_jsonl(tmp_path / "a.jsonl", [GOOD, row, GOOD])
    with pytest.raises(DataError) as caught:
        collect(read_task_rows([file]), "error")
    assert str(caught.value).startswith(f"{file}:2: ")
    assert reason in str(caught.value)


def test_rows_that_cannot_be_read_are_skipped_and_counted_where_the_config_says_so(tmp_path):
    bad = [row for row, _ in BAD_TASK_ROWS.values()]
    file = write_jsonl(tmp_path / "a.jsonl", [GOOD, *bad, GOOD])
    rows, errors = collect(read_task_rows([file]), "skip")
    assert [row.where for row in rows] == [f"{file}:1", f"{file}:{len(bad) + 2}"]
    assert len(errors) == len(bad)


def test_a_pattern_that_matches_nothing_is_an_error_that_says_so(tmp_path):
    with pytest.raises(DataError, match=r"data\.files: '.*\*\.jsonl' matches no file"):
        expand_files([str(tmp_path / "*.jsonl")], "data.files")
    with pytest.raises(DataError, match=r"data\.files is empty"):
        expand_files([], "data.files")


def test_files_of_overlapping_patterns_are_read_once_in_order(tmp_path):
    names = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "odd[1].jsonl")]
    for name in names:
        name.touch()
    (tmp_path / "folder.jsonl").mkdir()
    patterns = [str(names[1]), str(tmp_path / "*.jsonl"), str(names[2])]
    assert expand_files(patterns, "f") == [names[1], names[0], names[2]]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("task_column", ["task", "task_name"])
def test_ready_pairs_are_read_from_csv_jsonl_and_parquet(tmp_path, suffix, task_column):
    rows = pair_rows(3)
    rows[1]["original_instruction"] = 'Line one, "quoted"\nline two {braces}'
    rows = [{"id": str(i), task_column: row.pop("task"), **row} for i, row in enumerate(rows)]
    file = tmp_path / f"pairs.{suffix}"
    if suffix == "csv":
        write_csv(file, rows)
    elif suffix == "jsonl":
        write_jsonl(file, rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    read = list(read_pair_rows([file]))
    assert [row[:4] for row in read] == [
        (
            row[task_column],
            row["original_instruction"],
            row["paraphrased_instruction"],
            row["targets"],
        )
        for row in rows
    ]
    assert len({row.where for row in read}) == 3


BAD_CSV = {
    "a column missing": (
        "task,original_instruction,targets\na,b,c\n",
        2,
        "no column paraphrased_instruction; the columns are task, original_instruction, targets",
    ),
    "no task": (
        "original_instruction,paraphrased_instruction,targets\na,b,c\n",
        2,
        "no column task or task_name",
    ),
    "a cell missing": (None, 3, "`targets` is missing"),
    "a cell too many": (None, 3, "more cells than columns"),
    "an empty cell": (None, 3, "`paraphrased_instruction` is empty"),
    "a quote left open": (None, 3, "not CSV"),
}
CSV_LINES = {
    "a cell missing": "t,b,c",
    "a cell too many": "t,b,c,d,e",
    "an empty cell": "t,b,,d",
    "a quote left open": 't,b,c,"d',
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_a_csv_row_that_cannot_be_read_is_an_error_with_file_line_and_reason(tmp_path, case):
    content, line, reason = BAD_CSV[case]
    if content is None:
        header = "task,original_instruction,paraphrased_instruction,targets"
        content = f"{header}\nt,a,b,c\n{CSV_LINES[case]}\n"
    file = tmp_path / "a.csv"
    file.write_text(content)
    with pytest.raises(DataError) as caught:
        collect(read_pair_rows([file]), "error")
    assert str(caught.value).startswith(f"{file}:{line}: ")
    assert reason in str(caught.value)


def test_bytes_that_are_no_utf8_are_found_in_the_row_of_a_csv_file_that_holds_them(tmp_path):
    file = write_csv(tmp_path / "a.csv", pair_rows(3))
    file.write_bytes(file.read_bytes().replace(b"number 1", b"number \xe9"))
    rows, errors = collect(read_pair_rows([file]), "skip")
    assert len(rows) == 2
    assert f"{file}:3: `original_instruction` is not valid UTF-8" in str(errors[0])


def test_null_cells_and_broken_files_of_parquet_are_errors_that_name_them(tmp_path):
    file = tmp_path / "a.parquet"
    rows = pair_rows(2)
    rows[1]["targets"] = None
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    with pytest.raises(DataError, match=r"a\.parquet, row 2: `targets` is missing"):
        collect(read_pair_rows([file]), "error")
    file.write_bytes(b"PAR1 but nothing else")
    with pytest.raises(DataError, match=r"a\.parquet: not Parquet"):
        list(read_pair_rows([file]))


def test_a_file_of_another_kind_is_refused_with_the_kinds_that_are_read(tmp_path):
    (tmp_path / "a.xlsx").touch()
    with pytest.raises(DataError, match=r"a\.xlsx: .*\.csv, \.jsonl, \.json, \.parquet"):
        list(read_pair_rows([tmp_path / "a.xlsx"]))


def test_text_is_read_by_paragraph_from_plain_and_gzipped_files(tmp_path):
    plain, zipped = tmp_path / "a.txt", tmp_path / "b.txt.gz"
    plain.write_bytes("\ufeffOne.\r\n\r\nTwo \u2014 é.\n".encode())
    zipped.write_bytes(gzip.compress(b"Three.\nbad \xff\n"))
    *texts, error = read_text([plain, zipped])
    assert texts == ["One.", "Two \u2014 é.", "Three."]
    assert str(error).startswith(f"{zipped}:2: not valid UTF-8 at byte 5")


def test_a_broken_gzip_file_is_an_error_that_names_it(tmp_path):
    file = tmp_path / "a.txt.gz"
    file.write_bytes(gzip.compress(b"some text\n" * 1000)[:-20])
    with pytest.raises(DataError, match=r"a\.txt\.gz: cannot be read after line"):
        list(read_text([file]))


def test_rows_may_hold_line_separators_that_are_not_line_ends(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", weather_rows(1))
    text = file.read_text().replace("in town", "in\u2028town")
    file.write_text(text, encoding="utf-8")
    (row,) = read_task_rows([file])
    assert row.inputs["text"] == "rain in\u2028town number 0"
