"""Decontamination: which training data stands in an evaluation suite, and how it is reported."""

import json
import random

import pytest
from data_files import write_jsonl
from suite_files import entry, file, loader

from coin_jax.curation.config import FilterConfig
from coin_jax.curation.filters import Contamination
from coin_jax.data.sources import DataError

LONG = (
    "the old lighthouse keeper counted seventeen ships before the storm came up from the south "
    "and drove them all back into the harbour"
)
NINE = "every joke in this film is told four times"
EIGHT = "rain fell on the tin roof all night"
SEVEN = "snow fell on the roof all night"
SHORT = "a gripping movie"
PREMISE = "nobody in the village had seen the baker since the market closed on friday afternoon"
HYPOTHESIS = "the baker was gone"
PROMPTS = [
    "Tell whether the mood of the sentence below is sunny or gloomy, as its writer meant it: ",
    "{sentence}\nSunny or gloomy?",
    "Weigh the words of {sentence} and pick one mood.",
    "{content}",
]


@pytest.fixture
def suite(tmp_path):
    load = loader(tmp_path)
    texts = [LONG, NINE, EIGHT, SEVEN, SHORT, "Well.", "!!"]
    write_jsonl(
        tmp_path / "sst2.dev.jsonl",
        [{"task": "sst2", "inputs": {"sentence": text}, "label": "positive"} for text in texts],
    )
    pairs = [
        (PREMISE, HYPOTHESIS),
        ("the sun is up and it is a fine day", "it is day"),
        ("it rains", "it rains"),
    ]
    write_jsonl(
        tmp_path / "rte.dev.jsonl",
        [
            {"task": "rte", "inputs": {"sentence1": one, "sentence2": two}, "label": "entailment"}
            for one, two in pairs
        ],
    )
    tasks = {
        "sst2": entry(),
        "rte": entry(
            data="rte.dev.jsonl",
            fields=["sentence1", "sentence2"],
            answers={"entailment": "yes", "not_entailment": "no"},
        ),
    }
    prompts = {"plain": {"sst2": PROMPTS, "rte": ["{sentence1} So {sentence2}?"]}}
    return load(file(tasks=tasks, prompts=prompts))


@pytest.fixture
def contamination(suite):
    return Contamination([suite], FilterConfig())


def found(contamination, *texts):
    """(how, evaluation task, shared words) of an instance with these texts, or None."""
    inputs = {f"field{number}": text for number, text in enumerate(texts)}
    hit = contamination.instance(inputs, "training", "rows.jsonl:7")
    return hit and (hit.how, hit.task, hit.words)


# --- instances ----------------------------------------------------------------------------


def test_thirteen_words_in_a_row_are_a_hit_and_twelve_are_none(contamination):
    words = LONG.split()
    for start in range(len(words) - 12):
        run = " ".join(words[start : start + 13])
        assert found(contamination, f"He said that {run} or so") == ("run", "sst2", run)
        twelve = " ".join(words[start : start + 12])
        assert found(contamination, f"He said that {twelve} or so") is None
    broken = " ".join([*words[:12], "perhaps", *words[12:]])
    assert found(contamination, broken.replace("into", "to")) is None


def test_the_number_of_words_is_a_setting(suite):
    five = Contamination([suite], FilterConfig(overlapping_words=5))
    run = "nobody in the village had"
    assert found(five, f"But {run} heard") == ("run", "rte", run)
    assert found(five, "nobody in the village heard") is None
    twenty = Contamination([suite], FilterConfig(overlapping_words=20))
    assert found(twenty, " ".join(LONG.split()[:19])) is None
    assert found(twenty, " ".join(LONG.split()[1:21]))[0] == "run"
    with pytest.raises(ValueError, match="overlapping_words is 1"):
        Contamination([suite], FilterConfig(overlapping_words=1))


@pytest.mark.parametrize(
    "text",
    [
        LONG.upper(),
        LONG.replace(" ", "  \n"),
        LONG.replace(" ", ", "),
        LONG.replace(" ", "_"),
        f'"{LONG.title()}!"',
        LONG.replace("s", "ｓ"),
        f"Review: {LONG}. Was it good?\nOPTIONS:\n- yes\n- no",
        f"{{{LONG}}}",
    ],
)
def test_case_punctuation_space_and_code_points_hide_nothing(contamination, text):
    assert found(contamination, text)[1:] == ("sst2", LONG)


def test_a_short_instance_counts_where_it_is_equal(contamination):
    assert found(contamination, "A gripping movie!") == ("equal", "sst2", SHORT)
    assert found(contamination, "well")[0] == "equal"
    assert found(contamination, "a gripping movie it is") is None
    assert found(contamination, "a gripping movie", "it is day") is None
    assert found(contamination, "") is None
    assert found(contamination, "??") is None


def test_eight_words_and_more_count_where_they_stand_whole(contamination):
    prompt = f"Is this review good? {NINE.capitalize()}. Answer:"
    assert found(contamination, prompt) == ("contained", "sst2", NINE)
    assert found(contamination, prompt.replace("times", "days")) is None
    assert found(contamination, f"Then {EIGHT}.") == ("contained", "sst2", EIGHT)
    assert found(contamination, f"Then {SEVEN}.") is None
    inputs = {"one": prompt.replace("times", "days"), "two": prompt}
    assert contamination.instance(inputs, "training", "rows.jsonl:7").field == "two"
    # Of an instance with two fields both must stand there.
    premise = "the sun is up and it is a fine day"
    assert found(contamination, f"If {premise} then what") is None
    assert found(contamination, f"If {premise}, is it day?") is None
    assert found(contamination, f"If {premise}, can we say it is day?")[:2] == ("contained", "rte")
    assert found(contamination, f"If {premise}", "then it is day")[:2] == ("contained", "rte")


def test_fields_are_compared_whatever_their_order_and_names(contamination):
    premise = "the sun is up and it is a fine day"
    assert found(contamination, "It is day.", premise)[:2] == ("equal", "rte")
    assert found(contamination, "is day", f"{premise} it") is None
    assert found(contamination, "It rains.", "it rains")[:2] == ("equal", "rte")
    assert found(contamination, premise, "", "it is day")[:2] == ("equal", "rte")
    assert found(contamination, HYPOTHESIS) is None  # another premise may have the same
    assert found(contamination, HYPOTHESIS, PREMISE)[:2] == ("equal", "rte")
    assert found(contamination, "something else", PREMISE)[:2] == ("run", "rte")


def test_instances_that_a_sample_leaves_over_count_too(tmp_path):
    load = loader(tmp_path)
    rows = [
        {"task": "sst2", "inputs": {"sentence": f"sentence {number}"}, "label": label}
        for number, label in enumerate(["positive", "negative"] * 5)
    ]
    write_jsonl(tmp_path / "sst2.dev.jsonl", rows)
    contamination = Contamination([load(file(), sample=2)], FilterConfig())
    assert all(found(contamination, row["inputs"]["sentence"]) for row in rows)


def test_every_hit_agrees_with_a_search_through_all_texts(suite, contamination):
    """Random texts from a few words share runs of all lengths."""
    draw = random.Random(0)
    pool = [*LONG.split(), *NINE.split(), *SHORT.split()]
    hits = 0
    for _ in range(400):
        words = []
        while len(words) < 40:
            source = draw.choice([LONG.split(), NINE.split(), pool])
            start = draw.randrange(len(source))
            words += source[start : start + draw.randrange(1, 18)]
        text = f" {' '.join(words)} "
        runs = {f" {' '.join(LONG.split()[at : at + 13])} " for at in range(len(LONG.split()) - 12)}
        expected = any(run in text for run in runs) or f" {NINE} " in text
        assert (found(contamination, text) is not None) == expected
        hits += expected
    assert 50 < hits < 350


# --- prompts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "how", "index"),
    [
        ("{text}\nSUNNY, or gloomy", "equal", "1"),
        ("Sunny or gloomy? {review}\n{options_}", "equal", "1"),
        (PROMPTS[0] + "Sentence 1: {text}", "run", "0"),
        (
            "Please tell whether the mood of the sentence below is sunny or gloomy, as felt: {t}",
            "run",
            "0",
        ),
        ("Is {text} sunny or gloomy?", None, ""),
        ("Weigh the words of {sentence}", None, ""),
        ("{sentence}", None, ""),
        ("Tell whether the mood of {text} below is sunny or gloomy", None, ""),
    ],
)
def test_an_evaluation_prompt_among_the_wordings_is_found(contamination, template, how, index):
    hit = contamination.wording(template, "training", "flan/3")
    assert (hit and (hit.kind, hit.how, hit.condition, hit.task, hit.name)) == (
        how and ("prompt", how, "plain", "sst2", index)
    )


def test_a_wording_is_not_searched_for_instances(contamination):
    assert contamination.wording(f"{LONG} {{text}}", "training", "mine/1") is None


def test_an_evaluation_prompt_inside_a_finished_prompt_is_found(contamination):
    hit = contamination.instance({"p": PROMPTS[0] + "I like rain."}, "training", "rows.jsonl:7")
    assert (hit.kind, hit.how, hit.name, hit.field) == ("prompt", "run", "0", "p")


# --- the report ---------------------------------------------------------------------------


def test_the_report_names_every_hit(suite, contamination):
    run = " ".join(LONG.split()[:13])
    contamination.wording("Sunny or gloomy? {t}", "moods", "flan/3")
    contamination.instance({"text": f"{run} and {NINE}", "note": "none"}, "films", "train.jsonl:12")
    contamination.instance({"text": "all else"}, "films", "train.jsonl:13")
    report = json.loads(json.dumps(contamination.report()))
    keys = {
        task.name: {i.inputs.get("sentence"): i.key for i in task.instances} for task in suite.tasks
    }
    named = {"suite": "mine", "task": "sst2"}
    films = {"training_task": "films", "place": "train.jsonl:12", "field": "text"}
    instance = {"kind": "instance", "condition": ""}
    assert report["found"] == [
        named
        | {"kind": "prompt", "how": "equal", "condition": "plain", "name": "1", "field": ""}
        | {"training_task": "moods", "place": "flan/3", "words": "sunny or gloomy"},
        named | films | instance | {"how": "run", "name": keys["sst2"][LONG], "words": run},
        named | films | instance | {"how": "contained", "name": keys["sst2"][NINE], "words": NINE},
    ]
    assert report["hits"] == {"prompt": 1, "instance": 2}
    assert report["checked"] == {"wordings": 1, "instances": 2}
    assert report["overlapping_words"] == 13
    (described,) = report["suites"]
    assert (described["name"], described["prompts"]) == ("mine", 5)
    assert described["instances"] == {"sst2": 7, "rte": 3}
    assert contamination.summary() == {k: v for k, v in report.items() if k != "found"}


def test_the_same_instance_in_two_suites_is_named_in_both(suite):
    contamination = Contamination([suite, suite], FilterConfig())
    assert found(contamination, LONG)
    assert len(contamination.report()["found"]) == 2


def test_an_instance_that_stands_in_two_fields_is_named_once(contamination):
    assert found(contamination, f"He said: {LONG}", f"She said: {LONG}")
    assert len(contamination.report()["found"]) == 1


def test_suites_are_loaded_by_name(suite, tmp_path):
    settings = FilterConfig(suites=(str(tmp_path / "mine.json"),), suite_data=str(tmp_path))
    assert found(Contamination.load(settings), SHORT)
    missing = FilterConfig(suites=(str(tmp_path / "absent.json"),))
    with pytest.raises(DataError, match=r"absent\.json"):
        Contamination.load(missing)


def test_without_suites_nothing_is_found():
    assert found(Contamination.load(FilterConfig()), LONG) is None
