"""Hand-made hostile rows, tables, templates and suites: the name says what each tries."""

from __future__ import annotations

import functools
import gzip
import json
import os
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import suite_files
from data_files import WEATHER, pair_rows, weather_rows, write_json, write_jsonl
from hostile_corpus import CASES, Case, Folder, bytes_file, case, sparse, write_suite

# --- JSON lines, text -----------------------------------------------------------------------

ROW = json.dumps(weather_rows(1)[0])
ROW_FAULTS = (
    b"[" * 100_000, b'{"a":' * 100_000, b'{"task": ' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"task": "t", "inputs": {"a": "b"}, "label": ' + b"9" * 5000 + b"}",
    b'{"task": "t", "inputs": {"a": "b"}, "label": 1e999999999}',
    b'{"task": "t", "inputs": {"a": "b"}, "label": NaN}', b'{"x": Infinity}', b'{"x": -Infinity}',
    b'{"task": "t", "task": "u", "inputs": {"a": "b"}, "label": "x"}', b'{"inputs": {"a":1,"a":2}}',
    b'{"task": "\\ud800", "inputs": {"a": "b"}, "label": "x"}',
    b'{"task": "t", "inputs": {"\\ud800": "b"}, "label": "x"}',
    b'{"task": "t", "inputs": {"a": "\\udfff"}, "label": "x"}', b"\xff\xfe{\x00}\x00", b"\xc0\xaf",
    b'{"task": "\\u001b[2Jt", "inputs": {"a": "b"}, "label": "x"}',
    b'{"task": "t", "inputs": {"\\u202ea": "b"}, "label": "x"}',
    b'{"task": "t\\nall is well", "inputs": {"a": "b"}, "label": "x"}',
    b'{"task": "' + b"t" * 2000 + b'", "inputs": {"a": "b"}, "label": "x"}',
    b'{"task": "t", "inputs": {"a": {"\x1b": 1}}, "label": "x"}', b"null", b"[]", b"1",
    b'"\\u001b"',
    b'{"task": "t", "inputs": {"a": ["' + b"x" * 1_000_000 + b'"]}, "label": "x"}',
    b"\x00" * 100, b"PAR1", b"{}", b'{"task": {"__class__": "os"}}', b"{" + b" " * 1_000_000,
)  # fmt: skip


@case("rows", "refused", *ROW_FAULTS)
def a_row(folder: Folder, what: bytes) -> Folder:
    return bytes_file(folder, "a.jsonl", f"{ROW}\n".encode() + what + f"\n{ROW}\n".encode())


@case("rows", "read")
def fields_named_like_pythons_own(folder: Folder) -> Folder:
    names = ("__class__", "__init__", "self", "0", "{text}", "%s", "$(reboot)", "; DROP TABLE rows")
    rows = [{"task": "t", "inputs": {name: name}, "label": name} for name in names]
    return write_jsonl(folder / "a.jsonl", rows)


@case("rows", "a line of length 1[78],.*at most 16,777,216", b"x", b'{"a": "', b"[", b"\x00")
def a_line_without_an_end(folder: Folder, what: bytes) -> Folder:
    return bytes_file(folder, "a.jsonl", what + b"a" * (17 << 20))


@case("texts", "a line of length 268,435,456")
def nothing_but_zero_bytes(folder: Folder) -> Folder:
    return sparse(folder, "a.txt", 256 << 20)


@case("rows", "unreadable rows")
def millions_of_bad_rows(folder: Folder) -> Folder:
    return bytes_file(folder, "a.jsonl", b"0\n" * 1_200_000)


def bomb(line: bytes, copies: int) -> bytes:
    return gzip.compress(line * ((16 << 20) // len(line)), 9) * copies


@case("texts", "unpacks to more than", b"\n", b"a\n", b"a" * 100_000 + b"\n", b"\x00")
def a_bomb_of_gzip(folder: Folder, what: bytes) -> Folder:
    return bytes_file(folder, "a.txt.gz", bomb(what, 16))


@case("texts", "cannot be read", gzip.compress(b"rain\n" * 99)[:-9], b"no gzip", b"\x1f\x8b" * 9,
      gzip.compress(b"rain\n" * 99)[:20] + b"\xff" * 30)  # fmt: skip
def damaged_gzip(folder: Folder, what: bytes) -> Folder:
    return bytes_file(folder, "a.txt.gz", what)


@case("rows", "matches no file", "pipe", "device", "folder", "loop")
def no_file(folder: Folder, what: str) -> Folder:
    path = folder / "a.jsonl"
    {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
        "loop": lambda: path.symlink_to(path),
    }[what]()
    return path


# --- CSV ------------------------------------------------------------------------------------

HEADER = b"task,original_instruction,paraphrased_instruction,targets\n"
CSV_FAULTS = (
    HEADER + b'a,"b' + b"\nb" * 300_000, HEADER + b"a,b,c,d,e\n", HEADER + b"a,b\n",
    HEADER + b"a," + b"b" * 200_000 + b",c,d\n", HEADER + b"\xff,b,c,d\n", HEADER + b"a,\x00,,d\n",
    HEADER + b"\x1b[31m,b,c,d\n", HEADER + b"a,b,c,d\n" + b"x" * (17 << 20),
    b"task," + HEADER + b"a,b,c,d,e\n", b"," * 100_000 + b"\n" + HEADER, b"a" * (17 << 20) + b"\n",
    HEADER + b'"a"b,',
    HEADER.replace(b",", b";") + b"a;b;c;d\n", b"\x00" * 1000 + b"\na", HEADER + b"a,b\rc,d\n",
    b"\x1b[2J\n1",
)  # fmt: skip


@case("pairs", "refused", *CSV_FAULTS)
def csv(folder: Folder, what: bytes) -> Folder:
    return bytes_file(folder, "a.csv", what)


# --- Parquet --------------------------------------------------------------------------------


def parquet(folder: Folder, **columns: Any) -> Folder:
    sound = {name: [row[name] for row in pair_rows(3)] for name in pair_rows(1)[0]}
    rows = max(len(column) for column in columns.values())
    whole = {
        name: columns.get(name, pyarrow.array(values[:1] * rows)) for name, values in sound.items()
    }
    pyarrow.parquet.write_table(pyarrow.table(whole), folder / "a.parquet", compression="zstd")
    return folder / "a.parquet"


@case("pairs", "unpacks to more than", 200_000, 2_000)
def one_text_in_every_row(folder: Folder, what: int) -> Folder:
    texts = pyarrow.array(["x" * (4_000_000_000 // what)])
    index = pyarrow.array(np.zeros(what, np.int32))
    return parquet(folder, targets=pyarrow.DictionaryArray.from_arrays(index, texts))


@case("pairs", "unpacks to more than|unreadable rows")
def a_hundred_million_rows_of_nothing(folder: Folder) -> Folder:
    path = folder / "a.parquet"
    nulls = pyarrow.nulls(20_000_000, pyarrow.string())
    schema = pyarrow.schema([(name, pyarrow.string()) for name in pair_rows(1)[0]])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for _ in range(5):
            writer.write_table(pyarrow.table([nulls] * 4, schema))
    return path


@case("pairs", "the column task is", [[1]], [{"a": "b"}], [1], [b"a"], [True])
def a_column_that_is_no_text(folder: Folder, what: list) -> Folder:
    return parquet(folder, task=pyarrow.array(what * 100))


@case("pairs", "not Parquet", b"", b"PAR1", b"PAR1" * 2, b"PAR1\xff\xff\xff\x7fPAR1",
      b"PAR1" + b"\x15" * 1000 + b"\xe8\x03\x00\x00PAR1", b"\x1c" * 5000)  # fmt: skip
def no_parquet(folder: Folder, what: bytes) -> Folder:
    return bytes_file(folder, "a.parquet", what)


@case("pairs", "not Parquet")
def text_that_is_not_utf8(folder: Folder) -> Folder:
    texts = pyarrow.array([b"\xff\xfe"] * 9).view(pyarrow.string())
    return parquet(folder, targets=texts)


@case("pairs", "read|refused", 100, 3000)
def columns_deep_in_each_other(folder: Folder, what: int) -> Folder:
    kind = pyarrow.string()
    for _ in range(what // 10):
        kind = pyarrow.struct([("a", kind)])
    return parquet(folder, task=pyarrow.nulls(3, kind))


# --- sources of data building ---------------------------------------------------------------

for _case in tuple(CASES):  # the same files, another reader
    if _case.reader in ("rows", "pairs") and not _case.name.startswith(("no_file", "fields_named")):
        CASES.append(_case._replace(name=f"source_{_case.name}", reader="source", expected=""))


@case("source", "refused", "[" * 100_000, '[{"a": 1}, ' + '{"a": [' * 400, "[" + " " * (20 << 20),
      '[{"a": "' + "x" * (20 << 20), "[NaN]", "[1, {}", "[{}] []",
      '[{"a": 1, "a": 2}]')  # fmt: skip
def an_array_of_rows(folder: Folder, what: str) -> Folder:
    return bytes_file(folder, "a.json", what.encode())


@case("source", "unpacks to more than", "a.jsonl.gz", "a.json.gz", "a.csv.gz")
def a_bomb_among_the_sources(folder: Folder, what: str) -> Folder:
    return bytes_file(folder, what, bomb(b" " * 100_000 + b"\n", 16))


# --- templates, suites ----------------------------------------------------------------------

PROMPTS = (
    "{text.__class__}", "{text.__init__.__globals__}", "{text[0]}", "{text!r}", "{text:>{text}}",
    "{0}", "{}", "{", "}", "{text:" + "9" * 50 + "}", "{__class__}", "{text}\x1b[2J", "{text} \x00",
    "{text}" + "{" * 100_001, "{\u202etext}", "{text\n}", "{" + "t" * 100_000 + "}", "\ud800{text}",
)  # fmt: skip


@case("templates", "refused", *PROMPTS)
def a_template(folder: Folder, what: str) -> Folder:
    entries = [{"input": what, "target": "{answer}"}, *WEATHER]
    return write_json(folder / "t.json", {"weather": entries})


@case("suite", "refused", *PROMPTS)
def a_prompt(folder: Folder, what: str) -> Folder:
    return write_suite(folder, prompts={"plain": {"sst2": [what.replace("text", "sentence")]}})


JSON_FAULTS = (
    b"[" * 1_000_000, b'{"a":' * 1_000_000, b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff", b"",
    b"[" + b"1," * 5_000_000 + b"1]", b'{"a": ' + b"9" * 10_000 + b"}", b"\x00", b'{"\\ud800": 1}',
    b'{"a": [' + b"{}," * 1_000_000 + b"1]}", b'{"\\u001b[31m": {}}', b'"a"', b"null", b"{}",
    b'{"a": "' + b"x" * 3_000_000 + b'"}', b'{"x": ' + b"[" * 900 + b"]" * 900 + b"}", b"{'a': 1}",
)  # fmt: skip
FILES = {"templates": "t.json", "suite": "s.json", "config": "config.json", "tokenizer": "t.json"}


def _json_fault(folder: Folder, what: bytes, name: str) -> Folder:
    return bytes_file(folder, name, what)


for _reader, _name in FILES.items():
    for _number, _fault in enumerate(JSON_FAULTS):
        if (_reader, _fault) != ("templates", b"{}"):  # a file without templates is one
            make = functools.partial(_json_fault, what=_fault, name=_name)
            CASES.append(Case(f"json_as_{_reader}-{_number}", _reader, make, "refused"))


@case("templates", "larger than")
def a_file_of_a_gigabyte(folder: Folder) -> Folder:
    return sparse(folder, "t.json", 1 << 30)


SUITE_FAULTS: tuple[dict[str, Any], ...] = (
    {"prompts": {f"c{n}": {"sst2": ["How? "]} for n in range(5000)}},
    {"prompts": {"plain": {"sst2": ["How? "] * 30_000}}},
    {"prompts": {"plain": {"sst2": [1] * 200_000}}}, {"prompts": {"\x1b[2J": {"sst2": ["How? "]}}},
    {"prompts": {"a" * 5000: {"sst2": ["How? "]}}}, {"seed": 10**40}, {"sample": 10**40},
    {"seed": 1e308}, {"sample": -1}, {"name": "\x1b]0;title\x07"}, {"name": "a\nb"},
    {"perturbations": [{"condition": "x", "method": "deepwordbug", "copies": 10**9}]},
    {"perturbations": [{"condition": "x", "method": "__import__"}]},
    {"attacks": [{"condition": "x", "method": "deepwordbug", "budget": 10**30}]},
    *({"tasks": {"sst2": suite_files.entry(data=data)}} for data in (
        "tfds:someone:theirs", "tfds:glue/data_dir=/etc", "tfds:../x", "**/*", "../../../../**",
        "/dev/zero", "/etc/passwd", "hub:", "builtin:__class__", "\x00", "\ud800", "[" * 100_000)),
    {"tasks": {"sst2": suite_files.entry(fields=[f"f{n}" for n in range(100_000)])}},
    {"tasks": {"sst2": suite_files.entry(answers={"a": "\x1b"})}}, {"tasks": {"__class__": {}}},
    {"tasks": {"sst2": suite_files.entry(content="{sentence.__class__}")}}, {"__class__": 1},
)  # fmt: skip


@case("suite", "refused", *SUITE_FAULTS)
def a_suite(folder: Folder, what: dict) -> Folder:
    return write_suite(folder, **what)


def _perturbed(**what: Any) -> dict:
    return {"condition": "x", "method": "deepwordbug"} | what


SUITE_SIZES: tuple[dict[str, Any], ...] = (
    {"prompts": {"plain": {"sst2": [f"How {n}? " for n in range(5000)]}},
     "perturbations": [_perturbed(copies=1000)]},
    {"prompts": {"plain": {"sst2": ["How? " * 10_000]}}},
    {"tasks": {"sst2": suite_files.entry(data=[f"{n}.jsonl" for n in range(100_000)])}},
    {"tasks": {"sst2": suite_files.entry(answers={f"a{n}": f"b{n}" for n in range(50_000)})}},
    {"prompts": {"plain": {"a" * 900 + str(n): ["How? "] for n in range(3000)}}},
    *({"tasks": {"sst2": suite_files.entry(data=data)}} for data in (
        "/*/*/*/*/*/*/*", "/proc/*/fd/*", "hub:../../etc", "hub:/etc", "hub:pandas:../x",
        "hub:a/b/c", "hub:a b")),
)  # fmt: skip


@case("suite", "refused", *SUITE_SIZES)
def a_suite_that_asks_for_much(folder: Folder, what: dict) -> Folder:
    return write_suite(folder, **what)


@case("pairs", "not Parquet")
def a_column_whose_name_is_not_utf8(folder: Folder) -> Folder:
    path = parquet(folder, targets=["wet"])
    path.write_bytes(path.read_bytes().replace(b"targets", b"targ\x80ts"))
    return path


CASES.append(
    Case("source_a_column_whose_name", "source", a_column_whose_name_is_not_utf8, "not Parquet")
)
