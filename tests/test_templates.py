"""Templates: parsing, rendering, which of them are wordings, which wordings are held out."""

import pytest
from data_files import WEATHER, write_json

from coin_jax.data.sources import DataError
from coin_jax.data.templates import (
    asking_templates,
    parse_template,
    read_templates,
    render_options,
    split_wordings,
)


def wordings(tmp_path, entries, fields=("report",)):
    templates = read_templates([write_json(tmp_path / "t.json", {"weather": entries})])
    return asking_templates(templates["weather"], fields, "weather")


def test_options_are_listed_as_flan_prints_them():
    assert render_options(("yes", "no")) == "OPTIONS:\n- yes\n- no"


def test_rendering_fills_fields_options_and_nothing_else():
    template = parse_template('A "{a}" {{literal}} {options_}\n{b}{a}', "name")
    prompt = template.render({"a": "1", "b": "2"}, "OPTIONS:\n- x", "x")
    assert prompt.text == 'A "1" {literal} OPTIONS:\n- x\n21'
    assert [piece.text for piece in prompt.pieces if piece.is_field] == ["1", "2", "1"]
    assert prompt.answer == "x"


def test_braces_in_a_field_are_text():
    prompt = parse_template("{a}!", "name").render({"a": "{b} {answer} {{ }"}, "", "secret")
    assert prompt.text == "{b} {answer} {{ }!"


@pytest.mark.parametrize(
    "text", ["{a", "a}", "{}", "{a.b}", "{a[0]}", "{a!r}", "{report!r}", "{report:>9}", "{a b}"]
)
def test_anything_but_a_plain_name_in_braces_is_an_error_that_names_the_template(tmp_path, text):
    with pytest.raises(DataError, match=r"t\.json: task 'weather', template 2: "):
        wordings(tmp_path, [WEATHER[0], {"input": text, "target": "{answer}"}])


def test_an_unknown_placeholder_is_an_error_with_file_task_number_and_known_fields(tmp_path):
    entries = [*WEATHER, {"input": "{raport} {options_}", "target": "{answer}"}]
    with pytest.raises(DataError) as caught:
        wordings(tmp_path, entries, ("report", "town"))
    assert str(caught.value) == (
        f"{tmp_path / 't.json'}: task 'weather', template 6: unknown placeholder {{raport}}; the "
        "fields are report, town, besides options_ and answer"
    )


def test_templates_that_do_not_ask_for_the_answer_are_left_out_and_counted(tmp_path):
    reverse = [
        {"input": "Write a {answer} report.", "target": "{report}"},
        {"input": "Tell me about the weather.", "target": "{report}"},
        {"input": "Which one?\n{options_}", "target": "{answer}"},
        {"input": "{report} It is {answer}, is it not?", "target": "{answer}"},
    ]
    kept, left_out = wordings(tmp_path, [*WEATHER, *reverse])
    assert [wording.name for wording in kept] == [f"weather/{i}" for i in (1, 2, 3, 4)]
    assert left_out == 5


def test_templates_with_the_same_input_are_one_wording(tmp_path):
    kept, left_out = wordings(tmp_path, [WEATHER[0], WEATHER[1], WEATHER[0]])
    assert [wording.name for wording in kept] == ["weather/1", "weather/2"]
    assert left_out == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "expected {task"),
        ({"a": {}}, "task 'a': expected a list"),
        ({"a": [{"input": "x"}]}, "task 'a', template 1: expected non-empty texts"),
        ({"a": [{"input": "x", "target": 3}]}, "task 'a', template 1: expected non-empty texts"),
    ],
)
def test_a_template_file_of_another_form_is_an_error_that_says_where(tmp_path, content, reason):
    with pytest.raises(DataError) as caught:
        read_templates([write_json(tmp_path / "t.json", content)])
    assert str(caught.value).startswith(f"{tmp_path / 't.json'}: {reason}")


def test_a_template_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path):
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(DataError, match=r"t\.json: not JSON"):
        read_templates([tmp_path / "t.json"])
    with pytest.raises(DataError, match=r"u\.json: cannot be read"):
        read_templates([tmp_path / "u.json"])


def test_held_out_wordings_depend_on_the_seed_and_the_list_alone(tmp_path):
    kept, _ = wordings(tmp_path, WEATHER)
    splits = [split_wordings(kept, 2, seed, "weather") for seed in range(30)]
    assert splits == [split_wordings(kept, 2, seed, "weather") for seed in range(30)]
    for training, held_out in splits:
        assert len(training) == len(held_out) == 2
        assert {*training, *held_out} == set(kept)
    assert len({held_out for _, held_out in splits}) == 6  # all choices of 2 out of 4 come


def test_a_task_needs_two_wordings_to_train_on(tmp_path):
    kept, _ = wordings(tmp_path, WEATHER)
    with pytest.raises(DataError, match=r"'weather': 4 different wordings .* keeps 3 .* least 2"):
        split_wordings(kept, 3, 0, "weather")
