"""Bad suites are refused, with the file and the place of each fault."""

import re

import pytest
from data_files import write_jsonl
from suite_files import entry, file, loader, refused

from coin_jax.data.sources import DataError
from coin_jax.robustness.suite import load_suite


@pytest.fixture
def load(tmp_path):
    return loader(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON in UTF-8"),
        ('{"a": {"sst2": [1,]}}', "line 1 column 19"),
        ("[]", "expected an object"),
        ("{}", "prompts: "),
        ("[" * 100_000, "not JSON"),
        ('{"a": {"sst2": ["x"], "sst2": ["y"]}}', "'sst2' stands twice"),
        ('{"a": {"sst2": "x"}}', "prompts.a.sst2: Input should be a valid array"),
        ('{"a": {"sst2": []}}', "prompts.a.sst2: "),
        ('{"a": {"sst2": [" "]}}', "prompts.a.sst2[0]: must not be empty"),
    ],
)
def test_a_file_that_is_no_suite_is_refused(load, tmp_path, text, reason):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(f"{path}: ") + ".*" + re.escape(reason)):
        load_suite(path)


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: cannot be read: No such file"):
        load_suite(tmp_path / "none.json")
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match=r"bad\.json: not JSON in UTF-8"):
        load_suite(tmp_path / "bad.json")


REQUEST = {"condition": "typos", "method": "deepwordbug"}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"sed": 1}, "unknown key 'sed'; did you mean 'seed'?"),
        ({"seed": True}, "seed: "),
        ({"sample": 0}, "sample: "),
        ({"clean": "plane"}, "clean: unknown condition 'plane'; did you mean 'plain'?"),
        ({"tasks": {"sst2": entry(splits="x")}}, "tasks.sst2: unknown key 'splits'; did you mean"),
        ({"tasks": {"sst2": {"data": "x"}}}, "tasks.sst2: the key 'fields' is missing"),
        ({"tasks": {"sst2": entry(data=3)}}, "tasks.sst2.data: "),
        ({"tasks": {"sst2": entry(fields=["a b"])}}, "tasks.sst2.fields: 'a b'"),
        ({"tasks": {"sst2": entry(fields=["options_"])}}, "tasks.sst2.fields: 'options_'"),
        ({"tasks": {"sst2": entry(content="{text}")}}, "tasks.sst2.content: must hold sentence"),
        (
            {"tasks": {"sst2": entry(fields=["sentence", "other"], content="{sentence}")}},
            "tasks.sst2.content: must hold sentence, other",
        ),
        ({"tasks": {"sst2": entry(content="{sentence")}}, "tasks.sst2.content: "),
        ({"tasks": {"sst2": entry(answers={"positive": "x"})}}, "tasks.sst2.answers: needs two"),
        (
            {"tasks": {"sst2": entry(answers={"negative": "no", "positive": "Not bad"})}},
            "tasks.sst2.answers: 'no' begins 'Not bad'",
        ),
        (
            {"tasks": {"sst2": entry(answers={"negative": "No.", "positive": "no"})}},
            "tasks.sst2.answers: 'No.' begins 'no'",
        ),
        ({"tasks": {"sst2": entry(data="builtin:plaec")}}, "tasks.sst2.data: builtin:plaec: "),
        ({"tasks": {"sst2": entry(fields=["text"])}}, "sst2.dev.jsonl:1: no field 'text'"),
        (
            {"tasks": {"sst2": entry(answers={"negative": "bad", "4": "good"})}},
            "sst2.dev.jsonl:2: label 'positive' is none of 'negative', '4'",
        ),
        ({"tasks": {"sst2": entry(data="cola.dev.jsonl")}}, "the tasks there are 'cola'"),
        ({"prompts": {"plain": {"sts2": ["x"]}}}, "prompts.plain.sts2: unknown task 'sts2'; did"),
        ({"tasks": {"sst2": entry(), "x": entry()}}, "tasks.x: no prompt in the clean condition"),
        (
            {"perturbations": [REQUEST | {"of": "no"}]},
            "perturbations[0].of: unknown condition 'no'",
        ),
        ({"perturbations": [REQUEST | {"method": "deepwrdbug"}]}, "did you mean 'deepwordbug'?"),
        ({"perturbations": [REQUEST | {"copies": 0}]}, "perturbations[0].copies: "),
        ({"perturbations": [REQUEST | {"settings": {"shre": 1}}]}, "[0].settings: unknown key"),
        ({"perturbations": [REQUEST], "attacks": [REQUEST]}, "'typos' is made twice"),
        ({"attacks": [REQUEST | {"condition": "plain"}]}, "'plain' is made twice"),
        ({"attacks": [{"method": "deepwordbug"}]}, "attacks[0]: the key 'condition' is missing"),
    ],
)
def test_a_fault_is_refused_with_its_place(load, changes, part):
    refused(load, file(**changes), part)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{sentnce} Well?", "unknown placeholder 'sentnce'; did you mean 'sentence'?"),
        ("{options_} Well?", "no place for {sentence}"),
        ("{sentence} {answer}", "unknown placeholder 'answer'"),
        ("{sentence", "expected '}'"),
        ("{sentence!r}", "a placeholder is a plain name"),
        ("How is this? ", "the same prompt as number 0"),
    ],
)
def test_a_prompt_that_cannot_be_asked_is_refused(load, text, reason):
    refused(
        load,
        file(prompts={"plain": {"sst2": ["How is this? ", text]}}),
        f"prompts.plain.sst2[1]: {reason}",
    )


def test_empty_data_is_refused(load, tmp_path):
    write_jsonl(tmp_path / "sst2.dev.jsonl", [])
    refused(load, file(), "tasks.sst2.data: ", "no row of task 'sst2'")
    write_jsonl(tmp_path / "sst2.dev.jsonl", [{"task": "sst2", "inputs": {}, "label": "x"}, "{"])
    refused(load, file(), "sst2.dev.jsonl:1: `inputs`", "sst2.dev.jsonl:2: not JSON")


def test_all_faults_are_told_at_once(load):
    lines = refused(
        load,
        {
            "prompts": {
                "plain": {"sst2": ["{sentence", "{x}"], "cola": ["So? "], "sts2": ["So?"]},
            },
            "tasks": {
                "cola": entry(data="cola.dev.jsonl"),
                "sst2": entry(answers={"negative": "bad", "4": "good"}),
            },
            "perturbations": [{"condition": "typos", "method": "none"}],
        },
        "prompts.plain.sts2: ",
        "prompts.plain.sst2[0]: ",
        "prompts.plain.sst2[1]: ",
        "tasks.cola.data: ",
        "tasks.sst2.data: ",
        "perturbations[0].method: ",
    )
    assert len(lines) == 6


def test_a_sample_of_nothing_is_refused(load):
    with pytest.raises(ValueError, match="sample is 0"):
        load(file(), sample=0)
