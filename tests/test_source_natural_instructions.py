"""Super-NaturalInstructions task files, as a source of contrastive sets."""

import gzip
import json

import pytest
from data_files import write_json

from coin_jax.config import TaskConfig
from coin_jax.curation.config import SourceConfig
from coin_jax.curation.sources import make_source
from coin_jax.data.sources import DataError
from coin_jax.data.templates import parse_template

PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)


def example(number, note="-"):
    return {
        "input": f"{number}",
        "output": "Yes" if number in PRIMES else "No",
        "explanation": note,
    }


def task_file(**changes) -> dict:
    """A task of the published schema."""
    return {
        "Contributors": ["Some One"],
        "Source": ["synthetic"],
        "URL": ["https://example.org"],
        "Categories": ["Mathematics"],
        "Reasoning": [],
        "Definition": ["Tell whether a number of {1, 2, ...} is prime."],
        "Input_language": ["English"],
        "Output_language": ["English"],
        "Instruction_language": ["English"],
        "Domains": ["Mathematics"],
        "Positive Examples": [
            example(2, "Only {1} and 2 divide it."),
            example(4, "2 divides it."),
            example(5, "Only 1 and 5 divide it."),
            example(6, "3 divides it."),
        ],
        "Negative Examples": [{"input": "9", "output": "Yes", "explanation": "3 divides it."}],
        "Instances": [
            {
                "id": f"task1-{number}",
                "input": f" {number}\n",
                "output": [example(number)["output"]],
            }
            for number in range(7, 19)
        ],
        "Instance License": ["CC BY 4.0"],
    } | changes


@pytest.fixture
def read(tmp_path):
    """Makes a source of a folder of task files."""

    def source(seed=0, /, files=None, **settings):
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        for name, content in (files or {"task1_prime": task_file()}).items():
            write_json(folder / f"{name}.json", content)
        return make_source(
            SourceConfig("natural_instructions", files=(str(folder),), **settings), seed
        )

    return source


def asked(source, wording, index=0, task="task1_prime"):
    """The prompt of an instance in one wording."""
    (text,) = (one.template for one in source.tasks[task].wordings if one.name == wording)
    inputs = source.instance(index).inputs
    return parse_template(text, wording).render(inputs, "", "").text


def test_an_instance_is_its_input_and_its_first_output(read, tmp_path):
    content = task_file(
        Instances=[{"id": "task1-a", "input": " 7 ", "output": [" Yes", "It is"]}] * 2
    )
    source = read(files={"task1_prime": content})
    instance = source.instance(1)
    assert len(source) == 2
    assert instance.task == source.task_of(1) == "task1_prime"
    assert (instance.inputs, instance.target) == ({"input": "7"}, "Yes")
    assert instance.where == f"{tmp_path / 'tasks' / 'task1_prime.json'}, instance 2 (task1-a)"


def test_wordings_are_the_encodings_of_the_paper(read):
    source = read()
    definition = "Definition: Tell whether a number of {1, 2, ...} is prime.\n\n"
    positive = (
        "Positive Example 1 -\nInput: 2\nOutput: Yes\n\n"
        "Positive Example 2 -\nInput: 4\nOutput: No\n\n"
    )
    explained = (
        "Positive Example 1 -\nInput: 2\nOutput: Yes\nExplanation: Only {1} and 2 divide it.\n\n"
        "Positive Example 2 -\nInput: 4\nOutput: No\nExplanation: 2 divides it.\n\n"
    )
    negative = "Negative Example 1 -\nInput: 9\nOutput: Yes\n\n"
    ask = "Now complete the following example -\nInput: 7\nOutput:"
    for name, expected in {
        "definition": definition + ask,
        "positive": positive + ask,
        "definition+positive": definition + positive + ask,
        "definition+positive+negative": definition + positive + negative + ask,
        "definition+positive+explanation": definition + explained + ask,
    }.items():
        assert asked(source, name) == expected
    assert {wording.origin for wording in source.tasks["task1_prime"].wordings} == {"source"}


def test_more_wordings_show_examples_drawn_by_the_seed(read):
    def drawn(seed):
        return [
            wording.template
            for wording in read(seed).tasks["task1_prime"].wordings
            if wording.name.startswith("definition+positive/")
        ]

    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(4)}) > 1
    texts = [wording.template for wording in read().tasks["task1_prime"].wordings]
    assert len(set(texts)) == len(texts)


def test_examples_that_are_only_dashes_are_none(read):
    dash = [{"input": "-", "output": "-", "explanation": "-"}]
    content = task_file(**{"Positive Examples": dash, "Negative Examples": dash})
    (wording,) = read(files={"task1_prime": content}).tasks["task1_prime"].wordings
    assert wording.name == "definition"


def test_older_files_with_one_definition_and_no_licence_are_read(read):
    content = task_file(Definition="Is it prime?")
    del content["Instance License"]
    source = read(files={"task1_prime": content}, licence="Apache-2.0")
    assert source.tasks["task1_prime"].licence == "Apache-2.0"
    assert asked(source, "definition").startswith("Definition: Is it prime?\n\nNow")
    assert read().tasks["task1_prime"].licence == "CC BY 4.0"


def test_every_definition_is_a_wording(read):
    content = task_file(Definition=["Is it prime?", "Can it be divided?"])
    source = read(files={"task1_prime": content})
    assert asked(source, "definition/2").startswith("Definition: Can it be divided?")


def test_few_outputs_that_repeat_are_a_closed_set(read):
    free = [{"id": f"{n}", "input": f"{n}", "output": [f"text {n}"]} for n in range(30)]
    source = read(files={"task1_prime": task_file(), "task2_free": task_file(Instances=free)})
    assert source.tasks["task1_prime"].answers == ("No", "Yes")
    assert source.tasks["task2_free"].answers == ()


def test_wordings_that_leave_no_room_for_the_input_are_left_out(read):
    names = {wording.name for wording in read(longest_wording=150).tasks["task1_prime"].wordings}
    assert "definition" in names
    assert "definition+positive" not in names
    with pytest.raises(DataError, match=r"longer than the 20 characters of longest_wording"):
        read(longest_wording=20)


def test_tasks_are_ranges_and_can_be_chosen_and_thinned(read):
    files = {f"task{n}_prime": task_file() for n in (1, 2, 3)}
    source = read(
        files=files,
        name="ni",
        tasks=(TaskConfig("task3_prime"), TaskConfig("task1_prime")),
        rows_per_task=5,
    )
    names = [source.task_of(index) for index in range(len(source))]
    assert names == ["ni/task1_prime"] * 5 + ["ni/task3_prime"] * 5
    places = [source.instance(index) for index in range(len(source))]
    assert [one.task for one in places] == names
    assert len({one.where for one in places}) == 10


def test_instances_that_cannot_be_used_say_what_is_wrong(read, tmp_path):
    odd = [
        {"id": "a", "input": "7", "output": []},
        {"id": "b", "input": "", "output": ["Yes"]},
        {"id": "c", "input": "7", "output": "Yes"},
        "seven",
    ]
    source = read(files={"task1_prime": task_file(Instances=odd)})
    file = tmp_path / "tasks" / "task1_prime.json"
    for index, fault in enumerate(
        (
            "instance 1 (a): `output` must be a list of texts, and is []",
            "instance 2 (b): `input` is empty",
            "instance 3 (c): `output` must be a list of texts, and is 'Yes'",
            "instance 4: must be a JSON object, and is 'seven'",
        )
    ):
        error = source.instance(index)
        assert isinstance(error, DataError)
        assert str(error) == f"{file}, {fault}"


def test_files_that_are_no_tasks_are_counted(read, tmp_path):
    source = read(files={"task1_prime": task_file(), "splits": {"train": ["task1_prime"]}})
    assert list(source.tasks) == ["task1_prime"]
    assert f"1 files left out, the first: {tmp_path / 'tasks' / 'splits.json'}" in source.notes[1]
    with pytest.raises(DataError, match=r"no file of task 'task9'"):
        read(tasks=(TaskConfig("task9"),))


def test_tasks_in_other_languages_are_counted(read):
    files = {"task1_prime": task_file(), "task2_de": task_file(Input_language=["German"])}
    assert "1 of the tasks in other languages than English" in read(files=files).notes[0]


def test_a_gzipped_file_is_read(read, tmp_path):
    path = tmp_path / "task4_prime.json.gz"
    path.write_bytes(gzip.compress(json.dumps(task_file()).encode()))
    source = make_source(SourceConfig("natural_instructions", files=(str(path),)), 0)
    assert list(source.tasks) == ["task4_prime"]
    assert source.instance(0).target == "Yes"
