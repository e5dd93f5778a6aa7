"""Rows by number: every form of file gives the same rows, places name them, memory stays flat."""

import csv
import gzip
import json
import os
import random
import threading
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
from data_files import write_jsonl

from coin_jax.curation.sources import records
from coin_jax.curation.sources.records import Records
from coin_jax.data.sources import DataError

ROWS = [
    {"task": f"t{i % 3}", "text": f'né "{i}",\n\t{{x}} ' * (i % 5 + 1), "label": str(i)}
    for i in range(200)
]


def write(path, rows=ROWS, **options):
    """Rows in the form that the path's name tells."""
    names = path.name.split(".")[1:]
    opener = gzip.open if names[-1] == "gz" else open
    if names[0] == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=30)
        return path
    with opener(path, "wt", encoding="utf-8", newline="") as stream:
        if names[0] == "jsonl":
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        elif names[0] == "json":
            json.dump(rows, stream, **options)
        else:
            delimiter = {"csv": ",", "tsv": "\t"}[names[0]]
            writer = csv.DictWriter(stream, rows[0], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture
def small_chunks(monkeypatch):
    """Files are read in pieces shorter than a row."""
    monkeypatch.setattr(records, "_CHUNK", 64)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc/self/fd")
def test_more_files_than_a_process_may_open_are_read_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_MOST_OPEN", 1)
    found = Records([write(tmp_path / f"{number}.jsonl", ROWS[:2]) for number in range(3)])
    opened = len(os.listdir("/proc/self/fd"))
    assert [found.record(index)[1] for index in range(6)] == ROWS[:2] * 3
    assert list(found.scan("label")) == [("0",), ("1",)] * 3
    assert len(os.listdir("/proc/self/fd")) == opened


@pytest.mark.parametrize("suffix", records.SUFFIXES)
def test_every_form_of_file_gives_its_rows_by_number_and_in_order(tmp_path, suffix, small_chunks):
    found = Records([write(tmp_path / f"rows{suffix}")])
    assert len(found) == 200
    for index in random.Random(0).sample(range(200), 200):
        assert found.record(index)[1] == ROWS[index]
    assert list(found.scan("label", "no such", "task")) == [
        (row["label"], None, row["task"]) for row in ROWS
    ]


def test_a_json_file_may_hold_an_array_over_many_lines_or_an_object_a_line(tmp_path, small_chunks):
    assert Records([write(tmp_path / "a.json", indent=2)]).record(7)[1] == ROWS[7]
    lines = write_jsonl(tmp_path / "b.json", ROWS)
    assert Records([lines]).record(7) == (f"{lines}:8", ROWS[7])
    for number, text in enumerate(["", "[]", " [ \n ] "]):
        file = tmp_path / f"empty{number}.json"
        file.write_text(text)
        assert len(Records([file])) == 0


def test_rows_of_several_files_and_from_elsewhere_follow_each_other(tmp_path):
    files = [write(tmp_path / name, ROWS[:5]) for name in ("a.csv", "b.jsonl", "c.parquet")]
    fault = DataError("somewhere: broken")
    found = Records(files, rows=[("here", {"label": "x"}), ("there", fault)])
    assert len(found) == 17
    assert [found.record(index)[1]["label"] for index in (0, 4, 5, 14, 15)] == list("0404x")
    assert found.record(15)[0] == "here"
    where, error = found.record(16)
    assert (where, str(error)) == ("there", "somewhere: broken")
    assert isinstance(list(found.scan("label"))[16], DataError)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n \n\t\n"])
def test_blank_lines_are_no_rows_and_count_as_lines(tmp_path, suffix, end, small_chunks):
    lines = ["", '{"a": 1}', " \t", "", '{"a": 2}\r', '{"a": 3}', "  ", '{"a": 4}']
    file = tmp_path / f"rows{suffix}"
    opener = gzip.open if suffix.endswith(".gz") else open
    with opener(file, "wb") as stream:
        stream.write(("\n".join(lines) + end).encode())
    found = Records([file])
    places = [found.record(index) for index in range(len(found))]
    assert places == [
        (f"{file}:{line}", {"a": value}) for line, value in [(2, 1), (5, 2), (6, 3), (8, 4)]
    ]


def test_places_are_lines_of_csv_and_row_numbers_of_arrays_and_parquet(tmp_path):
    rows = [{"a": "1\n2", "b": "x"}, {"a": "3", "b": "y"}]
    for name, place in [
        ("a.csv", "a.csv:4"),
        ("a.json", "a.json, row 2"),
        ("a.parquet", "a.parquet, row 2"),
    ]:
        assert Records([write(tmp_path / name, rows)]).record(1) == (f"{tmp_path / place}", rows[1])


BAD_ROWS = {
    "jsonl": ('{"a": 1}\n{"a": \n{"a": 3}\n', ":2: not JSON"),
    "jsonl list": ('{"a": 1}\n[1]\n{"a": 3}\n', ":2: a row must be a JSON object"),
    "jsonl bytes": (b'{"a": 1}\n{"a": "\xff"}\n{"a": 3}\n', ":2: not valid UTF-8 at byte 8"),
    "json": ('[{"a": 1}, 5, {"a": 3}]', ", row 2: a row must be a JSON object"),
    "csv": ("a,b\n1,2\n1,2,3\n3,4\n", ":3: more cells than columns"),
}


@pytest.mark.parametrize(("name", "case"), BAD_ROWS.items(), ids=BAD_ROWS)
def test_a_bad_row_is_an_error_in_its_place_and_the_others_are_read(tmp_path, name, case):
    content, reason = case
    file = tmp_path / f"rows.{name.split()[0]}"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = Records([file])
    assert len(found) == 3
    assert str(found.record(1)[1]).startswith(f"{file}{reason}")
    assert [isinstance(row, DataError) for row in found.scan("a")] == [False, True, False]
    assert str(found.record(2)[1]["a"]) == "3"


BAD_FILES = {
    "rows.txt": (b"a", "rows are read from .jsonl, .jsonl.gz"),
    "rows.jsonl.gz": (b"no gzip", "cannot be read"),
    "cut.jsonl.gz": (gzip.compress(b'{"a": 1}\n' * 999)[:-20], "cannot be read"),
    "rows.parquet": (b"no parquet", "not Parquet"),
    "open.json": (b'[{"a": 1}, {"a": 2}', "not JSON: the array does not end"),
    "comma.json": (b'[{"a": 1} {"a": 2}]', "row 2: not JSON"),
    "last.json": (b'[{"a": 1},]', "row 2: not JSON"),
    "after.json": (b'[{"a": 1}] x', "row 2: not JSON"),
}


@pytest.mark.parametrize(("name", "case"), BAD_FILES.items(), ids=BAD_FILES)
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path, name, case):
    content, reason = case
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        Records([tmp_path / name])
    assert str(caught.value).startswith(str(tmp_path / name))
    assert reason in str(caught.value)


def test_half_a_surrogate_passes_so_that_a_person_can_be_told_of_it(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_bytes(b"a\nx\xff\n")
    assert Records([file]).record(0)[1] == {"a": "x\udcff"}


def test_threads_read_the_same_rows(tmp_path):
    files = [write(tmp_path / name) for name in ("a.jsonl", "b.jsonl.gz", "c.csv", "d.parquet")]
    found, wrong = Records(files), []

    def read(seed):
        for index in random.Random(seed).choices(range(800), k=400):
            if found.record(index)[1] != ROWS[index % 200]:
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("suffix", "count"),
    [(".jsonl", 200_000), (".jsonl.gz", 200_000), (".csv", 20_000), (".parquet", 200_000)],
)
def test_a_row_more_costs_a_few_bytes_of_memory(tmp_path, suffix, count):
    file = write(tmp_path / f"rows{suffix}", ROWS[:20] * (count // 20))
    Records([file])  # imports, and what they keep
    arrow = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    found = Records([file])
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == count
    assert kept < 5 * count + 300_000  # four, and what does not grow
    assert peak < 32 * count + 8 * records._CHUNK
    assert pyarrow.total_allocated_bytes() - arrow < 100_000


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_reading_through_holds_no_more_than_a_piece_of_the_file(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(records, "_CHUNK", 1 << 15)
    file = write(tmp_path / f"rows{suffix}", ROWS * 50)
    tracemalloc.start()
    assert sum(row is not None for row in Records([file]).scan("task")) == 10_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000 < os.path.getsize(file)
