"""The manifest of a contrastive set: what is written is read, and nothing else is believed."""

import copy
import dataclasses
import json

import pytest

from coin_jax.data.set_format import (
    InstructionTask,
    Manifest,
    Shard,
    Split,
    Wording,
    manifest_json,
    read_manifest,
    set_hash,
)
from coin_jax.data.sources import DataError

TASKS = (
    InstructionTask(
        "weather",
        ("report",),
        (
            Wording("weather/1", "{report} Rain?\n{options_}", "template"),
            Wording("weather/2", "Is it wet? {report}", "template"),
            Wording("rules/1", "Is it wett? {report}", "rule", of="weather/2", held_out=True),
        ),
        ("wet", "dry"),
        "CC0",
    ),
    InstructionTask("sums", ("a", "b"), (Wording("s/1", "{a}"), Wording("s/2", "{b}"))),
)


def write_set(folder, tasks=TASKS, **changes):
    """A manifest and shards of the sizes it says; what is in them is not looked at here."""
    splits = {
        "train": Split((Shard("train-0.parquet", 2, 3, "0" * 64),), (1, 1)),
        "evaluation": Split((), (0, 0)),
    }
    manifest = Manifest(tasks, splits, set_hash(tasks, splits), {"seed": 1})
    (folder / "train-0.parquet").write_bytes(b"abc")
    return write_manifest(folder, dataclasses.replace(manifest, **changes))


def write_manifest(folder, manifest):
    (folder / "manifest.json").write_text(manifest_json(manifest), encoding="utf-8")
    return manifest


def test_a_manifest_comes_back_as_it_was_written(tmp_path):
    manifest = write_set(tmp_path)
    assert read_manifest(tmp_path) == manifest


def test_the_hash_tells_sets_apart_and_not_records(tmp_path):
    manifest = write_set(tmp_path)
    other = dataclasses.replace(TASKS[0], licence="CC BY 4.0")
    assert set_hash((other, TASKS[1]), manifest.splits) != manifest.content_hash
    write_manifest(tmp_path, dataclasses.replace(manifest, record={"seed": 2}))
    assert read_manifest(tmp_path).content_hash == manifest.content_hash


def test_a_finished_prompt_is_told_from_a_template():
    assert Wording("a", "{report}").is_finished
    assert not Wording("a", "{report} ").is_finished
    assert not Wording("a", "{options_}").is_finished


def test_a_folder_without_a_set_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no contrastive set here.*manifest\.json.*No such file"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "something else"}, "not the manifest of a set"),
        ({"version": 2}, "version 2 of the format; this program reads version 1"),
        ({"tasks": "none"}, "tasks: .*array, found 'none'"),
        ({"splits": {}}, "splits: must be train and evaluation"),
        ({"content_hash": "../../elsewhere"}, "content_hash: does not fit"),
    ],
)
def test_a_manifest_that_cannot_be_used_says_which_field_and_why(tmp_path, changes, message):
    write_set(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            {"fields": ("report", "report")},
            "fields: 'report' stands there 2 times",
        ),
        (
            {"fields": ("text",)},
            r"tasks.0.*'weather/1'.*\{report\}; the task has opt",
        ),
        ({"answers": ()}, r"placeholder \{options_\}"),
        ({"answers": ("wet", "wet")}, "answers: 'wet' stands there 2 times"),
        ({"wordings": (Wording("w", "{report"),)}, "wordings: w: .*'{report'"),
        ({"name": "sums"}, "tasks: 'sums' stands there 2 times"),
        ({"name": ""}, "tasks: an empty name"),
    ],
)
def test_a_task_that_contradicts_itself_is_named(tmp_path, task, message):
    write_set(tmp_path, (dataclasses.replace(TASKS[0], **task), TASKS[1]))
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (Split((Shard("train-0.parquet", 3, 3, ""),), (1, 1)), "3 rows in the shards, 2 in the"),
        (Split((Shard("train-0.parquet", 2, 3, ""),), (2,)), "1 numbers for 2 tasks"),
        (Split((Shard("train-0.parquet", 2, 3, ""),), (3, -1)), "number of rows that cannot be"),
        (Split((Shard("../train-0.parquet", 2, 3, ""),), (1, 1)), "not the name of a file in"),
        (Split((Shard("train-1.parquet", 2, 3, ""),), (1, 1)), "train-1.*No such file.*complete"),
        (Split((Shard("train-0.parquet", 2, 4, ""),), (1, 1)), "3 bytes instead of 4.*complete"),
    ],
)
def test_shards_that_do_not_fit_are_named_before_they_are_read(tmp_path, train, message):
    manifest = write_set(tmp_path)
    splits = {**manifest.splits, "train": train}
    write_set(tmp_path, splits=splits, content_hash=set_hash(TASKS, splits))
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path)


HOSTILE = (None, True, -1, 10**4200, 1e300, "", "../x", "\ud800", [], {}, [[]], {"": {}})


def places(value, path=()):
    yield path
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*path, key))


def test_whatever_stands_in_a_manifest_ends_in_a_data_error(tmp_path):
    write_set(tmp_path)
    path = tmp_path / "manifest.json"
    original = json.loads(path.read_text())
    for place in list(places(original))[1:]:
        for hostile in HOSTILE:
            content = copy.deepcopy(original)
            parent = content
            for key in place[:-1]:
                parent = parent[key]
            if parent[place[-1]] == hostile or place[0] == "record":
                continue
            parent[place[-1]] = hostile
            path.write_text(json.dumps(content))
            with pytest.raises(DataError, match=r"manifest\.json"):
                read_manifest(tmp_path)


@pytest.mark.parametrize("text", [b"", b"\xff", b"[" * 100_000, b'{"format": ', b"null"])
def test_a_file_that_is_no_manifest_is_said_to_be_none(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(DataError, match=r"not JSON|not the manifest"):
        read_manifest(tmp_path)
