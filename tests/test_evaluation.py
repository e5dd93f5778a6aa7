"""Asking a model a whole suite: what is kept, what is asked again, and what the results say."""

import dataclasses
import pathlib

import numpy as np
import pytest

from coin_jax.robustness.evaluation import Contestant, Settings, ask, expand, run_attacks
from coin_jax.robustness.results import Run, build, prediction_rows, summary
from coin_jax.robustness.store import Answered, PredictionStore
from coin_jax.robustness.suite import (
    AttackRequest,
    Instance,
    PerturbationRequest,
    Suite,
    SuiteTask,
    make_wording,
)

BOTH = Settings(("likelihood", "generation"))


def make_suite(**changes):
    mood = SuiteTask(
        "mood",
        ("text",),
        ("good", "bad"),
        tuple(
            Instance(f"mood-{n}", {"text": text}, label)
            for n, (text, label) in enumerate([("sun", 0), ("joy", 0), ("rain", 1), ("mud", 1)])
        ),
        attack_instances=(Instance("mood-9", {"text": "wind"}, 1),),
    )
    place = SuiteTask(
        "place", ("text",), ("here", "there"), (Instance("place-0", {"text": "near"}, 0),)
    )
    texts = {
        "plain": ["Say good or bad of: {text}", "Is the mood of {text} good or bad?"],
        "role": ["You judge moods, good or bad. {text}"],
    }
    wordings = [
        make_wording(mood, condition, index, text)
        for condition, prompts in texts.items()
        for index, text in enumerate(prompts)
    ]
    wordings.append(make_wording(place, "plain", 0, "Is {text} here or there?"))
    suite = Suite(
        "tiny", pathlib.Path("tiny.json"), 0, None, "plain", (mood, place), tuple(wordings)
    )
    return dataclasses.replace(suite, **changes)


class Scripted:
    """Right, but for what `wrong` says of a prompt's text; counts the prompts."""

    def __init__(self, wrong=lambda text: False):
        self.wrong, self.asked = wrong, []

    def _right(self, prompt):
        self.asked.append(prompt.text)
        return not self.wrong(prompt.text)

    def score(self, prompts, answers, length_normalized=False):
        scores = np.full((len(prompts), len(answers)), -2.0, np.float32)
        for row, prompt in zip(scores, prompts, strict=True):
            right = answers.index(prompt.answer)
            row[right if self._right(prompt) else 1 - right] = -1.0
        return scores

    def generate(self, prompts, **settings):
        return [f"{p.answer.title()}." if self._right(p) else "no idea" for p in prompts]


def test_every_instance_is_asked_in_every_wording_in_both_ways():
    suite, scorer = make_suite(), Scripted()
    done = []
    answers = ask(Contestant("a", scorer, "1"), suite, BOTH, advance=done.append)
    assert len(scorer.asked) == sum(done) == 2 * (3 * 4 + 1)
    assert len(answers) == 2 * 4
    for (task, _, _, scoring), answered in answers.items():
        labels = [instance.label for instance in suite.task(task).instances]
        assert answered.predictions.tolist() == labels
        assert (answered.scores is None) == (scoring == "generation")


def test_what_is_known_is_not_asked_again(tmp_path):
    suite, scorer = make_suite(), Scripted(lambda text: "sun" in text)
    store = PredictionStore(tmp_path)
    first = ask(Contestant("a", scorer, "1"), suite, BOTH, store)
    scorer.asked.clear()
    again = ask(Contestant("renamed", scorer, "1"), suite, BOTH, PredictionStore(tmp_path))
    assert scorer.asked == []
    for cell, answered in first.items():
        for one, other in zip(answered, again[cell], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("changed", ["parameters", "wording", "instances", "tokens"])
def test_what_depends_on_a_change_is_asked_again(tmp_path, changed):
    suite, scorer, store = make_suite(), Scripted(), PredictionStore(tmp_path)
    ask(Contestant("a", scorer, "1"), suite, BOTH, store)
    scorer.asked.clear()
    identity, settings, expected = "1", BOTH, 0
    if changed == "parameters":
        identity, expected = "2", 26
    elif changed == "tokens":
        settings, expected = dataclasses.replace(BOTH, max_new_tokens=3), 13
    elif changed == "wording":
        extra = make_wording(suite.tasks[0], "role", 1, "As a judge of {text}: good or bad?")
        suite, expected = suite.with_wordings([extra]), 8
    else:
        mood = dataclasses.replace(suite.tasks[0], instances=suite.tasks[0].instances[:3])
        suite, expected = dataclasses.replace(suite, tasks=(mood, suite.tasks[1])), 18
    ask(Contestant("a", scorer, identity), suite, settings, store)
    assert len(scorer.asked) == expected


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("coin_jax.robustness.evaluation.QUESTIONS_AT_ONCE", 4)
    suite = make_suite()

    def interrupt(text):
        if "You judge" in text:
            raise KeyboardInterrupt
        return False

    settings = Settings(("likelihood",))
    with pytest.raises(KeyboardInterrupt):
        ask(Contestant("a", Scripted(interrupt), "1"), suite, settings, PredictionStore(tmp_path))
    scorer = Scripted()
    answers = ask(Contestant("a", scorer, "1"), suite, settings, PredictionStore(tmp_path))
    assert len(answers) == 4
    assert len(scorer.asked) == 4 + 1  # the other two wordings were kept


def test_a_file_that_was_cut_or_overwritten_counts_as_absent(tmp_path):
    store = PredictionStore(tmp_path)
    key = store.key(some="fact")
    store.write(key, Answered(np.array([1, 0], np.int32), np.zeros((2, 2), np.float32)))
    whole = (tmp_path / f"{key}.npz").read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"not an archive", whole[:100] + b"x" * 300):
        (tmp_path / f"{key}.npz").write_bytes(content)
        assert store.read(key, 2, 2) is None
    assert not list(tmp_path.glob("*.partial"))


def test_scores_that_are_nan_name_the_question():
    class Diverged(Scripted):
        def score(self, prompts, answers, length_normalized=False):
            scores = super().score(prompts, answers)
            scores[5, 0] = np.nan
            return scores

    with pytest.raises(ValueError, match=r"task 'mood', prompt plain/1, instance mood-1"):
        ask(Contestant("a", Diverged(), "1"), make_suite(), BOTH)


def test_declared_perturbations_become_conditions_with_the_same_places():
    request = PerturbationRequest("typos", "deepwordbug", "plain", copies=2)
    missing = PerturbationRequest("synonyms", "textfooler", "plain", optional=True)

    def lexicon(method):
        if method == "textfooler":
            from coin_jax.robustness.perturb import PerturbationError

            raise PerturbationError("no lexicon here")

    suite = expand(make_suite(perturbations=(request, missing)), lexicon)
    assert suite.conditions == ("plain", "role", "typos")
    typos = suite.wordings_of("mood", "typos")
    assert [w.origin for w in typos] == [0, 0, 1, 1]
    assert len({w.text for w in typos}) == 4
    for wording in typos:
        assert "{text}" in wording.text
        assert "good" in wording.text
        assert "bad" in wording.text
    assert any("synonyms" in note and "no lexicon here" in note for note in suite.notes)
    assert expand(make_suite(perturbations=(request,))).wordings == suite.wordings
    strict = dataclasses.replace(missing, optional=False)
    with pytest.raises(ValueError, match=r"tiny.json: condition 'synonyms': no lexicon here"):
        expand(make_suite(perturbations=(strict,)), lexicon)


def test_attacks_search_on_other_instances_and_are_kept(tmp_path):
    fooled = Scripted(lambda text: "Say good" not in text and "mood of" not in text)
    request = AttackRequest("attack", "deepwordbug", "plain", instances=10, budget=60)
    suite, store = make_suite(attacks=(request,)), PredictionStore(tmp_path)
    contestant = Contestant("a", fooled, "1")
    attacked, records = run_attacks(contestant, suite, BOTH, store)
    assert [(r["task"], r["index"], r["origin"]) for r in records] == [
        ("mood", 0, 0),
        ("mood", 1, 1),
        ("place", 0, 0),
    ]
    assert all("wind" in text for text in fooled.asked if "mood" in text)
    assert [w.text for w in attacked.wordings_of("mood", "attack")] == [
        record["text"] for record in records[:2]
    ]
    assert records[1]["clean_accuracy"] == 1
    assert records[1]["accuracy"] == 0
    fooled.asked.clear()
    assert run_attacks(contestant, suite, BOTH, store)[1] == records
    assert fooled.asked == []


def two_runs():
    suite = make_suite()
    # a: all right. b: wrong on "rain" in every wording, and on all moods in the role; with a bias.
    scorers = {
        "a": Scripted(),
        "b": Scripted(lambda text: "rain" in text or "You judge" in text),
    }
    return [
        Run(name, f"runs/{name}", name, suite, ask(Contestant(name, s, name), suite, BOTH))
        for name, s in scorers.items()
    ]


def test_results_hold_the_accuracies_that_the_answers_have():
    results = build(two_runs(), BOTH.scorings, resamples=200)
    cells = {
        (c["run"], c["task"], c["condition"]): c
        for c in results["cells"]
        if c["scoring"] == "likelihood"
    }
    plain, role, both = (cells["b", "mood", name] for name in ("plain", "role", "all"))
    assert (plain["mean"], plain["worst"], plain["item_worst"]) == (0.75, 0.75, 0.75)
    assert (role["mean"], role["wordings"], role["instances"]) == (0.0, 1, 4)
    assert both["mean"] == pytest.approx((0.75 + 0.75 + 0) / 3)
    assert plain["drop_rate"] is None
    assert role["drop_rate"] == 1.0
    assert both["drop_rate"] == pytest.approx(1 - 0.5 / 0.75)
    assert ("b", "place", "role") not in cells
    averages = {
        (row["run"], row["condition"]): row
        for row in results["averages"]
        if row["scoring"] == "likelihood"
    }
    assert averages["b", "plain"]["mean"] == pytest.approx((0.75 + 1) / 2)
    assert averages["b", "role"]["mean"] == 0.0
    invalid = {
        (c["task"], c["condition"]): c["invalid"]
        for c in results["cells"]
        if (c["run"], c["scoring"]) == ("b", "generation")
    }
    assert invalid == {
        ("mood", "plain"): 0.25,
        ("mood", "role"): 1.0,
        ("mood", "all"): 0.5,
        ("place", "plain"): 0.0,
        ("place", "all"): 0.0,
    }
    assert results["suite"]["majority"] == {"mood": 0.5, "place": 1.0}


def test_results_compare_the_first_group_with_the_others():
    results = build(two_runs(), ("likelihood",), resamples=200)
    rows = {(row["task"], row["condition"]): row for row in results["comparisons"]}
    assert {(row["a"], row["b"]) for row in rows.values()} == {("a", "b")}
    assert rows["mood", "plain"]["difference"] == pytest.approx(0.25)
    assert rows["mood", "role"]["difference"] == pytest.approx(1.0)
    assert rows["average", "plain"]["difference"] == pytest.approx(0.125)
    assert all(row["p_holm"] >= row["p"] for row in rows.values())
    assert not any(row["resolvable"] for row in rows.values())  # four items tell nothing


def test_results_show_what_flipped():
    flips = [
        row
        for row in build(two_runs(), BOTH.scorings, resamples=10)["flips"]
        if (row["run"], row["condition"]) == ("b", "role")
    ]
    assert {row["instance"] for row in flips} <= {"mood-0", "mood-1", "mood-3"}
    by_way = {row["scoring"]: row for row in flips if row["instance"] == "mood-0"}
    assert by_way["likelihood"]["prediction"] == "bad"
    assert by_way["generation"]["prediction"] == "no idea"
    assert by_way["likelihood"]["clean_prediction"] == by_way["likelihood"]["label"] == "good"
    assert by_way["likelihood"]["input"] == {"text": "sun"}


def test_every_prediction_has_a_row():
    rows = prediction_rows(two_runs()[1], BOTH.scorings)
    assert len(rows) == 26
    wrong = [row for row in rows if not row["correct"]]
    assert len(wrong) == 2 * (4 + 2)
    assert {row["prediction"] for row in wrong if row["scoring"] == "generation"} == {"no idea"}
    assert all(row["valid"] for row in rows if row["scoring"] == "likelihood")


def test_the_summary_names_metrics_as_logs_do():
    metrics = summary(two_runs()[1], "likelihood")
    assert metrics["evaluation/suite/plain/mean"] == pytest.approx(0.875)
    assert metrics["evaluation/suite/mood/role/mean"] == 0.0
    assert metrics["evaluation/suite/role/drop_rate"] == 1.0
    assert "evaluation/suite/plain/drop_rate" not in metrics
