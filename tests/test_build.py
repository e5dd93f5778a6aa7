"""Building a contrastive set: what goes in, what is left out, and what the manifest says of it."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet
import pytest
from data_files import WEATHER, weather_rows, write_json, write_jsonl

from coin_jax.config import ConfigError, TaskConfig
from coin_jax.curation.build import DECONTAMINATION, build
from coin_jax.curation.config import (
    FilterConfig,
    NegativeConfig,
    ParaphraseConfig,
    SetConfig,
    SourceConfig,
    validate,
)
from coin_jax.curation.paraphrasers import Usage
from coin_jax.data.contrastive_set import load_set
from coin_jax.data.sources import DataError

ANSWERS = {"rain": "wet", "sun": "dry"}


@pytest.fixture
def weather(tmp_path):
    """make(rows, **settings of SetConfig): a config of one task in WEATHER's four wordings."""

    def make(rows, templates=WEATHER, **settings) -> SetConfig:
        source = SourceConfig(
            files=(str(write_jsonl(tmp_path / "weather.jsonl", rows)),),
            template_files=(str(write_json(tmp_path / "templates.json", {"weather": templates})),),
            tasks=(TaskConfig("weather", fields={"text": "report"}, answers=ANSWERS),),
        )
        return validate(SetConfig(sources=(source,), **settings))

    return make


def rows_of(folder, split="train"):
    shards = sorted(folder.glob(f"{split}-*.parquet"))
    return [row for shard in shards for row in pyarrow.parquet.read_table(shard).to_pylist()]


class Suffixes:
    """A paraphraser that appends words; `changes` are what it appends to every text."""

    name, origin = "suffixes", "chat"

    def __init__(self, *changes):
        self.changes, self.usage, self.notes, self.asked = changes, Usage(), [], []

    def reword(self, requests, progress):
        self.asked += requests
        progress(len(requests), len(requests), "")
        return [[request.text + change for change in self.changes] for request in requests]


def test_every_instance_is_written_once_and_the_splits_share_no_input(tmp_path, weather):
    manifest = build(weather(weather_rows(200)), tmp_path / "set")
    train, evaluation = rows_of(tmp_path / "set"), rows_of(tmp_path / "set", "evaluation")
    texts = [row["inputs"][0] for row in train + evaluation]
    assert sorted(texts) == sorted(row["inputs"]["text"] for row in weather_rows(200))
    assert {row["target"] for row in train} == {"wet", "dry"}
    assert 2 <= len(evaluation) <= 25  # 5% of 200, drawn row by row
    assert manifest.splits["train"].rows_of_task == (len(train),)
    record = manifest.record["tasks"]["weather"]
    assert (record["instances"], record["train"], record["evaluation"]) == (
        200,
        len(train),
        len(evaluation),
    )
    held_out = [wording for wording in manifest.tasks[0].wordings if wording.held_out]
    assert (len(manifest.tasks[0].wordings), len(held_out)) == (4, 2)


def test_the_same_config_gives_the_same_bytes_and_another_seed_another_split(tmp_path, weather):
    config = weather(weather_rows(200))
    first, again = build(config, tmp_path / "a"), build(config, tmp_path / "b")
    assert first.content_hash == again.content_hash
    other = build(weather(weather_rows(200), seed=1), tmp_path / "c")
    assert other.content_hash != first.content_hash


def test_what_is_left_out_is_counted_by_its_reason(tmp_path, weather):
    rows = weather_rows(40)
    rows.append(rows[0])  # equal to another
    rows.append({"task": "weather", "inputs": {"text": "fog"}, "label": "fog"})
    rows.append("not json")
    manifest = build(weather(rows, held_out_share=0.0), tmp_path / "set")
    assert manifest.record["left_out"] == {"near-duplicate": 1, "unreadable": 1}
    assert manifest.record["sources"][0]["unreadable_without_a_task"] == 1
    assert len(rows_of(tmp_path / "set")) == 40
    with pytest.raises(DataError, match=r"weather\.jsonl:4[23]"):
        build(weather(rows, bad_rows="error"), tmp_path / "strict")
    assert not (tmp_path / "strict").exists()


def test_a_quota_is_shared_out_and_small_tasks_leave_theirs_to_the_others(tmp_path):
    rows = [row | {"task": "small"} for row in weather_rows(6)]
    rows += [row | {"task": "large"} for row in weather_rows(100)]
    source = SourceConfig(
        files=(str(write_jsonl(tmp_path / "rows.jsonl", rows)),),
        template_files=(str(write_json(tmp_path / "t.json", {"weather": WEATHER})),),
        tasks=tuple(
            TaskConfig(name, "weather", {"text": "report"}, ANSWERS) for name in ("small", "large")
        ),
    )
    config = SetConfig(sources=(source,), pairs=30, held_out_share=0.0)
    manifest = build(config, tmp_path / "set")
    assert manifest.splits["train"].rows_of_task == (6, 24)
    numbers = [int(row["inputs"][0].split()[-1]) for row in rows_of(tmp_path / "set")[6:]]
    assert max(numbers) > 50, "the quota is drawn from the whole task, not its first rows"


def test_a_task_with_one_answer_has_no_negatives_and_is_left_out(tmp_path):
    rows = weather_rows(20) + [row | {"task": "always"} for row in weather_rows(20, ("rain",))]
    source = SourceConfig(
        files=(str(write_jsonl(tmp_path / "rows.jsonl", rows)),),
        template_files=(str(write_json(tmp_path / "t.json", {"weather": WEATHER})),),
        tasks=tuple(
            TaskConfig(name, "weather", {"text": "report"}, ANSWERS)
            for name in ("always", "weather")
        ),
    )
    manifest = build(SetConfig(sources=(source,), held_out_share=0.0), tmp_path / "set")
    assert manifest.splits["train"].rows_of_task == (0, 20)
    assert manifest.record["tasks"]["always"]["left_out"] == {"one answer in the task": 20}
    assert len(load_set(tmp_path / "set", 0)) == 20


def test_templates_are_reworded_once_and_rewordings_pass_the_filters(tmp_path, weather):
    paraphraser = Suffixes(
        "\nPlease take care to answer well.",
        "\nIt is wet.",  # names an answer more
        "",  # a copy
        "\nThink about all that is said above here.",
        "\nBe as quick with this as you can.",
    )
    config = weather(weather_rows(40), paraphrase=ParaphraseConfig(("chat",), wordings=2))
    manifest = build(config, tmp_path / "set", paraphrasers=[paraphraser])
    asked = {request.text for request in paraphraser.asked}
    kept_back = {wording.template for wording in manifest.tasks[0].wordings if wording.held_out}
    assert len(asked) == 2
    assert not asked & kept_back
    new = [wording for wording in manifest.tasks[0].wordings if wording.origin == "chat"]
    assert [wording.template.rsplit("\n", 1)[1] for wording in new] == [
        "Please take care to answer well.",
        "Think about all that is said above here.",
    ] * 2
    originals = {wording.name: wording.template for wording in manifest.tasks[0].wordings}
    assert all(wording.template.startswith(originals[wording.of]) for wording in new)
    faults = manifest.record["tasks"]["weather"]["wordings_left_out"]
    assert faults == {"label words": 2, "near-copy": 2}


def test_typing_errors_by_rule_are_no_copies(tmp_path, weather):
    paraphraser = Suffixes(" q", " zz")
    paraphraser.origin = "rule"
    config = weather(weather_rows(40), paraphrase=ParaphraseConfig(("rules",), wordings=2))
    manifest = build(config, tmp_path / "set", paraphrasers=[paraphraser])
    origins = [wording.origin for wording in manifest.tasks[0].wordings]
    assert origins.count("rule") == 4, manifest.record["tasks"]["weather"]["wordings_left_out"]


def test_instructions_of_an_instance_are_reworded_and_its_input_stays(tmp_path):
    rows = [
        {"instruction": f"Name the colour of {{x}} number {i}.", "input": "A", "output": f"c{i}"}
        for i in range(12)
    ]
    config = SetConfig(
        sources=(SourceConfig(kind="alpaca", files=(str(write_json(tmp_path / "a.json", rows)),)),),
        paraphrase=ParaphraseConfig(("chat",), wordings=1),
        held_out_share=0.0,
    )
    manifest = build(
        config, tmp_path / "set", paraphrasers=[Suffixes(" Say it in a word or two, no more.")]
    )
    assert len(rows_of(tmp_path / "set")) == 12, manifest.record["left_out"]
    instructions = dict(
        zip(manifest.tasks[0].fields, rows_of(tmp_path / "set")[3]["inputs"], strict=True)
    )
    assert instructions["instruction"] == "Name the colour of {x} number 3."
    assert instructions["reworded_suffixes_1"] == (
        "Name the colour of {x} number 3. Say it in a word or two, no more."
    )
    source = load_set(tmp_path / "set", 0)
    shown = [source.get(3, epoch).sequences[:2] for epoch in range(30)]
    texts = {prompt.text for pair in shown for prompt in pair}
    assert all("{x} number 3" in text and "A" in text for text in texts)
    assert sum("no more" in text for text in texts) == len(texts) / 2


def test_evaluation_prompts_and_instances_are_left_out_and_every_hit_is_named(tmp_path, weather):
    rows = weather_rows(40)
    long = "on this fine day there was rain in the town of many small bridges and towers"
    rows.append({"task": "weather", "inputs": {"text": f"yes {long} again"}, "label": "rain"})
    suite = {
        "tasks": {
            "weather": {
                "data": "evaluation.jsonl",
                "fields": ["text"],
                "answers": {"rain": "wet", "sun": "dry"},
            }
        },
        "prompts": {"plain": {"weather": ["Say wet or dry.\n{text}\n{options_}"]}},
    }
    write_json(tmp_path / "suite.json", suite)
    write_jsonl(
        tmp_path / "evaluation.jsonl",
        [
            {"task": "weather", "inputs": {"text": long}, "label": "rain"},
            {"task": "weather", "inputs": {"text": "sun all day"}, "label": "sun"},
        ],
    )
    filters = FilterConfig(suites=(str(tmp_path / "suite.json"),))
    manifest = build(weather(rows, filters=filters, held_out_share=0.0), tmp_path / "set")
    record = manifest.record["tasks"]["weather"]
    assert record["left_out"] == {"evaluation instance": 1}
    assert record["wordings_left_out"] == {"evaluation prompt": 1}
    assert len(manifest.tasks[0].wordings) == 3
    found = json.loads((tmp_path / "set" / DECONTAMINATION).read_text())["found"]
    assert sorted((hit["kind"], hit["training_task"]) for hit in found) == [
        ("instance", "weather"),
        ("prompt", "weather"),
    ]
    assert next(hit for hit in found if hit["kind"] == "instance")["place"].endswith(":41")


def test_hardest_negatives_are_the_nearest_with_another_answer(tmp_path, weather):
    def embed(texts):
        """On a circle, by the number in the text: neighbours in number are near."""
        angles = np.array([int(text.split()[-1]) / 100 for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)

    config = weather(
        weather_rows(40),
        held_out_share=0.0,
        negatives=NegativeConfig("hardest", "a T5", keep=1),
    )
    build(config, tmp_path / "set", negatives=embed)
    # Answers take turns, so a neighbour in number has the other one.
    for number, row in enumerate(rows_of(tmp_path / "set")):
        assert len(row["negatives"]) == 1
        assert abs(row["negatives"][0] - number) == 1


def test_other_instructions_of_the_same_input_stand_against_it(tmp_path):
    rows = weather_rows(20) + [
        {"task": "town", "inputs": row["inputs"], "label": str(number % 5)}
        for number, row in enumerate(weather_rows(20))
    ]
    towns = [{"input": f"{{report}}\nWhich town? {end}", "target": "{answer}"} for end in "ab"]
    templates = {"weather": WEATHER, "town": towns}
    source = SourceConfig(
        files=(str(write_jsonl(tmp_path / "rows.jsonl", rows)),),
        template_files=(str(write_json(tmp_path / "t.json", templates)),),
        tasks=(
            TaskConfig("weather", "", {"text": "report"}, ANSWERS),
            TaskConfig("town", "", {"text": "report"}),
        ),
    )
    negatives = NegativeConfig("other_instruction", keep=1)
    config = SetConfig(sources=(source,), held_out_share=0.0, negatives=negatives)
    build(config, tmp_path / "set")
    written = rows_of(tmp_path / "set")
    for number, row in enumerate(written):
        (other,) = row["negatives"]
        assert other == (number + 20) % 40
        assert written[other]["inputs"] == row["inputs"]
    prompts = load_set(tmp_path / "set", 0).get(0, 0).sequences
    assert "Which town?" not in prompts[0].text
    assert "Which town?" in prompts[2].text


def test_an_output_that_is_there_is_refused_before_anything_is_read(tmp_path, weather):
    config = weather(weather_rows(20))
    build(config, tmp_path / "set")
    missing = SetConfig(sources=(SourceConfig(files=("no such file",), template_files=("x",)),))
    with pytest.raises(DataError, match="is there already"):
        build(missing, tmp_path / "set")
    with pytest.raises(DataError, match="matches no file"):
        build(missing, tmp_path / "set", overwrite=True)
    assert load_set(tmp_path / "set", 0), "the old set is still whole"


def test_a_task_in_two_sources_is_named(tmp_path, weather):
    config = weather(weather_rows(20))
    twice = SetConfig(sources=config.sources * 2)
    with pytest.raises(DataError, match=r"sources\.1: task 'weather' is in an earlier source"):
        build(twice, tmp_path / "set")


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"sources": ()}, "sources: must name"),
        ({"held_out_share": 1.5}, "held_out_share = 1.5: must be at least 0 and at most 0.9"),
        ({"paraphrase": ParaphraseConfig(("model",))}, "paraphrase.checkpoint"),
        ({"negatives": NegativeConfig("hardest")}, "negatives.checkpoint"),
        ({"filters": FilterConfig(least_similarity=0.5)}, "filters.similarity_checkpoint"),
        ({"filters": FilterConfig(length_ratio=float("nan"))}, "filters.length_ratio"),
        ({"seed": "one"}, "seed"),
        ({"sources": (SourceConfig(),)}, "sources.0.files"),
    ],
)
def test_values_no_set_can_be_built_with_are_refused_by_name(settings, fault):
    good = SourceConfig(files=("x",), template_files=("y",))
    with pytest.raises(ConfigError) as error:
        validate(SetConfig(**{"sources": (good,), **settings}))
    assert fault in str(error.value)
