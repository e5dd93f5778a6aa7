"""Finished prompts of templates that share rows, as a source of contrastive sets."""

import itertools
import random

import pytest
from data_files import real_data, write_jsonl

from coin_jax.config import TaskConfig
from coin_jax.curation.config import SourceConfig
from coin_jax.curation.sources import make_source
from coin_jax.data.sources import DataError

WORDS = [a + b + c for a, b, c in itertools.product("bdgklmnprs", "aeiou", "bdgklmnprs")]


def text(dataset: str, row: int, words: int = 8) -> str:
    """What a row of a data set is about: words of its own."""
    return " ".join(random.Random(f"{dataset} {row}").choices(WORDS, k=words))


def prompts(template: str, dataset: str, target, rows=range(40), asks="What about {}, my friend?"):
    """Rows of one template. target: of a row, as a function of its number."""
    return [
        {
            "template": template,
            "row": row,
            "prompt": asks.format(text(dataset, row)),
            "target": target(row),
        }
        for row in rows
    ]


def yes_no(row: int) -> str:
    return "Yes" if text("label", row, 1) < "ma" else "No"


@pytest.fixture
def read(tmp_path):
    def source(*rows, seed=0, **settings):
        file = write_jsonl(tmp_path / "prompts.jsonl", itertools.chain.from_iterable(rows))
        return make_source(SourceConfig("prompts", files=(str(file),), **settings), seed)

    return source


def test_a_row_under_templates_of_one_task_is_one_instance_of_several_prompts(read, tmp_path):
    source = read(
        prompts("pets_ask", "pets", yes_no),
        prompts("pets_tell", "pets", lambda row: f" {yes_no(row).lower()}. ", asks="{}? Say it."),
    )
    (task,) = source.tasks.values()
    assert task.name == "pets/ask"
    assert [wording.name for wording in task.wordings] == ["pets_ask", "pets_tell"]
    assert all(wording.is_finished for wording in task.wordings)
    assert task.answers == ("No", "Yes")
    assert len(source) == 40
    instance = source.instance(3)
    assert instance.task == source.task_of(3) == task.name
    assert instance.inputs == {
        "prompt_1": f"What about {text('pets', 3)}, my friend?",
        "prompt_2": f"{text('pets', 3)}? Say it.",
    }
    assert instance.target == yes_no(3)
    assert instance.where == f"{tmp_path / 'prompts.jsonl'}:4 (and 1 more prompts)"


def test_data_sets_are_told_apart_by_their_rows_though_their_names_begin_alike(read):
    source = read(
        prompts("zoo_pets_ask", "pets", yes_no),
        prompts("zoo_pets_tell", "pets", yes_no, asks="{}? Say it."),
        prompts("zoo_birds_ask", "birds", yes_no),
        prompts("zoo_birds_tell", "birds", yes_no, asks="{}? Say it."),
    )
    assert list(source.tasks) == ["zoo_birds/ask", "zoo_pets/ask"]
    assert source.notes[0].startswith("4 templates of 2 data sets; 2 tasks with 80 instances, 80 ")


def test_templates_with_other_names_are_never_compared(read):
    with pytest.raises(DataError, match="no two templates ask the same; there are 2 templates"):
        read(prompts("cats_ask", "pets", yes_no), prompts("dogs_ask", "pets", yes_no))


def test_row_numbers_that_mean_other_instances_part_templates_of_one_name(read):
    shifted = prompts("pets_shifted", "elsewhere", yes_no, asks="{}? Say it.")
    source = read(
        prompts("pets_ask", "pets", yes_no), prompts("pets_tell", "pets", yes_no), shifted
    )
    (task,) = source.tasks.values()
    assert [wording.name for wording in task.wordings] == ["pets_ask", "pets_tell"]
    assert "1 templates left out that no other shares a task with: pets_shifted" in source.notes


def test_a_template_that_shows_less_of_the_instance_belongs_to_its_data_set(read):
    def title_only(row):
        return {
            "template": "pets_title",
            "row": row,
            "prompt": f"Judge: {' '.join(text('pets', row).split()[:4])}",
            "target": yes_no(row),
        }

    source = read(prompts("pets_ask", "pets", yes_no), map(title_only, range(40)))
    assert len(source.tasks["pets/ask"].wordings) == 2


def test_two_questions_about_the_same_texts_are_two_tasks_even_if_most_answers_are_the_same(read):
    def seldom(name):
        return lambda row: "Yes" if text(name, row, 1) < "de" else "No"

    one, other = seldom("one"), seldom("other")
    agreeing = sum(one(row) == other(row) for row in range(200)) / 200
    assert 0.6 < agreeing < 0.95  # most rows agree, by chance
    source = read(
        prompts("pets_likes_1", "pets", one, range(200)),
        prompts("pets_likes_2", "pets", one, range(200), "{}? Say it."),
        prompts("pets_hates_1", "pets", other, range(200)),
        prompts("pets_hates_2", "pets", other, range(200), "{}? Say it."),
    )
    assert [len(task.wordings) for task in source.tasks.values()] == [2, 2]
    assert source.notes[0].startswith("4 templates of 1 data sets; 2 tasks")


def test_disagreeing_rows_are_not_paired_and_counted(read):
    def but(rows):
        return lambda row: "I cannot tell" if row in rows else text("answer", row, 2)

    source = read(
        prompts("pets_a", "pets", but([])),
        prompts("pets_b", "pets", but([5, 7]), asks="{}? Say it."),
        prompts("pets_c", "pets", but([7, 9]), asks="Speak of {}!"),
    )
    found = {}
    for index in range(len(source)):
        instance = source.instance(index)
        found[instance.inputs.get("prompt_1") or instance.where] = instance
    assert len(found) == 40
    fields = {
        row: set(found[f"What about {text('pets', row)}, my friend?"].inputs)
        for row in range(40)
        if row != 7
    }
    assert fields[5] == {"prompt_1", "prompt_3"}
    assert fields[9] == {"prompt_1", "prompt_2"}
    assert fields[4] == {"prompt_1", "prompt_2", "prompt_3"}
    (seventh,) = (one for one in found.values() if "prompt_1" not in one.inputs)
    assert seventh.target == "I cannot tell"
    assert set(seventh.inputs) == {"prompt_2", "prompt_3"}
    disagreeing = "3 rows whose targets disagree between templates: 3 prompts of them left out"
    assert disagreeing in source.notes
    assert source.notes[0].endswith(f" {37 * 3 + 3} pairs of prompts")


def test_of_few_rows_most_must_agree(read):
    wet = {0: "wet", 1: "dry", 2: "dry"}
    other = wet | {2: "wet"}
    source = read(
        prompts("pets_a", "pets", wet.get, range(3)),
        prompts("pets_b", "pets", other.get, range(3), "{}? Say it."),
    )
    assert len(source) == 2
    assert source.notes[1].startswith("1 rows whose targets disagree")


def test_prompts_of_a_row_for_themselves_and_repeated_ones_are_counted(read):
    source = read(
        prompts("pets_a", "pets", yes_no),
        prompts("pets_b", "pets", yes_no, range(30), "{}? Say it."),
        prompts("pets_b", "pets", yes_no, range(2), "{}? Say it."),
    )
    assert len(source) == 30
    assert "10 prompts left out that have their row for themselves" in source.notes
    assert "2 prompts left out whose template has their row already" in source.notes


def test_free_answers_stay_as_they_are_mostly_written(read):
    def answer(row):
        return text("answer", row, 2)

    source = read(
        prompts("pets_a", "pets", lambda row: answer(row).upper()),
        prompts("pets_b", "pets", answer, asks="{}? Say it."),
        prompts("pets_c", "pets", answer, asks="Speak of {}!"),
    )
    assert source.tasks["pets/a"].answers == ()
    assert source.instance(0).target == answer(0)


def test_tasks_can_be_chosen_and_thinned_under_the_name_of_the_source(read):
    rows = [
        prompts(f"{name}_{place}", name, yes_no, asks=asks)
        for name in ("pets", "birds")
        for place, asks in (("a", "{}? Say it."), ("b", "Speak of {}!"))
    ]
    source = read(*rows, name="t0", tasks=(TaskConfig("birds/a"),), rows_per_task=6, licence="x")
    assert [source.task_of(index) for index in range(len(source))] == ["t0/birds/a"] * 6
    assert source.tasks["t0/birds/a"].licence == "x"
    wheres = {source.instance(index).where for index in range(len(source))}
    again = read(*rows, name="t0", tasks=(TaskConfig("birds/a"),), rows_per_task=6)
    assert wheres == {again.instance(index).where for index in range(len(again))}
    with pytest.raises(DataError, match=r"no task 'fish/a'; there are 4 templates: birds_a, bir"):
        read(*rows, tasks=(TaskConfig("fish/a"),))


def test_rows_that_cannot_be_used_are_instances_that_say_what_is_wrong(read, tmp_path):
    odd = [
        {"template": "pets_a", "row": 50, "prompt": "x", "target": ""},
        {"template": None, "row": 51, "prompt": "x", "target": "y"},
        {"template": "pets_a", "row": None, "prompt": "x", "target": "y"},
    ]
    blank = [{"template": "pets_a", "row": 60, "prompt": " ", "target": "y"}]
    source = read(
        odd,
        ["{"],
        prompts("pets_a", "pets", yes_no),
        prompts("pets_b", "pets", yes_no, asks="{}? Say it."),
        blank,
        [{**blank[0], "template": "pets_b"}],
    )
    file = tmp_path / "prompts.jsonl"
    faults = [str(source.instance(index)) for index in range(len(source) - 5, len(source))]
    assert sorted(faults) == [
        f"{file}:1: `target` is empty",
        f"{file}:2: `template` is missing",
        f"{file}:3: `row` must be a number or text, and is None",
        faults[-1],
        f"{file}:85: `prompt` is empty",
    ]
    assert f"{file}:4: not JSON" in faults[-1]
    assert [source.task_of(index) for index in range(40, 45)] == ["pets/a", "", "", "", ""]


def test_real_prompts_fall_into_the_data_sets_that_their_names_tell():
    """T0's training prompts; the numbers were found by looking at them."""
    file = real_data("t0_prompts.jsonl.gz")
    source = make_source(SourceConfig("prompts", files=(str(file),)), 0)
    by_dataset = {}
    for name in source.tasks:
        by_dataset.setdefault(name.split("/")[0], []).append(name)
    assert {"glue_mrpc", "glue_qqp", "duorc_SelfRC", "duorc_ParaphraseRC"} <= by_dataset.keys()
    # "Negative?" is not "positive?", and "2 stars" is not "2".
    assert [len(source.tasks[name].wordings) for name in by_dataset["amazon_polarity"]] == [2, 3]
    assert [len(source.tasks[name].wordings) for name in by_dataset["yelp_review_full"]] == [5, 2]
    # Titles were asked of the same plots, so only the questions are instances.
    (quoref,) = by_dataset["quoref"]
    assert len(source.tasks[quoref].wordings) == 10
    assert source.tasks["glue_qqp/answer"].answers == ("no", "yes")
    instances = [source.instance(index) for index in range(len(source))]
    assert sum(isinstance(one, DataError) for one in instances) == 1400  # TREC's empty targets
