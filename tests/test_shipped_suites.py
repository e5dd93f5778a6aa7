"""suites/glue.json and suites/builtin.json."""

import itertools
import re
import subprocess
import sys

import pytest
from data_files import real_data
from suite_files import GLUE, ROOT, loader, unreachable

from coin_jax.data.builtin import ANSWERS, builtin_tasks
from coin_jax.data.builtin.wordings import WORDINGS
from coin_jax.data.templates import read_templates
from coin_jax.robustness.suite import load_suite, overlaps


@pytest.fixture
def shipped(tmp_path):
    loader(tmp_path)
    return {
        "glue": load_suite(ROOT / "suites" / "glue.json", data_folder=tmp_path),
        "builtin": load_suite(ROOT / "suites" / "builtin.json"),
    }


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", text.lower()))


def test_each_task_has_three_task_and_three_role_prompts_and_six_rewordings(shipped):
    for name, tasks in (("glue", GLUE), ("builtin", tuple(ANSWERS))):
        suite = shipped[name]
        assert tuple(task.name for task in suite.tasks) == tasks
        assert suite.conditions == ("task-oriented", "role-oriented", "semantic")
        assert suite.clean == "task-oriented"
        for task in tasks:
            counts = [len(suite.wordings_of(task, condition)) for condition in suite.conditions]
            assert counts == [3, 3, 6]
        assert {request.method for request in suite.perturbations} == {
            "deepwordbug", "textbugger", "textfooler", "checklist", "stresstest",
        }  # fmt: skip
        assert [one.method for one in suite.perturbations if one.optional] == ["textfooler"]
        assert [one.method for one in suite.attacks] == ["deepwordbug"]


def test_every_glue_prompt_names_its_answers(shipped):
    suite = shipped["glue"]
    for wording in suite.wordings:
        for answer in suite.task(wording.task).answers:
            named = f" {' '.join(words(answer))} " in f" {' '.join(words(wording.text))} "
            assert named or "options_" in wording.template.placeholders, wording


def test_no_two_prompts_of_a_task_are_near_copies(shipped):
    """Of their pairs of neighbouring words, answers aside, not many are shared."""
    for suite in shipped.values():
        for task in suite.tasks:
            answers = {word for answer in task.answers for word in words(answer)}
            pairs = []
            for wording in (one for one in suite.wordings if one.task == task.name):
                kept = [word for word in words(wording.text) if word not in answers]
                pairs.append(set(itertools.pairwise(kept)))
            for place, one in enumerate(pairs):
                for other in pairs[:place]:
                    assert len(one & other) < 0.35 * len(one | other)


def test_the_builtin_suite_asks_new_things_of_held_out_scenes(shipped):
    suite = shipped["builtin"]
    old = [text for wordings in WORDINGS.values() for part in wordings for text in part]
    assert overlaps(suite, old) == []
    trained = {row["sentence"] for row in builtin_tasks(4000, 0)[0].training.inputs}
    watched = {row["sentence"] for row in builtin_tasks(8, 0)[0].evaluation.inputs}
    for task in suite.tasks:
        sentences = {instance.inputs["sentence"] for instance in task.instances}
        assert len(sentences) == 100
        assert not sentences & trained
        assert len(sentences & watched) < 5  # what keep-best has seen is not what is reported


def test_the_glue_suite_loads_from_the_real_task_files(monkeypatch):
    unreachable(monkeypatch)
    folder = real_data("tasks")
    suite = load_suite(ROOT / "suites" / "glue.json", data_folder=folder)
    there = [task for task in GLUE if (folder / f"{task}.dev.jsonl").exists()]
    assert [task.name for task in suite.tasks] == there
    for task in suite.tasks:
        assert len(task.instances) == 200
        assert 0.3 < task.majority < 0.8
    assert len([note for note in suite.notes if "LEFT OUT" in note]) == len(GLUE) - len(there)
    flan = read_templates([real_data("templates", "flan.json")])
    assert overlaps(suite, [pair.input for pairs in flan.values() for pair in pairs]) == []


def test_the_builtin_suite_needs_neither_tensorflow_nor_datasets_nor_jax():
    program = (
        "import sys; from coin_jax.robustness.suite import load_suite; "
        "load_suite('suites/builtin.json'); "
        "print({'tensorflow', 'tensorflow_datasets', 'datasets', 'jax'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
