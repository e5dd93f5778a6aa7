"""FLAN, Alpaca, the CoIN pairs and tables of any columns, in files as they are published."""

import json
import random

import pyarrow
import pyarrow.parquet
import pytest
from data_files import real_data, write_csv, write_json, write_jsonl

from coin_jax.config import TaskConfig
from coin_jax.curation.config import SourceConfig
from coin_jax.curation.source import Instance
from coin_jax.curation.sources import make_source
from coin_jax.curation.sources.matching import AMBIGUOUS, TURNED, UNKNOWN, PromptReader
from coin_jax.data.set_format import Wording
from coin_jax.data.sources import DataError
from coin_jax.data.templates import TemplatePair, read_templates, render_options

RIVER = [
    {
        "input": "Claim: {claim}\nReport: {report}\n\nIs the claim right?\n\n{options_}",
        "target": "{answer}",
    },
    {"input": '{report}\n\nDoes this show that "{claim}"?', "target": "{answer}"},
    {"input": "{report} Write a claim that is {answer}.", "target": "{claim}"},
]
"""Two wordings, and a template that turns the task round, as FLAN has them."""


def pairs(entries):
    return [TemplatePair(entry["input"], entry["target"], "here") for entry in entries]


# --- reading fields out of prompts -----------------------------------------------------------


def test_the_fields_and_options_of_a_prompt_are_read_out_of_it_again():
    reader = PromptReader(pairs(RIVER), "river")
    assert [wording.name for wording in reader.wordings] == ["river/1", "river/2"]
    prompt = "Claim: It is high.\nReport: Line one.\n\nLine two.\n\nIs the claim right?\n\n"
    prompt += "OPTIONS:\n- yes\n- it is not"
    assert reader.read(prompt) == (
        {"claim": "It is high.", "report": "Line one.\n\nLine two."},
        ("yes", "it is not"),
    )
    assert reader.read('It fell.\n\nDoes this show that "it is {high}"?') == (
        {"report": "It fell.", "claim": "it is {high}"},
        (),
    )


def test_blanks_around_a_prompt_and_their_number_do_not_count():
    reader = PromptReader(pairs(RIVER), "river")
    assert reader.read(' It  fell. \nDoes  this show that "x"?\n') == (
        {"report": "It  fell.", "claim": "x"},
        (),
    )


def test_prompts_without_a_reading_say_why():
    reader = PromptReader(pairs(RIVER), "river")
    assert reader.read("Is the river high?") == UNKNOWN
    assert reader.read('It fell. Does this show that "x"?') == UNKNOWN  # no line end between
    assert reader.read("It fell. Write a claim that is right.") == TURNED
    twice = 'It fell.\n\nDoes this show that "x"?\n\nDoes this show that "y"?'
    assert reader.read(twice) == AMBIGUOUS


def test_of_templates_that_fit_the_one_with_most_text_of_its_own_is_meant():
    entries = [
        {"input": "{text}\nRight?", "target": "{answer}"},
        {"input": "Read this.\n{text}\nRight?", "target": "{answer}"},
    ]
    for order in (entries, entries[::-1]):
        assert PromptReader(pairs(order), "t").read("Read this.\nA.\nRight?") == (
            {"text": "A."},
            (),
        )


def test_a_field_that_comes_twice_must_say_the_same():
    reader = PromptReader(pairs([{"input": "{a} and {b}, or {a}?", "target": "{answer}"}]), "t")
    assert reader.read("x and y, or x?") == ({"a": "x", "b": "y"}, ())
    assert reader.read("x and y, or z?") == UNKNOWN


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("mnli", ("premise", "hypothesis")),
        ("glue_mrpc", ("sentence1", "sentence2")),
        ("rte", ("premise", "hypothesis")),
        ("cola", ("sentence",)),
    ],
)
def test_real_prompts_are_read_as_they_were_made(task, fields):
    reader = PromptReader(read_templates([real_data("templates", "flan.json")])[task], task)
    rows = [
        json.loads(line)
        for line in real_data("tasks", f"{task.removeprefix('glue_')}.train.jsonl").open()
    ][:300]
    labels = tuple(sorted({row["label"] for row in rows}))
    choose = random.Random(0).choice
    for row in rows:
        wording = choose(reader.wordings)
        inputs = dict(zip(fields, row["inputs"].values(), strict=True))
        prompt = wording.render(inputs, render_options(labels), "").text
        read = reader.read(prompt)
        assert read.inputs == {
            name: inputs[name].strip() for name in wording.placeholders - {"options_"}
        }
        assert read.options == (labels if "options_" in wording.placeholders else ())


# --- the FLAN collection ---------------------------------------------------------------------


def flan_row(task, number, template, answers=("yes", "no"), target=None):
    entry = RIVER[template]
    texts = {
        "claim": f"claim {number}",
        "report": f"report {number}",
        "answer": target or answers[number % 2],
        "options_": render_options(answers),
    }
    return {
        "inputs": entry["input"].format(**texts),
        "targets": entry["target"].format(**texts),
        "task": f"{task}_10templates",
    }


@pytest.fixture
def flan(tmp_path):
    """A folder as the hub has it, and templates of one of its two tasks."""
    for split, count in (("train", 30), ("test", 3)):
        folder = tmp_path / "flan" / split
        folder.mkdir(parents=True)
        for task in ("river_r1", "lake"):
            rows = [flan_row(task, i, i % 3) for i in range(count)]
            write_jsonl(folder / f"{task}_10templates_{split}.jsonl", rows)
    templates = write_json(tmp_path / "templates.json", {"river": RIVER})
    return SourceConfig("flan", files=(str(tmp_path / "flan"),), template_files=(str(templates),))


def instances(source):
    """All instances, checked against what the source says of them."""
    found = [source.instance(index) for index in range(len(source))]
    for index, instance in enumerate(found):
        if isinstance(instance, DataError):
            continue
        task = source.tasks[instance.task]
        assert source.task_of(index) == instance.task
        assert set(instance.inputs) <= set(task.fields)
        assert any(wording.placeholders <= instance.inputs.keys() for wording in task.wordings)
        assert not task.answers or instance.target in task.answers
    return found


def changed(config, **changes):
    return SourceConfig(**{**vars(config), **changes})


def test_flan_prompts_become_instances_that_every_wording_of_their_task_can_ask(flan):
    source = make_source(flan, 0)
    task = source.tasks["river_r1"]  # served by the templates of its beginning
    assert task.fields == ("claim", "report")
    assert task.wordings == tuple(
        Wording(f"river/{number}", RIVER[number - 1]["input"], "template") for number in (1, 2)
    )
    assert task.answers == ("yes", "no")  # as the prompts list them
    found = [instance for instance in instances(source) if instance.task == "river_r1"]
    file = f"{flan.files[0]}/train/river_r1_10templates_train.jsonl"
    assert found == [
        Instance(
            "river_r1",
            {"claim": f"claim {i}", "report": f"report {i}"},
            ("yes", "no")[i % 2],
            f"{file}:{i + 1}",
        )
        for i in range(30)
        if i % 3 < 2
    ]


def test_flan_prompts_that_no_wording_made_are_left_out_and_counted(flan):
    notes = make_source(flan, 0).notes
    assert any(
        "20 instances" in note and f"10 prompts left out that {TURNED}" in note for note in notes
    )


def test_flan_tasks_without_templates_keep_finished_prompts(flan):
    source = make_source(flan, 0)
    lake = source.tasks["lake"]
    assert [wording.is_finished for wording in lake.wordings] == [True]
    row = flan_row("lake", 0, 0)
    prompts = [instance for instance in instances(source) if instance.task == "lake"]
    assert len(prompts) == 30
    assert prompts[0].inputs == {"prompt": row["inputs"]}
    assert prompts[0].target == row["targets"]


def test_flan_options_that_differ_from_prompt_to_prompt_are_a_field(flan, tmp_path):
    rows = [flan_row("river", i, i % 2, (f"a{i}", f"b{i}")) for i in range(20)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    source = make_source(changed(flan, files=(str(file),)), 0)
    task = source.tasks["river"]
    assert task.answers == ()
    assert "{options_}" not in task.wordings[0].template
    (listed,) = set(task.fields) - {"claim", "report"}
    found = instances(source)
    assert found[2].inputs[listed] == "OPTIONS:\n- a2\n- b2"
    assert listed not in found[3].inputs  # its prompt lists none
    assert task.wordings[0].template.format(**found[2].inputs) == rows[2]["inputs"]


def test_flan_options_in_another_order_are_the_same_answers(flan, tmp_path):
    orders = [("yes", "no"), ("no", "yes")]
    rows = [flan_row("river", i, 0, orders[i // 5 % 2]) for i in range(15)]
    source = make_source(changed(flan, files=(str(write_jsonl(tmp_path / "r.jsonl", rows)),)), 0)
    assert source.tasks["river"].answers == ("no", "yes")
    assert len(instances(source)) == 15


def test_of_templates_for_beginnings_of_a_task_the_longest_serves(flan, tmp_path):
    lists = {"river": RIVER[1:], "river_r1": RIVER, "riv": RIVER[1:]}
    templates = write_json(tmp_path / "more.json", lists)
    source = make_source(changed(flan, template_files=(str(templates),)), 0)
    assert [wording.name for wording in source.tasks["river_r1"].wordings] == [
        "river_r1/1",
        "river_r1/2",
    ]


def test_wordings_that_list_options_are_left_out_where_no_answers_are_known(flan, tmp_path):
    rows = [flan_row("river", i, 1, target=f"free {i}") for i in range(4)]
    source = make_source(changed(flan, files=(str(write_jsonl(tmp_path / "r.jsonl", rows)),)), 0)
    (task,) = source.tasks.values()
    assert (task.answers, [wording.name for wording in task.wordings]) == ((), ["river/2"])
    assert len(instances(source)) == 4


def test_a_task_whose_prompts_are_all_left_out_is_none(flan, tmp_path):
    rows = [flan_row("river", i, 2) for i in range(4)] + [flan_row("lake", i, 0) for i in range(4)]
    source = make_source(changed(flan, files=(str(write_jsonl(tmp_path / "r.jsonl", rows)),)), 0)
    assert source.tasks.keys() == {"lake"}
    assert len(instances(source)) == 4


def test_tasks_of_flan_are_chosen_renamed_and_mapped_by_the_config(flan):
    tasks = (TaskConfig("lake_10templates", templates="river", answers={"yes": "Y", "no": "N"}),)
    source = make_source(changed(flan, tasks=tasks, name="flan"), 0)
    (task,) = source.tasks.values()
    assert task.name == "flan/lake"
    assert task.answers == ("Y", "N")
    assert {instance.target for instance in instances(source)} == {"Y", "N"}
    assert any("30 rows of tasks that are not used: river_r1" in note for note in source.notes)
    for task, reason in [
        (TaskConfig("sea"), "no row of task 'sea'"),
        (TaskConfig("lake", templates="sea"), "no templates named 'sea'"),
    ]:
        with pytest.raises(DataError, match=reason):
            make_source(changed(flan, tasks=(task,)), 0)


def test_rows_per_task_are_drawn_by_the_seed(flan):
    few = changed(flan, rows_per_task=6)
    chosen = [
        [instance.where for instance in instances(make_source(few, seed))] for seed in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    assert sum("lake" in where for where in chosen[0]) == 6
    assert sum("river" in where for where in chosen[0]) <= 6


def test_a_bad_row_of_flan_is_an_error_in_its_place(flan, tmp_path):
    rows = [
        flan_row("river", 0, 0),
        {"inputs": " ", "targets": "yes", "task": "river"},
        "{",
        {**flan_row("river", 1, 0), "targets": "\ud800"},
        {**flan_row("river", 1, 0), "targets": "perhaps"},
    ]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    source = make_source(changed(flan, files=(str(file),)), 0)
    found = {error for error in map(str, instances(source)) if error.startswith(str(file))}
    assert {error.removeprefix(str(file))[:45] for error in found} == {
        ":2: `inputs` is empty",
        ":3: not JSON in UTF-8: Expecting property nam",
        ":4: `targets` is not valid UTF-8 at character",
        ":5: target 'perhaps' of task 'river' is none ",
    }
    write_jsonl(file, [{"text": "x"}])
    with pytest.raises(DataError, match="no row with the texts `inputs`, `targets` and `task`"):
        make_source(changed(flan, files=(str(file),)), 0)


# --- tables ----------------------------------------------------------------------------------


def alpaca_rows(count=40):
    """Instructions of their own, some without an input, and one that many rows share."""
    return [
        {
            "instruction": f"Say {{{i}}}." if i % 2 else "Sort the words.",
            "input": "" if i % 5 == 0 else f"words {i}",
            "output": f"answer {i}",
            "text": f"### Instruction {i}",
        }
        for i in range(count)
    ]


def write_alpaca(path):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(alpaca_rows()), path)
    else:
        write_json(path, [{k: v for k, v in row.items() if k != "text"} for row in alpaca_rows()])
    return path


@pytest.mark.parametrize("name", ["alpaca_data.json", "train-00000-of-00001.parquet"])
def test_alpaca_instructions_are_a_field_unless_many_rows_share_one(tmp_path, name):
    source = make_source(SourceConfig("alpaca", files=(str(write_alpaca(tmp_path / name)),)), 0)
    assert len(source) == 40
    own = {task.name: task for task in source.tasks.values() if task.own_instruction}
    assert own["alpaca"].fields == ("input", "instruction")
    assert own["alpaca_without_input"].fields == ("instruction",)
    (shared,) = (task for task in source.tasks.values() if not task.own_instruction)
    assert shared.fields == ("input",)
    assert all("Sort the words." in wording.template for wording in shared.wordings)
    texts = {
        instance.where: (
            instance,
            [
                wording.template.format(**instance.inputs)
                for wording in source.tasks[instance.task].wordings
            ],
        )
        for instance in instances(source)
    }
    for number, row in enumerate(alpaca_rows(), start=1):
        instance, prompts = texts[f"{tmp_path / name}, row {number}"]
        assert instance.target == row["output"]
        assert len(set(prompts)) == 3
        assert all(row["instruction"] in prompt for prompt in prompts)
        assert all(row["input"] in prompt for prompt in prompts)


def test_braces_of_an_instruction_are_text(tmp_path):
    rows = [{"instruction": "Fill {it}.", "input": f"{i}", "output": f"{i}"} for i in range(8)]
    file = write_json(tmp_path / "a.json", rows)
    source = make_source(SourceConfig("alpaca", files=(str(file),)), 0)
    (task,) = source.tasks.values()
    assert task.wordings[0].template.format(input="x") == "Fill {it}.\n\nx"


@pytest.mark.parametrize("column", ["task", "task_name"])
def test_the_pairs_of_coin_are_instances_in_two_finished_wordings(tmp_path, column):
    rows = [
        {
            "original_instruction": f"Is {i},\nodd?",
            "paraphrased_instruction": f"{i}: odd?",
            "targets": ("no", "yes")[i % 2],
            column: "odd",
            "keywords": "{'number': 1}",
        }
        for i in range(8)
    ]
    file = write_csv(tmp_path / "contrastive_flan_data.csv", rows)
    source = make_source(SourceConfig("coin", files=(str(file),)), 0)
    (task,) = source.tasks.values()
    assert (task.name, task.answers) == ("odd", ("no", "yes"))
    assert [wording.is_finished for wording in task.wordings] == [True, True]
    found = instances(source)
    assert len(found) == 8  # hard negatives among them
    assert found[3].inputs == {"original": "Is 3,\nodd?", "paraphrased": "3: odd?"}
    assert (found[3].target, found[3].where) == ("yes", f"{file}:8")


def test_without_their_file_the_pairs_of_coin_say_which_they_need(tmp_path):
    config = SourceConfig("coin", files=(str(tmp_path / "coin.csv"),))
    with pytest.raises(
        DataError, match=r"no file; it needs .*contrastive_flan_data\.csv of github"
    ):
        make_source(config, 0)


TABLE = [
    {"id": i, "question": f"Question {i}?", "hint": "" if i % 4 == 3 else f"hint {i}", "y": i % 2}
    for i in range(12)
]


def test_the_columns_of_a_table_fill_the_templates_of_its_task(tmp_path):
    file = write_csv(tmp_path / "table.csv", TABLE)
    templates = write_json(
        tmp_path / "t.json",
        {
            "quiz": [
                {"input": "{question} ({hint})\n{options_}", "target": "{answer}"},
                {"input": "Answer: {question}", "target": "{answer}"},
            ]
        },
    )
    config = SourceConfig(
        "columns",
        files=(str(file),),
        template_files=(str(templates),),
        columns={"question": "question", "hint": "hint", "target": "y"},
        tasks=(TaskConfig("quiz", answers={"0": "no", "1": "yes"}),),
    )
    source = make_source(config, 0)
    assert source.tasks["quiz"].answers == ("no", "yes")
    found = instances(source)
    assert found[2] == Instance(
        "quiz", {"question": "Question 2?", "hint": "hint 2"}, "no", f"{file}:4"
    )
    assert found[3].inputs == {"question": "Question 3?"}  # asked where no hint is needed


def test_columns_that_no_template_explains_are_finished_prompts(tmp_path):
    file = write_jsonl(tmp_path / "table.jsonl", [{**row, "kind": "ab"[row["y"]]} for row in TABLE])
    config = SourceConfig(
        "columns",
        files=(str(file),),
        columns={"plain": "question", "hinted": "hint", "target": "y", "task": "kind"},
    )
    source = make_source(config, 0)
    assert source.tasks.keys() == {"a", "b"}
    assert [wording.template for wording in source.tasks["a"].wordings] == ["{plain}", "{hinted}"]
    assert instances(source)[1].inputs == {"plain": "Question 2?", "hinted": "hint 2"}
    assert len(make_source(changed(config, rows_per_task=2), 0)) == 4
    few = changed(config, tasks=(TaskConfig("b"), TaskConfig("c")))
    with pytest.raises(DataError, match="no row of task 'c'"):
        make_source(few, 0)
    source = make_source(changed(config, tasks=(TaskConfig("b", answers={"1": "one"}),)), 0)
    assert {instance.target for instance in instances(source)} == {"one"}
    assert any("6 rows of tasks that are not used" in note for note in source.notes)


def test_a_row_without_a_target_is_an_error_in_its_place(tmp_path):
    rows = [{"q": "a", "y": "x"}, {"q": "b", "y": " "}, {"q": ["c"], "y": "x"}, {"y": "x"}]
    file = write_jsonl(tmp_path / "table.jsonl", rows)
    config = SourceConfig("columns", files=(str(file),), columns={"q": "q", "target": "y"})
    found = instances(make_source(config, 0))
    assert {str(error) for error in found if isinstance(error, DataError)} == {
        f"{file}:2: `y` is missing",
        f"{file}:3: `q` must be text, and is ['c']",
        f"{file}:4: nothing in the columns q",
    }


BAD_COLUMNS = {
    "none": ({}, "columns must name the column of the `target`"),
    "no input": ({"target": "y"}, "columns must name the column of the `target`"),
    "no name": ({"my input": "question", "target": "y"}, "a meaning is a plain name"),
    "no column": ({"input": "quest", "target": "y"}, "nothing in the column 'quest'.* 'question'"),
    "no target": ({"input": "question", "target": "z"}, "nothing in the column 'z'"),
}


@pytest.mark.parametrize(("columns", "reason"), BAD_COLUMNS.values(), ids=BAD_COLUMNS)
def test_columns_that_explain_nothing_are_an_error(tmp_path, columns, reason):
    file = write_csv(tmp_path / "table.csv", TABLE)
    with pytest.raises(DataError, match=reason):
        make_source(SourceConfig("columns", files=(str(file),), columns=columns), 0)
