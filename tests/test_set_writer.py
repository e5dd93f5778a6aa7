"""Contrastive sets are written whole or not at all, and the same rows make the same bytes."""

import hashlib
import os
import pathlib
import re

import numpy as np
import pyarrow.parquet
import pytest
import yaml

from coin_jax.curation.card import dataset_card
from coin_jax.curation.writer import Row, SetWriter
from coin_jax.data.pairs import content_hash
from coin_jax.data.set_format import InstructionTask, Manifest, Split, Wording, read_manifest
from coin_jax.data.sources import DataError

TASKS = (
    InstructionTask(
        "weather",
        ("report", "place"),
        (
            Wording("w/1", "{report} Rain?"),
            Wording("w/2", "Wet? {report}", "template", held_out=True),
        ),
        ("wet", "dry"),
        "CC BY 4.0",
    ),
    InstructionTask(
        "sums", ("sum",), (Wording("s/1", "{sum} ="), Wording("s/2", "What is {sum}?"))
    ),
)


def fill(writer, count=10):
    for number in range(count):
        row = Row({"report": f"Report {number}"}, "wet" if number % 2 else "dry")
        writer.write("train", 0, row)
    writer.write("evaluation", 0, Row({"report": "Sün", "place": "Graz"}, "dry"))
    for number in range(count):
        writer.write("train", 1, Row({"sum": f"{number} + 1"}, str(number + 1)))


def build(folder, rows_per_shard=8, overwrite=False, count=10, record=None):
    with SetWriter(folder, TASKS, rows_per_shard, overwrite) as writer:
        fill(writer, count)
        return writer.finish(record or {"seed": 3})


def rows_of(folder, split):
    return [
        row
        for shard in read_manifest(folder).splits[split].shards
        for row in pyarrow.parquet.read_table(folder / shard.file).to_pylist()
    ]


def test_rows_come_back_in_their_order_with_all_that_training_needs(tmp_path):
    manifest = build(tmp_path / "set")
    rows = rows_of(tmp_path / "set", "train")
    assert [row["task"] for row in rows] == [0] * 10 + [1] * 10
    assert rows[1] == {
        "task": 0,
        "inputs": ["Report 1", None],
        "target": "wet",
        "answer": 0,
        "content": content_hash(["Report 1"], "wet"),
        "negatives": [],
    }
    assert (rows[12]["inputs"], rows[12]["target"], rows[12]["answer"]) == (["2 + 1"], "3", -1)
    (row,) = rows_of(tmp_path / "set", "evaluation")
    assert row["inputs"] == ["Sün", "Graz"]
    assert manifest.splits["train"].rows_of_task == (10, 10)
    assert manifest.splits["evaluation"].rows_of_task == (1, 0)
    assert read_manifest(tmp_path / "set") == manifest


def test_the_manifest_describes_the_files_as_they_are(tmp_path):
    manifest = build(tmp_path / "set")
    shards = manifest.splits["train"].shards
    assert [shard.rows for shard in shards] == [8, 8, 4]
    for shard in shards:
        content = (tmp_path / "set" / shard.file).read_bytes()
        assert shard.sha256 == hashlib.sha256(content).hexdigest()
        schema = pyarrow.parquet.read_schema(tmp_path / "set" / shard.file)
        assert schema.field("inputs").type == pyarrow.list_(pyarrow.string())
        assert schema.metadata[b"split"] == b"train"
        metadata = pyarrow.parquet.read_metadata(tmp_path / "set" / shard.file)
        assert metadata.row_group(0).column(2).compression == "ZSTD"


def test_the_same_rows_make_the_same_bytes_and_other_rows_another_hash(tmp_path):
    first, second = build(tmp_path / "a"), build(tmp_path / "b", record={"seed": 4})
    other = build(tmp_path / "c", count=9)
    for shard in first.splits["train"].shards:
        assert (tmp_path / "a" / shard.file).read_bytes() == (
            tmp_path / "b" / shard.file
        ).read_bytes()
    assert first.content_hash == second.content_hash != other.content_hash


def broken_build(folder, error, overwrite=False):
    with SetWriter(folder, TASKS, 4, overwrite) as writer:
        fill(writer, 5)
        assert any(writer.folder.iterdir())
        raise error


def test_a_run_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        broken_build(tmp_path / "set", KeyboardInterrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_set_is_replaced_only_on_demand_and_only_by_a_whole_one(tmp_path):
    folder = tmp_path / "set"
    old = build(folder)
    with pytest.raises(DataError, match="set: a contrastive set is there already"):
        build(folder)
    with pytest.raises(ZeroDivisionError):
        broken_build(folder, ZeroDivisionError, overwrite=True)
    assert read_manifest(folder) == old
    new = build(folder, overwrite=True, count=5)
    assert read_manifest(folder) == new != old
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_both_sets_stay_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    old, rename = build(tmp_path / "set"), os.rename

    def failing(source, target):
        if ".partial-" in str(source):
            raise OSError("no space for names")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(DataError, match="no space for names") as got:
        build(tmp_path / "set", overwrite=True, count=5)
    assert read_manifest(tmp_path / "set") == old
    new = pathlib.Path(str(got.value).split("The set is whole and stands in ")[1])
    assert read_manifest(new).splits["train"].rows_of_task == (5, 5)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_output_that_appears_meanwhile_is_kept(tmp_path):
    with SetWriter(tmp_path / "set", TASKS, 8) as writer:
        fill(writer, 5)
        other = build(tmp_path / "set")
        with pytest.raises(DataError, match=r"there already.*\. The set is whole and stands in"):
            writer.finish({})
    assert read_manifest(tmp_path / "set") == other
    assert read_manifest(writer.folder).splits["train"].rows_of_task == (5, 5)


def test_a_link_to_a_folder_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "set").symlink_to(tmp_path / "disk")
    build(tmp_path / "set")
    new = build(tmp_path / "set", overwrite=True, count=5)
    assert (tmp_path / "set").is_symlink()
    assert read_manifest(tmp_path / "disk") == new


def test_a_folder_that_is_no_set_is_never_touched(tmp_path):
    (tmp_path / "set").mkdir()
    build(tmp_path / "set")  # an empty one gives way
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(DataError, match="thesis: is there and is no contrastive set"):
        build(tmp_path / "thesis", overwrite=True)
    with pytest.raises(DataError, match=r"chapter\.tex: is there and is no contrastive set"):
        build(tmp_path / "thesis" / "chapter.tex", overwrite=True)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "x"


def test_a_row_that_does_not_fit_its_task_is_an_error(tmp_path):
    with SetWriter(tmp_path / "set", TASKS, 8) as writer:
        with pytest.raises(DataError, match="'weather' has no field 'sum'; its fields are report"):
            writer.write("train", 0, Row({"sum": "1 + 1"}, "wet"))
        with pytest.raises(DataError, match="'damp' is none of its answers 'wet', 'dry'"):
            writer.write("train", 0, Row({"report": "Mist"}, "damp"))
        writer.write("train", 1, Row({"sum": "1 + 1"}, "2"))
        with pytest.raises(ValueError, match="rows of task 0 after those of task 1"):
            writer.write("train", 0, Row({"report": "Mist"}, "wet"))


def test_a_set_without_training_rows_is_an_error(tmp_path):
    with SetWriter(tmp_path / "set", TASKS, 8) as writer:
        writer.write("evaluation", 0, Row({"report": "Mist"}, "wet"))
        with pytest.raises(DataError, match="no row to train on is left"):
            writer.finish({})
    assert list(tmp_path.iterdir()) == []


def test_negatives_are_added_to_rows_already_written(tmp_path):
    def choose(shards):
        assert [path.name for path in shards] == [
            f"train-0000{number}.parquet" for number in (0, 1, 2)
        ]
        for start in range(0, 20, 5):  # blocks that fit neither shards nor row groups
            rows = np.arange(start, start + 5)
            yield np.stack([19 - rows, np.where(rows % 2, 0, -1)], axis=1)

    plain = build(tmp_path / "plain")
    with SetWriter(tmp_path / "set", TASKS, 8) as writer:
        fill(writer)
        writer.add_negatives("train", choose)
        with pytest.raises(ValueError, match="once the negatives are chosen"):
            writer.write("train", 1, Row({"sum": "1 + 1"}, "2"))
        manifest = writer.finish({})
    rows, plain_rows = (rows_of(tmp_path / name, "train") for name in ("set", "plain"))
    negatives = [row.pop("negatives") for row in rows]
    assert negatives == [[19 - row, 0] if row % 2 else [19 - row] for row in range(20)]
    assert [row | {"negatives": []} for row in rows] == plain_rows
    assert manifest.content_hash != plain.content_hash
    assert {path.suffix for path in (tmp_path / "set").iterdir()} == {".parquet", ".json", ".md"}


@pytest.mark.parametrize(("rows", "word"), [(19, "fewer"), (21, "more")])
def test_negatives_of_another_number_of_rows_are_refused(tmp_path, rows, word):
    with SetWriter(tmp_path / "set", TASKS, 8) as writer:
        fill(writer)
        with pytest.raises(ValueError, match=f"for {word} rows than there are"):
            writer.add_negatives("train", lambda shards: [np.zeros((rows, 1), np.int64)])


def test_the_card_is_what_a_dataset_page_shows(tmp_path):
    manifest = build(tmp_path / "reports")
    _, front_matter, text = (tmp_path / "reports" / "README.md").read_text().split("---\n")
    fields = yaml.safe_load(front_matter)
    assert fields == {
        "pretty_name": "reports",
        "license": ["cc-by-4.0", "unknown"],
        "size_categories": ["n<1K"],
        "task_categories": ["text-classification", "text-generation"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": "train", "path": "train-*.parquet"},
                    {"split": "evaluation", "path": "evaluation-*.parquet"},
                ],
            }
        ],
    }
    assert len(text.strip().splitlines()) == 10
    for phrase in (
        "20 rows to train on, 1 to evaluate on",
        "2 tasks, 1 of them with a closed set",
        "4 wordings, 1 of them kept from training; by origin: source 3, template 1",
        "CC BY 4.0 1, not stated 1",
        "seed 3",
        manifest.content_hash,
    ):
        assert phrase in text


@pytest.mark.parametrize(
    ("rows", "category"),
    [
        (999, "n<1K"),
        (1_000, "1K<n<10K"),
        (999_999, "100K<n<1M"),
        (52_000_000, "10M<n<100M"),
        (10**9, "1B<n<10B"),
        (10**15, "n>1T"),
    ],
)
def test_size_categories_are_those_of_a_hub(rows, category):
    splits = {"train": Split((), (rows,)), "evaluation": Split((), (0,))}
    card = dataset_card(Manifest(TASKS[:1], splits, "0" * 64, {"language": "en"}), "set")
    assert f'size_categories: ["{category}"]' in card
    assert re.search(r'^language: \["en"\]$', card, re.MULTILINE)
