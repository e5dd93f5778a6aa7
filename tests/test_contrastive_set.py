"""Contrastive sets read from a set on disk: what they show, and the memory map below them."""

import collections
import concurrent.futures
import hashlib
import itertools
import multiprocessing
import os
import re
import shutil
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from coin_jax.config import BatchConfig
from coin_jax.data import mapped_rows
from coin_jax.data.contrastive_set import load_set
from coin_jax.data.pairs import TokenizedPairs, content_hash
from coin_jax.data.ready_pairs import PairPrompt
from coin_jax.data.set_format import (
    COLUMNS,
    InstructionTask,
    Manifest,
    Shard,
    Split,
    Wording,
    manifest_json,
    set_hash,
)
from coin_jax.data.sources import DataError
from coin_jax.data.tokenizer import ByteTokenizer

pytestmark = pytest.mark.usefixtures("own_cache")
NO_MAP = shutil.ignore_patterns(".mapped")

WEATHER = InstructionTask(
    "weather",
    ("report", "place"),
    (
        Wording("w/1", "{report} Rain?\n{options_}", "template"),
        Wording("w/2", "Is it wet? {report}", "template"),
        Wording("w/3", "Says {place}: {report}", "template"),
        Wording("w/4", "Held out: {report}", "rule", held_out=True),
    ),
    ("wet", "dry"),
)
SUMS = InstructionTask("sums", ("a",), (Wording("s/1", "Add {a}"), Wording("s/2", "Sum {a}")))
PROMPTS = InstructionTask(
    "prompts",
    ("p1", "p2", "p3"),
    tuple(Wording(f"p/{n}", f"{{p{n}}}") for n in (1, 2, 3)),
    ("yes", "no"),
)
TASKS = (WEATHER, SUMS, PROMPTS)


def weather(rows, dry_every=2, places=True):
    return [
        (
            (f"report {n}", f"town {n}" if places or n % 4 > 1 else None),
            "dry" if n % dry_every == 0 else "wet",
        )
        for n in range(rows)
    ]


def sums(rows):
    return [((f"{n} and 1",), str(n + 1)) for n in range(rows)]


def prompts(rows):
    return [
        ((f"{n} is odd. True?", f"Is it so? {n} is odd.", None), ("no", "yes")[n % 2])
        for n in range(rows)
    ]


def table(tasks, rows_of_task, negatives=None):
    """A split as Arrow; `negatives` by row number."""
    rows = [(number, *row) for number, rows in enumerate(rows_of_task) for row in rows]
    columns = {
        "task": [number for number, _, _ in rows],
        "inputs": [inputs for _, inputs, _ in rows],
        "target": [target for _, _, target in rows],
        "answer": [
            tasks[number].answers.index(target) if tasks[number].answers else -1
            for number, _, target in rows
        ],
        "content": [content_hash([t for t in i if t is not None], a) for _, i, a in rows],
        "negatives": [(negatives or {}).get(row, []) for row in range(len(rows))],
    }
    types = {"list<string>": pyarrow.list_(pyarrow.string())}
    types["list<int64>"] = pyarrow.list_(pyarrow.int64())
    schema = [(name, types.get(kind) or kind) for name, kind in COLUMNS.items()]
    return pyarrow.table(columns, pyarrow.schema(schema))


def write_set(folder, tasks, train, evaluation=None, negatives=None, change=None, shards=2):
    """A set in files; `change` alters the table of the training split before it is written."""
    folder.mkdir(exist_ok=True)
    splits = {}
    evaluation = evaluation or [[] for _ in tasks]
    for name, rows_of_task in (("train", train), ("evaluation", evaluation)):
        rows = table(tasks, rows_of_task, negatives if name == "train" else None)
        if change and name == "train":
            rows = change(rows)
        size = max(1, -(-len(rows) // shards))
        files = []
        for number, start in enumerate(range(0, len(rows), size)):
            path = folder / f"{name}-{number}.parquet"
            pyarrow.parquet.write_table(rows.slice(start, size), path, row_group_size=5)
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            files.append(Shard(path.name, len(rows.slice(start, size)), len(content), digest))
        splits[name] = Split(tuple(files), tuple(map(len, rows_of_task)))
    manifest = Manifest(tuple(tasks), splits, set_hash(tasks, splits), {})
    (folder / "manifest.json").write_text(manifest_json(manifest), encoding="utf-8")
    return folder


def texts(content):
    return [prompt.text for prompt in content.sequences]


@pytest.fixture(scope="module")
def three_tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "three"
    train = [weather(40, places=False), sums(20), prompts(12)]
    return write_set(folder, TASKS, train, [weather(9, dry_every=3), sums(3), prompts(4)])


# What a set shows


def test_an_instance_stands_in_two_wordings_beside_another_with_another_answer_in_the_same(
    three_tasks,
):
    source = load_set(three_tasks, 0)
    wording = re.compile(
        r"(?:report (?P<one>\d+) Rain\?\nOPTIONS:\n- wet\n- dry"
        r"|Is it wet\? report (?P<two>\d+)"
        r"|Says town (?P<three>\d+): report (?P=three))"
    )
    for index, epoch in itertools.product(source.tasks["weather"], range(4)):
        prompts = source.get(index, epoch).sequences
        matches = [wording.fullmatch(prompt.text) for prompt in prompts]
        names = [match.lastgroup for match in matches]
        rows = [int(match[name]) for match, name in zip(matches, names, strict=True)]
        assert rows == [index, index, rows[2], rows[2]]
        assert (rows[2] - index) % 2 == 1  # dry is every second row
        assert names[:2] == names[2:]
        assert names[0] != names[1]
        assert [prompt.answer for prompt in prompts] == [("dry", "wet")[row % 2] for row in rows]


def test_every_ordered_choice_of_two_wordings_comes_once_before_one_returns(three_tasks):
    source = load_set(three_tasks, 3)
    # The first row has no place, so two wordings can ask it; the third has all three.
    for index, choices in ((0, 2), (2, 6)):
        for start in (0, choices):
            shown = {
                tuple(texts(source.get(index, epoch))[:2])
                for epoch in range(start, start + choices)
            }
            assert len(shown) == choices


def test_which_wordings_and_negative_come_depends_on_seed_epoch_and_row_alone(tmp_path):
    rare = [((f"{n}",), "many" if n else "one") for n in range(1500)]
    tasks = [InstructionTask("rare", ("a",), SUMS.wordings), WEATHER]
    folder = write_set(tmp_path, tasks, [rare, weather(20)])
    asked = [(row, epoch) for row in (0, 3, 700, 1490, 1501, 1519) for epoch in range(9)]
    one, two, other = load_set(folder, 5), load_set(folder, 5), load_set(folder, 6)
    shown = [texts(one.get(*place)) for place in asked]
    assert shown == [texts(two.get(*place)) for place in reversed(asked)][::-1]
    assert shown != [texts(other.get(*place)) for place in asked]


def test_negatives_change_from_epoch_to_epoch(three_tasks):
    source = load_set(three_tasks, 0)
    drawn = {source.get(1, epoch).sequences[2].text.split(" Rain")[0] for epoch in range(40)}
    assert len(drawn) > 8


def test_free_answers_are_told_apart_by_their_text(three_tasks):
    source = load_set(three_tasks, 0)
    for index in source.tasks["sums"]:
        anchor, _, negative, _ = source.get(index, 0).sequences
        assert anchor.answer == str(index - 40 + 1) != negative.answer


def test_finished_prompts_know_each_other_so_that_only_what_they_share_is_cut(three_tasks):
    source = load_set(three_tasks, 0)
    anchor, positive, *_ = source.get(source.tasks["prompts"].start + 3, 0).sequences
    assert {anchor.text, positive.text} == {"3 is odd. True?", "Is it so? 3 is odd."}
    for prompt in (anchor, positive):
        assert isinstance(prompt, PairPrompt)
        assert [piece.text for piece in prompt.pieces if piece.is_field] == ["3 is odd"]


def test_contents_are_those_of_the_rows_so_that_false_negatives_are_masked(three_tasks):
    source = load_set(three_tasks, 0)
    content = source.get(41, 0)
    negative = content.sequences[2]
    words = negative.text.split(maxsplit=1)[1]
    assert content.contents == (
        content_hash(["1 and 1"], "2"),
        content_hash([words], negative.answer),
    )


def test_a_rows_own_negatives_come_in_turn_and_in_wordings_of_their_own_if_of_another_task(
    tmp_path,
):
    negatives = {0: [3, 1, 12]}
    folder = write_set(tmp_path, TASKS, [weather(10), sums(5), []], negatives=negatives)
    source = load_set(folder, 0)
    for epoch, expected in zip(range(6), ["report 3", "report 1", "2 and 1"] * 2, strict=True):
        shown = source.get(0, epoch).sequences
        assert all(expected in prompt.text for prompt in shown[2:])
        if "and" in expected:
            assert {prompt.text.split()[0] for prompt in shown[2:]} == {"Add", "Sum"}


@pytest.mark.parametrize("rows", [30, 3000])
def test_the_only_other_answer_of_a_task_is_found_wherever_it_stands(tmp_path, rows):
    source = load_set(write_set(tmp_path, [WEATHER], [weather(rows, dry_every=rows)]), 0)
    for epoch in range(3):
        negative = source.get(rows // 2, epoch).sequences[2]
        assert negative.answer == "dry"
        assert "report 0" in negative.text


def test_a_task_of_one_answer_has_its_negatives_from_other_tasks(tmp_path):
    wet = [row for row in weather(20) if row[1] == "wet"]
    folder = write_set(tmp_path / "two", [WEATHER, SUMS], [wet, sums(4)])
    assert load_set(folder, 0).get(2, 0).sequences[2].text.startswith(("Add", "Sum"))
    source = load_set(write_set(tmp_path / "one", [WEATHER], [wet]), 0)
    with pytest.raises(DataError, match=r"'weather': no hard negative of the answer 'wet'"):
        source.get(0, 0)


def test_rows_that_fewer_than_two_wordings_can_ask_are_left_out_and_counted(tmp_path):
    rows = prompts(9)
    for bad in (0, 4, 8):
        rows[bad] = ((None, "alone", None), "no")
    source = load_set(write_set(tmp_path, [WEATHER, PROMPTS], [weather(3), rows]), 0)
    assert source.tasks == {"weather": range(3), "prompts": range(3, 9)}
    assert len(source) == 9
    assert any("3 training rows left out that fewer than two" in note for note in source.notes)
    shown = [texts(source.get(index, epoch)) for index in range(3, 9) for epoch in range(4)]
    assert "alone" not in set(itertools.chain(*shown))
    leading = [min(set("1234567") & set(text[0])) for text in shown[::4]]
    assert leading == list("123567")


# Single instances


def test_an_instance_alone_comes_in_every_wording_before_one_returns(three_tasks):
    source = load_set(three_tasks, 0)
    for start in (0, 3):
        shown = {source.single(2, epoch).text for epoch in range(start, start + 3)}
        assert shown == {
            "report 2 Rain?\nOPTIONS:\n- wet\n- dry",
            "Is it wet? report 2",
            "Says town 2: report 2",
        }


def test_a_turn_gives_all_instances_of_a_task_the_same_wording_or_the_next_that_can_ask(
    three_tasks,
):
    def wording(text):
        return next(mark for mark in ("Rain?", "Is it wet?", "Says") if mark in text)

    source = load_set(three_tasks, 0)
    cycle = []
    for turn in range(6):
        (name,) = {wording(source.single(row, 7, turn).text) for row in range(2, 40, 4)}
        cycle.append(name)
    assert set(cycle[:3]) == {"Rain?", "Is it wet?", "Says"}
    assert cycle[3:] == cycle[:3]
    # Rows without a place cannot be asked in the third wording.
    shown = [{wording(source.single(row, 7, t).text) for row in range(0, 40, 4)} for t in range(3)]
    for turn, names in enumerate(shown):
        assert len(names) == 1
        assert names == {cycle[turn]} or (cycle[turn] == "Says" and names < {"Rain?", "Is it wet?"})
    assert isinstance(source.single(source.tasks["prompts"].start, 0, 1), PairPrompt)


# Evaluation


def test_held_out_rows_are_asked_in_every_wording_and_the_answers_keep_their_shares(three_tasks):
    items = load_set(three_tasks, 0).evaluation_items(3)
    assert {item.task for item in items} == {"weather", "prompts"}
    by_row = collections.defaultdict(list)
    for item in items:
        if item.task == "weather":
            by_row[item.instance].append(item)
            assert item.prompt.answer == item.answers[item.label_index]
    assert len(by_row) == 3
    assert sorted(row[0].prompt.answer for row in by_row.values()) == ["dry", "wet", "wet"]
    for row in by_row.values():
        assert [(item.wording, item.seen) for item in row] == [
            ("w/1", True),
            ("w/2", True),
            ("w/3", True),
            ("w/4", False),
        ]
    training = load_set(three_tasks, 0)
    shown = [texts(training.get(index, epoch)) for index in range(40) for epoch in range(6)]
    assert not any("Held out" in text for text in itertools.chain(*shown))


# What is too long


def too_long_set(folder):
    rows = prompts(30)
    rows[7] = (("a" * 300, "b" * 300, None), "yes")
    answers = sums(30)
    answers[2] = (("2 and 1",), "three" * 20)
    long = Wording("w/5", "word " * 50 + "{report}", "chat")
    task = InstructionTask("weather", WEATHER.fields, (*WEATHER.wordings[1:], long), ("wet", "dry"))
    return write_set(folder, [task, SUMS, PROMPTS], [weather(10, places=False), answers, rows])


def test_rows_and_wordings_that_never_fit_are_found_and_left_out(tmp_path):
    source = load_set(too_long_set(tmp_path), 0)
    batch = BatchConfig(encoder_length=120, decoder_length=16)
    with pytest.raises(DataError, match=r"task 'weather', wording w/5: .*encoder_length"):
        TokenizedPairs(source, ByteTokenizer(), batch)
    # Six rows of the weather have no place: without w/5 they have one wording left to train on.
    kept = TokenizedPairs(source, ByteTokenizer(), batch, "skip").source
    assert {name: len(rows) for name, rows in kept.tasks.items()} == {
        "weather": 4,
        "sums": 29,
        "prompts": 29,
    }
    assert "8 training rows skipped" in kept.notes[-1]
    shown = [texts(kept.get(index, epoch)) for index in range(len(kept)) for epoch in range(4)]
    assert not any("aaa" in text or "word" in text for text in itertools.chain(*shown))
    tokenized = TokenizedPairs(kept, ByteTokenizer(), batch)
    assert not any(tokenized.tokenized(index, 0).cut for index in range(len(kept)))


def test_nothing_left_to_train_on_is_an_error(tmp_path):
    source = load_set(write_set(tmp_path, [SUMS], [sums(3)]), 0)
    with pytest.raises(DataError, match=r"nothing is left to train on.*wording s/1"):
        source.without({"task 'sums', wording s/1"})


def test_an_answer_that_never_fits_takes_its_task_along(tmp_path):
    task = InstructionTask("t", ("a",), SUMS.wordings, ("yes", "no" * 30))
    rows = [(("x",), "yes"), (("y",), "no" * 30)] * 3
    source = load_set(write_set(tmp_path, [task, SUMS], [rows, sums(5)]), 0)
    batch = BatchConfig(encoder_length=120, decoder_length=16)
    kept = TokenizedPairs(source, ByteTokenizer(), batch, "skip").source
    assert kept.tasks == {"t": range(0, 0), "sums": range(0, 5)}


# The memory map


def test_rows_come_back_as_they_were_written_across_the_borders_of_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_rows, "CHUNK", 7)
    random = np.random.default_rng(0)
    words = ["", "a", "weiß ", "雨", "\n", "{b}", "🌧️ x"]
    fields = tuple(f"f{n}" for n in range(11))
    wordings = tuple(Wording(f"w{n}", f"{n} {{f0}} {{f{n}}}") for n in range(1, 4))
    tasks = (InstructionTask("many", fields, wordings), SUMS)

    def value():
        return None if random.random() < 0.3 else "".join(random.choice(words, 3))

    many = [(("there", *(value() for _ in fields[1:])), "".join(random.choice(words, 2)))]
    many *= 0
    for _ in range(100):
        many.append((("there", *(value() for _ in fields[1:])), "".join(random.choice(words, 2))))
    given = {row: random.integers(0, 120, row % 4).tolist() for row in range(120)}
    folder = write_set(tmp_path, tasks, [many, sums(20)], negatives=given, shards=3)
    load_set(folder, 0)
    (path,) = (folder / ".mapped").glob("*/train.arrow")
    rows = mapped_rows.MappedRows(path)
    assert len(rows) == 120
    for number, (inputs, target) in enumerate([*many, *sums(20)]):
        row = rows[number]
        there = [text is not None for text in inputs]
        assert [bool(row.present >> field & 1) for field in range(len(inputs))] == there
        for field, text in enumerate(inputs):
            assert text is None or row.text(field) == text
        assert (row.target, row.answer, row.negatives) == (target, -1, given[number])
        assert row.content == content_hash([text for text in inputs if text is not None], target)


def test_the_map_is_made_once(three_tasks, monkeypatch):
    load_set(three_tasks, 0)
    monkeypatch.setattr(mapped_rows, "_convert", None)
    assert len(load_set(three_tasks, 0)) == 72


@pytest.mark.parametrize("name", ["train.arrow", "train.npz", "evaluation.arrow"])
@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_a_damaged_map_is_made_again(three_tasks, tmp_path, name, damage):
    folder = shutil.copytree(three_tasks, tmp_path / "copy", ignore=NO_MAP)
    expected = texts(load_set(folder, 0).get(50, 0))
    (path,) = (folder / ".mapped").glob(f"*/{name}")
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    assert texts(load_set(folder, 0).get(50, 0)) == expected


def test_a_read_only_set_is_mapped_in_the_users_cache(three_tasks, tmp_path, monkeypatch):
    folder = shutil.copytree(three_tasks, tmp_path / "set", ignore=NO_MAP)
    (folder / ".mapped").write_text("in the way")
    assert len(load_set(folder, 0)) == 72
    assert list((tmp_path / "cache" / "coin_jax" / "sets").glob("*/train.arrow"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "manifest.json"))
    with pytest.raises(DataError, match=r"no folder for the set's memory map.*\.mapped"):
        load_set(folder, 0)


def test_what_a_killed_process_left_of_a_map_is_cleared_up_after_a_day(tmp_path):
    folder = write_set(tmp_path, [WEATHER], [weather(10)])
    for name, hours in (("partial-old", 25), ("partial-new", 1)):
        (folder / ".mapped" / name).mkdir(parents=True)
        then = time.time() - hours * 3600
        os.utime(folder / ".mapped" / name, (then, then))
    load_set(folder, 0)
    assert {path.name for path in (folder / ".mapped").glob("partial-*")} == {"partial-new"}


def first_texts(folder):
    return texts(load_set(folder, 0).get(0, 0))


def test_processes_that_start_at_once_make_one_map(tmp_path):
    folder = write_set(tmp_path, [WEATHER], [weather(3000)])
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
        one, two = pool.map(first_texts, [folder, folder])
    assert one == two
    assert len(list((folder / ".mapped").iterdir())) == 1


def changed(name, values):
    def change(rows):
        column = rows.schema.get_field_index(name)
        field = rows.schema.field(column)
        content = rows.column(name).to_pylist()
        content[: len(values)] = values
        return rows.set_column(column, field, pyarrow.array(content, field.type))

    return change


def retyped(rows):
    column = rows.schema.get_field_index("answer")
    return rows.set_column(column, "answer", rows.column("answer").cast(pyarrow.int64()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("task", [1]), "row 0 of the split: task 1 does not fit"),
        (changed("inputs", [["a", "b"], ["a"]]), r"row 1 of the split: inputs \['a'\]"),
        (changed("answer", [1, 2]), "row 1 of the split: answer 2"),
        (changed("answer", [1, -1]), "row 1 of the split: answer -1"),
        (changed("target", ["wet"]), "row 0 of the split: target 'wet'"),
        (changed("target", [None]), "nulls in the column 'target'"),
        (changed("content", [-5]), "row 0 of the split: content -5"),
        (changed("negatives", [[10**12]]), "negatives that are no rows of the split"),
        (retyped, "column 'answer' must be int32, and is int64"),
        (lambda rows: rows.drop_columns(["content"]), "column 'content' must be .* missing"),
    ],
)
def test_a_shard_that_does_not_fit_the_manifest_is_named_with_the_row(tmp_path, change, message):
    folder = write_set(tmp_path, [WEATHER], [weather(10)], change=change)
    with pytest.raises(DataError, match=message) as caught:
        load_set(folder, 0)
    assert "train-0.parquet" in str(caught.value)
    assert not list((folder / ".mapped").iterdir())


def test_a_shard_that_was_changed_is_refused(tmp_path):
    folder = write_set(tmp_path, [WEATHER], [weather(10)])
    path = folder / "train-1.parquet"
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train-1\.parquet: .*SHA-256 differs"):
        load_set(folder, 0)
