"""Task files with templates, as a source of contrastive sets."""

import pytest
from data_files import WEATHER, weather_rows, write_json, write_jsonl

from coin_jax.config import TaskConfig
from coin_jax.curation.config import SourceConfig
from coin_jax.curation.sources import make_source
from coin_jax.data.sources import DataError

FITS = TaskConfig("weather", fields={"text": "report"}, answers={"rain": "wet", "sun": "dry"})


@pytest.fixture
def read(tmp_path):
    """Makes a source of these rows and templates."""

    def source(rows, templates=None, seed=0, **settings):
        settings = {"tasks": (FITS,), **settings}
        files = (str(write_jsonl(tmp_path / "rows.jsonl", rows)),)
        templates = templates or {"weather": WEATHER}
        template_files = (str(write_json(tmp_path / "templates.json", templates)),)
        config = SourceConfig("tasks", files=files, template_files=template_files, **settings)
        return make_source(config, seed)

    return source


def test_an_instance_has_the_templates_fields_and_the_answer_of_its_label(read, tmp_path):
    source = read(weather_rows(4))
    assert len(source) == 4
    instance = source.instance(1)
    assert instance.task == source.task_of(1) == "weather"
    assert instance.inputs == {"report": "sun in town number 1"}
    assert instance.target == "dry"
    assert instance.where == f"{tmp_path / 'rows.jsonl'}:2"


def test_wordings_are_the_templates_that_ask_for_the_answer_named_by_their_list(read):
    source = read(weather_rows(4), licence="CC0")
    task = source.tasks["weather"]
    assert [wording.name for wording in task.wordings] == [f"weather/{n}" for n in (1, 2, 3, 4)]
    assert task.wordings[2].template == "What about the ground after this? {report}"
    assert {wording.origin for wording in task.wordings} == {"source"}
    assert (task.fields, task.answers, task.licence) == (("report",), ("wet", "dry"), "CC0")
    assert "1 templates left out that do not ask for the answer" in source.notes[0]


def test_without_configured_answers_labels_that_are_few_and_repeat_are_a_closed_set(read):
    fields = (TaskConfig("weather", fields={"text": "report"}),)
    assert read(weather_rows(4), tasks=fields).tasks["weather"].answers == ("rain", "sun")


def test_free_answers_are_asked_only_in_wordings_that_list_no_options(read):
    rows = weather_rows(6, labels=[f"answer {n}" for n in range(6)])
    source = read(rows, tasks=(TaskConfig("weather", fields={"text": "report"}),))
    task = source.tasks["weather"]
    assert task.answers == ()
    assert [wording.name for wording in task.wordings] == ["weather/3"]
    assert source.instance(4).target == "answer 4"


def test_instances_of_a_task_are_neighbours_under_the_name_of_the_source(read):
    other = [{**row, "task": "climate"} for row in weather_rows(3)]
    rows = [row for pair in zip(weather_rows(3), other, strict=True) for row in pair]
    source = read(
        rows,
        {"weather": WEATHER},
        tasks=(FITS, TaskConfig("climate", "weather", FITS.fields, FITS.answers)),
        name="sky",
    )
    names = [source.task_of(index) for index in range(len(source))]
    assert names == ["sky/weather"] * 3 + ["sky/climate"] * 3
    assert [source.instance(index).task for index in range(len(source))] == names
    assert list(source.tasks) == ["sky/weather", "sky/climate"]


def test_rows_per_task_draws_by_seed_and_keeps_what_it_draws(read):
    def chosen(seed, rows_per_task=5):
        source = read(weather_rows(40), seed=seed, rows_per_task=rows_per_task)
        return [source.instance(index).where for index in range(len(source))]

    assert len(set(chosen(0))) == 5
    assert chosen(0) == chosen(0)
    assert chosen(0) != chosen(1)
    assert len(chosen(0, 50)) == 40


def test_rows_that_cannot_be_used_are_instances_that_say_what_is_wrong(read, tmp_path):
    blank = {"task": "weather", "inputs": {"text": " "}, "label": "rain"}
    odd_label = {"task": "weather", "inputs": {"text": "hail"}, "label": "hail"}
    no_field = {"task": "weather", "inputs": {"words": "hail"}, "label": "rain"}
    source = read([*weather_rows(2), blank, odd_label, no_field, "{", {"task": "weather"}])
    found = [source.instance(index) for index in range(len(source))]
    assert [isinstance(one, DataError) for one in found] == [False] * 2 + [True] * 5
    assert [source.task_of(index) for index in (4, 5, 6)] == ["weather", "", ""]
    for error, line, fault in (
        (found[2], 3, "`inputs.text` is empty"),
        (found[3], 4, "label 'hail' of task 'weather' is none of 'rain', 'sun'"),
        (found[4], 5, "no field 'report'"),
        (found[5], 6, "not JSON"),
        (found[6], 7, "`inputs` must map"),
    ):
        assert f"{tmp_path / 'rows.jsonl'}:{line}: " in str(error)
        assert fault in str(error)


def test_what_is_not_there_is_named_with_what_is(read):
    with pytest.raises(DataError, match=r"no row of task 'hail'.*the tasks there are 'weather'"):
        read(weather_rows(2), tasks=(TaskConfig("hail"),))
    with pytest.raises(DataError, match=r"no templates named 'weather'.*there are snow, wind"):
        read(weather_rows(2), {"wind": WEATHER, "snow": WEATHER})
    with pytest.raises(DataError, match=r"no usable row; .*rows.jsonl:1: not JSON"):
        read(["{"])
    with pytest.raises(DataError, match=r"no template of 'weather' asks for its answer"):
        read(weather_rows(4), {"weather": [{"input": "Write {report}", "target": "{report}"}]})


def test_templates_that_need_more_than_the_rows_have_are_left_out_with_a_note(read):
    title = {"input": "{title}: {report} Wet?", "target": "{answer}"}
    source = read(weather_rows(2), {"weather": [title, *WEATHER]})
    names = [wording.name for wording in source.tasks["weather"].wordings]
    assert names == [f"weather/{number}" for number in (2, 3, 4, 5)]
    assert "and others that need title" in source.notes[0]
    with pytest.raises(DataError, match=r"with the fields report; some need title"):
        read(weather_rows(2), {"weather": [title]})


def test_rows_of_other_tasks_are_counted(read):
    source = read([*weather_rows(2), {"task": "z", "inputs": {"a": "b"}, "label": "c"}])
    assert len(source) == 2
    assert "1 rows of tasks that are not used: z" in source.notes
