"""Suites: what a file becomes, which instances are drawn, and where they come from."""

import collections
import json
import re

import numpy as np
import pytest
from data_files import write_json, write_jsonl
from suite_files import FIELDS, GLUE, LABELS, ROOT, entry, file, loader, refused, rows, unreachable

from coin_jax.data.sources import DataError
from coin_jax.robustness.suite import load_suite, make_wording, overlaps, prompt
from coin_jax.robustness.suite_file import SuiteFile, TaskEntry


@pytest.fixture
def load(tmp_path):
    return loader(tmp_path)


# --- what a suite becomes -----------------------------------------------------------------


def test_the_example_of_the_documentation_loads(tmp_path):
    blocks = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "suites.md").read_text(), re.S)
    (tmp_path / "support.json").write_text(blocks[0])
    (tmp_path / "tickets.jsonl").write_text(blocks[1])
    suite = load_suite(tmp_path / "support.json")
    (task,) = suite.tasks
    assert (suite.name, suite.clean, suite.sample, suite.seed) == ("support", "plain", 100, 0)
    assert (task.answers, task.frozen_words) == (("urgent", "can wait"), ("customer",))
    assert suite.conditions == ("plain", "reworded")
    (login,) = (one for one in task.instances if one.inputs["subject"] == "Login")
    texts = [prompt(task, wording, login).text for wording in suite.wordings]
    assert texts == [
        "Login\nNobody gets in.\nDoes the customer need help today?\n"
        "OPTIONS:\n- urgent\n- can wait",
        "Subject: Login\nBody: Nobody gets in.\nIs this urgent, or can it wait?",
        "Answer urgent or can wait for the customer's message: "
        "Subject: Login\nBody: Nobody gets in. Answer:",
        "A customer wrote:\nSubject: Login\nBody: Nobody gets in.\nHow soon must we reply?\n"
        "OPTIONS:\n- urgent\n- can wait",
    ]
    assert prompt(task, suite.wordings[0], login).answer == "urgent"
    (typing, synonyms), (attack,) = suite.perturbations, suite.attacks
    assert (typing.of, typing.copies, typing.settings) == ("plain", 2, {"share": 0.2})
    assert (synonyms.of, synonyms.optional) == ("reworded", True)
    assert (attack.of, attack.instances, attack.budget) == ("plain", 50, 200)


def test_the_documented_keys_are_those_of_the_schema():
    text = (ROOT / "docs" / "suites.md").read_text()
    tables = text.split("## Keys")[1].split("Places of data")[0].split("A task:")
    for table, schema in zip(tables, (SuiteFile, TaskEntry), strict=True):
        documented = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", table, re.M)))
        assert set(documented) == set(schema.__dataclass_fields__)


PROMPTBENCH_CONTENT = {
    "sst2": "{sentence}",
    "cola": "{sentence}",
    "qqp": "Question 1: {question1} Question 2: {question2}",
    "mrpc": "Sentence 1: {sentence1} Sentence 2: {sentence2}",
    "mnli": "Premise: {premise} Hypothesis: {hypothesis}",
    "qnli": "Question: {question} Context: {sentence}",
    "rte": "Sentence 1: {sentence1} Sentence 2: {sentence2}",
    "wnli": "Sentence 1: {sentence1} Sentence 2: {sentence2}",
}
"""As PromptBench's dataload.py lays the fields out."""


def test_a_promptbench_style_file_loads_as_it_is(load):
    """Also where it calls a condition as a key of ours, and holds tasks that have no labels."""
    ends = {task: [f"Classify {task}: ", f"Is {task} so?"] for task in GLUE}
    suite = load(
        {"clean": {**ends, "mmlu": ["About {}:"]}, "semantic": {"sst2": ["{content} So?"]}}
    )
    assert suite.clean == "clean"
    assert [task.name for task in suite.tasks] == list(GLUE)
    for task in suite.tasks:
        instance = task.instances[0]
        content = PROMPTBENCH_CONTENT[task.name].format(**instance.inputs)
        first, second = suite.wordings_of(task.name, "clean")
        assert prompt(task, first, instance).text == f"Classify {task.name}: {content} Answer:"
        assert prompt(task, second, instance).text == f"Is {task.name} so? {content} Answer:"
    (wording,) = suite.wordings_of("sst2", "semantic")
    instance = suite.task("sst2").instances[0]
    assert (
        prompt(suite.task("sst2"), wording, instance).text == f"{instance.inputs['sentence']} So?"
    )
    assert suite.task("qqp").answers == ("not_equivalent", "equivalent")
    assert [note for note in suite.notes if "LEFT OUT" in note and "mmlu" in note]


def test_a_byte_order_mark_does_no_harm(load, tmp_path):
    (tmp_path / "windows.json").write_text(json.dumps(file()), encoding="utf-8-sig")
    assert len(load_suite(tmp_path / "windows.json").wordings) == 1


def test_only_what_comes_from_the_instance_may_be_cut(load):
    suite = load({"clean": {"mrpc": ["Same? "]}})
    pieces = prompt(suite.tasks[0], suite.wordings[0], suite.tasks[0].instances[0]).pieces
    kept = "".join(piece.text for piece in pieces if not piece.is_field)
    assert kept == "Same? Sentence 1:  Sentence 2:  Answer:"


def test_a_field_may_be_called_content(load, tmp_path):
    write_jsonl(
        tmp_path / "blog.jsonl",
        [
            {"task": "blog", "inputs": {"title": "T", "content": "C"}, "label": label}
            for label in "ab"
        ],
    )
    task = entry(data="blog.jsonl", fields=["title", "content"], answers={"a": "old", "b": "new"})
    prompts = {"plain": {"blog": ["{title}: {content} Old?", "Old? "]}}
    suite = load({"tasks": {"blog": task}, "prompts": prompts})
    texts = [prompt(suite.tasks[0], w, suite.tasks[0].instances[0]).text for w in suite.wordings]
    assert texts == ["T: C Old?", "Old? Title: T Content: C Answer:"]
    refused(
        load,
        {"tasks": {"blog": task}, "prompts": {"plain": {"blog": ["{content} Old?"]}}},
        "prompts.plain.blog[0]: no place for {title}",
    )


def test_a_perturbed_prompt_keeps_the_form_of_its_origin(load):
    suite = load(file(prompts={"plain": {"sst2": ["How is this? ", "{sentence} Well?"]}}))
    task, instance = suite.tasks[0], suite.tasks[0].instances[0]
    made = [
        make_wording(task, "typos", 0, "Hwo is this? ", origin=0),
        make_wording(task, "typos", 1, "{sentence} Wlel?", origin=1),
    ]
    sentence = instance.inputs["sentence"]
    assert [prompt(task, wording, instance).text for wording in made] == [
        f"Hwo is this? {sentence} Answer:",
        f"{sentence} Wlel?",
    ]
    larger = suite.with_wordings(made)
    assert larger.conditions == ("plain", "typos")
    assert [wording.name for wording in larger.wordings_of("sst2", "typos")] == [
        "typos/0",
        "typos/1",
    ]
    assert [wording.text for wording in made] == ["Hwo is this? ", "{sentence} Wlel?"]
    assert suite.conditions == ("plain",)


def test_fields_are_renamed_and_labels_may_share_an_answer(load):
    task = entry(
        data="mnli.dev.jsonl",
        fields={"premise": "text", "hypothesis": "claim"},
        answers={"contradiction": "wrong", "neutral": "wrong", "entailment": "right"},
    )
    suite = load({"tasks": {"mnli": task}, "prompts": {"p": {"mnli": ["{claim}, {text}"]}}})
    (mnli,) = suite.tasks
    assert mnli.answers == ("wrong", "right")
    assert collections.Counter(one.label for one in mnli.instances) == {0: 4, 1: 2}
    assert mnli.majority == pytest.approx(4 / 6)
    one = mnli.instances[0]
    assert (
        prompt(mnli, suite.wordings[0], one).text == f"{one.inputs['claim']}, {one.inputs['text']}"
    )


# --- what is drawn ------------------------------------------------------------------------


def uneven(count: int) -> list[dict]:
    """A quarter of them negative."""
    return [
        {
            "task": "sst2",
            "inputs": {"sentence": f"film {number}"},
            "label": "negative" if number % 4 == 0 else "positive",
        }
        for number in range(count)
    ]


def keys(suite) -> list[str]:
    return [instance.key for instance in suite.tasks[0].instances]


def test_a_sample_has_the_labels_in_the_shares_of_the_data(load, tmp_path):
    write_jsonl(tmp_path / "sst2.dev.jsonl", uneven(400))
    for sample in (4, 20, 100):
        task = load(file(), sample=sample).tasks[0]
        labels = [instance.label for instance in task.instances]
        assert collections.Counter(labels) == {0: sample // 4, 1: sample * 3 // 4}
        assert task.majority == 0.75
        assert len(task.attack_instances) == 400 - sample
        assert not {one.key for one in task.instances} & {one.key for one in task.attack_instances}


def test_a_sample_depends_on_the_seed_and_not_on_the_order_of_rows(load, tmp_path):
    data = uneven(200)
    write_jsonl(tmp_path / "sst2.dev.jsonl", data)
    first, again, other, more = (
        keys(load(file(), sample=sample, seed=seed))
        for sample, seed in ((20, 0), (20, 0), (20, 1), (40, 0))
    )
    assert first == again == more[:20]
    assert set(first) != set(other)
    write_jsonl(
        tmp_path / "sst2.dev.jsonl", [data[i] for i in np.random.default_rng(0).permutation(200)]
    )
    assert keys(load(file(sample=20, seed=5), seed=0)) == first
    write_jsonl(tmp_path / "sst2.dev.jsonl", [*data, *data, *uneven(204)[200:]])
    assert len(set(first) & set(keys(load(file(), sample=20)))) >= 18  # rows repeat, four are new


def test_all_instances_are_taken_where_no_sample_is_named(load):
    task = load(file()).tasks[0]
    assert len(task.instances) == 6
    assert not task.attack_instances


# --- where instances come from ------------------------------------------------------------


def test_files_of_the_data_folder_come_first_and_rows_of_other_tasks_are_passed_over(
    load, tmp_path
):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    write_jsonl(folder / "sst2.dev.jsonl", rows("cola") + rows("sst2", 3))
    suite = load(file(), data_folder=folder)
    assert len(suite.tasks[0].instances) == 3
    assert str(folder) in suite.read[0]
    (folder / "sst2.dev.jsonl").unlink()
    assert len(load(file(), data_folder=folder).tasks[0].instances) == 6
    with pytest.raises(DataError, match="nowhere is no folder"):
        load(file(), data_folder=tmp_path / "nowhere")


def test_the_hub_is_read_as_published(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(path, name=None, *, split=None):
        asked.append((path, name, split))
        task = "mnli" if name == "mnli_matched" else name
        columns = {field: [f"{field} {i}" for i in range(6)] for field in FIELDS[task]}
        features = {field: datasets.Value("string") for field in FIELDS[task]}
        features |= {"label": datasets.ClassLabel(names=LABELS[task])}
        features |= {"idx": datasets.Value("int32")}
        numbers = [i % len(LABELS[task]) for i in range(6)]
        columns |= {"label": numbers, "idx": list(range(6))}
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    ours = json.loads((ROOT / "suites" / "glue.json").read_text())
    answers = {task: entry["answers"] for task, entry in ours["tasks"].items()}
    same = {task: {label: label for label in labels} for task, labels in LABELS.items()}
    same["qqp"] = {"not_duplicate": "not_equivalent", "duplicate": "equivalent"}
    files = ((ours, answers), ({"p": {task: ["So? "] for task in GLUE}}, same))
    for content, answers in files:
        asked.clear()
        suite = load_suite(write_json(tmp_path / "mine.json", content))
        assert asked == [
            ("nyu-mll/glue", "mnli_matched" if task == "mnli" else task, "validation")
            for task in GLUE
        ]
        assert [task.name for task in suite.tasks] == list(GLUE)
        for task in suite.tasks:
            for instance in task.instances:
                number = int(next(iter(instance.inputs.values())).split()[-1])
                label = LABELS[task.name][number % len(LABELS[task.name])]
                assert task.answers[instance.label] == answers[task.name][label]


def test_tfds_is_read_as_published(load, monkeypatch):
    """Its own mock makes rows by the published schema; needs no download."""
    tensorflow_datasets = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("importlib_resources")
    content = {
        "tasks": {
            task: entry(
                data=f"tfds:glue/{task}",
                fields=FIELDS[task],
                answers={label: f"{number} {label}" for number, label in enumerate(LABELS[task])},
            )
            for task in ("sst2", "qqp")
        },
        "prompts": {"plain": {"sst2": ["How is it? "], "qqp": ["Same? "]}},
    }
    monkeypatch.setattr("socket.getaddrinfo", lambda *address: [])  # is there a network? yes
    with tensorflow_datasets.testing.mock_data(num_examples=8):
        suite = load(content)
        published = tensorflow_datasets.load("glue/qqp", split="validation")
        expected = {
            (row["question1"].decode(), row["question2"].decode(), int(row["label"]))
            for row in published.as_numpy_iterator()
        }
    found = {
        (one.inputs["question1"], one.inputs["question2"], one.label)
        for one in suite.task("qqp").instances
    }
    assert found == expected
    assert len(suite.task("sst2").instances) == 8


def test_missing_data_names_the_file_to_put_and_where(load, tmp_path, monkeypatch):
    asked = unreachable(monkeypatch)
    for task in ("cola", "rte"):
        (tmp_path / f"{task}.dev.jsonl").unlink()
    lines = refused(load, {"p": {task: ["So? "] for task in GLUE}}, "tasks.cola.data", "no network")
    assert [line.split(": ")[1] for line in lines] == ["tasks.cola.data", "tasks.rte.data"]
    assert f"into {tmp_path / 'cola.dev.jsonl'}" in lines[0]
    assert "a long story" not in lines[0]
    assert asked == ["nyu-mll/glue", "glue/cola"]  # no second wait for the same service
    remote = file(tasks={"sst2": entry(data="hub:some/where")})
    refused(load, remote, f"into {tmp_path / 'sst2.dev.jsonl'}, and name that file")


def test_an_optional_task_without_data_is_left_out_with_a_note(load, tmp_path, monkeypatch):
    unreachable(monkeypatch)
    (tmp_path / "cola.dev.jsonl").unlink()
    tasks = {
        "sst2": entry(),
        "cola": entry(data=["cola.dev.jsonl", "hub:a/cola"], optional=True),
    }
    suite = load(file(tasks=tasks, prompts={"plain": {"sst2": ["So? "], "cola": ["So? "]}}))
    assert [task.name for task in suite.tasks] == ["sst2"]
    assert {wording.task for wording in suite.wordings} == {"sst2"}
    (note,) = (note for note in suite.notes if "LEFT OUT" in note)
    assert "task 'cola'" in note
    assert "hub:a/cola: ConnectionError: no network" in note
    with pytest.raises(ValueError, match="unknown task 'cola'"):
        suite.task("cola")
    alone = {"tasks": {"cola": tasks["cola"]}, "prompts": {"plain": {"cola": ["So? "]}}}
    refused(load, alone, "tasks: none is left; LEFT OUT: no data of task 'cola'")


# --- overlap with training ----------------------------------------------------------------


def test_a_prompt_that_was_trained_on_is_named(load):
    prompts = {
        "plain": {
            "sst2": [
                "How is this film? ",
                "{sentence}\nGood or bad?",
                "{content} My own words.",
                "{sentence}:",  # without words it cannot be told
            ],
            "mrpc": ["Alike? "],
        }
    }
    suite = load(file(prompts=prompts))
    training = [
        "{text}  how is THIS film\n{options_}",
        "GOOD, or bad: {review}",
        "Sentence 1: {a}\nSentence 2: {b}\nAlike?",
        "{sentence}",
        "My own other words. {sentence}",
    ]
    found = overlaps(suite, training)
    assert len(found) == 2
    for sentence, name, text, template in zip(
        found,
        ("plain/0", "plain/1"),
        prompts["plain"]["sst2"],
        training[:2],
        strict=False,
    ):
        for part in ("'sst2'", name, repr(text), repr(template)):
            assert part in sentence
    appended = "Alike? Sentence 1: {a} Sentence 2: {b} Answer:"  # as the model is asked
    assert len(overlaps(suite, [appended])) == 1
    assert overlaps(suite, []) == []
