"""Attacks find what a model depends on, within their budget, and leave alone what is frozen.

The model under attack adds up the weights of the prompt's words: its margin for the right answer to
instance i is 2 - i - 0.5 plus that sum. So with all of ten instances, a sum of 8 gives accuracy 1.
"""

import dataclasses
import math
import re

import numpy as np
import pytest

from coin_jax.robustness import perturb
from coin_jax.robustness.attack import Change, attack
from coin_jax.robustness.perturb import Perturbation, PerturbationError
from coin_jax.robustness.perturb.words import word_sites
from coin_jax.robustness.suite import Instance, SuiteTask, make_wording

WEIGHTS = {"judge": 3, "judgey": 2, "review": 5, "reviewx": 4, "reviewy": 1, "Reply": 0}
TEXT = "Please judge this review: {sentence} Reply good or bad."
TASK = SuiteTask("mood", ("sentence",), ("good", "bad"), ())
WORDING = make_wording(TASK, "clean", 4, TEXT)
INSTANCES = [Instance(f"mood/{i}", {"sentence": f"item {i}"}, i % 2) for i in range(10)]


class Adding:
    """The model described above; keeps the texts of each call."""

    def __init__(self, weights=WEIGHTS, base=2.0):
        self.weights, self.base, self.calls, self.normalized = weights, base, [], set()

    def score(self, prompts, answers, length_normalized=False):
        self.normalized.add(length_normalized)
        self.calls.append([prompt.text for prompt in prompts])
        scores = np.zeros((len(prompts), len(answers)), np.float32)
        for row, text in enumerate(self.calls[-1]):
            item = int(re.search(r"item (\d)", text)[1])
            scores[row, item % 2] = self.base - item - 0.5
            scores[row, item % 2] += sum(
                self.weights.get(word, 0) for word in re.findall(r"\w+", text)
            )
        return scores

    @property
    def prompts(self):
        """How many were asked in each call."""
        return [len(texts) / len(INSTANCES) for texts in self.calls]


@pytest.fixture
def method(monkeypatch):
    """Makes a perturbation that puts letters after a word; returns its name."""

    def make(level="word", endings=("x", "y"), **settings):
        def replace(text, site, random, lexicon):
            return [text[site.start : site.end] + ending for ending in endings]

        made = Perturbation("made", level, "", "", word_sites, replace, **settings)
        monkeypatch.setitem(perturb.PERTURBATIONS, "made", made)
        return "made"

    return make


def run(scorer, name, wording=WORDING, task=TASK, instances=INSTANCES, budget=100, **settings):
    settings = {"seed": 0, "condition": "attacked"} | settings
    return attack(scorer, task, wording, instances, name, budget=budget, **settings)


def test_words_fall_in_the_order_of_their_importance_each_to_its_worst_variant(method):
    scorer = Adding()
    found = run(scorer, method())
    # Sites: Please, judge, review, Reply. Without `review` 5 are right, without `judge` 7.
    # reviewx leaves 9 right and reviewy 6; then judgex leaves 3 and judgey 5.
    assert found.steps == (
        Change("review", "reviewy", 0.6, 7),
        Change("judge", "judgex", 0.3, 9),
    )
    assert found.wording.text == "Please judgex this reviewy: {sentence} Reply good or bad."
    assert (found.clean_accuracy, found.accuracy, found.queries) == (1.0, 0.3, 13)
    assert scorer.prompts == [1, 4, 2, 2, 2, 2], "one call of the model a step"
    deleted = [text for text in scorer.calls[1] if "item 0" in text]
    assert deleted == [
        "judge this review: item 0 Reply good or bad.",
        "Please this review: item 0 Reply good or bad.",
        "Please judge this : item 0 Reply good or bad.",
        "Please judge this review: item 0 good or bad.",
    ]


def test_the_wording_found_says_where_it_comes_from(method):
    wording = run(Adding(), method()).wording
    assert (wording.task, wording.condition, wording.index, wording.origin) == (
        "mood",
        "attacked",
        4,
        4,
    )
    assert WORDING.text == TEXT


def test_at_equal_accuracy_the_probability_of_the_right_answer_decides(method):
    # All margins stay above 2, and the mean probability of the right answer below 1.
    weights = {"judge": 1, "judgex": 0.5, "judgey": 0.75, "Reply": 2, "Replyx": 1, "Replyy": 2.5}
    found = run(Adding(weights, base=12), method())
    assert found.steps == (Change("Reply", "Replyx", 1.0, 7), Change("judge", "judgex", 1.0, 9))
    assert found.accuracy == 1.0


def test_only_answers_placeholders_and_named_words_stay(method):
    task = dataclasses.replace(TASK, frozen_words=("review",))
    scorer = Adding({})
    found = run(scorer, method(), task=task)
    asked = {text for texts in scorer.calls[2:] for text in texts if "item 0" in text}
    words = {word for text in asked for word in re.findall(r"\w+", text)}
    assert words - set(re.findall(r"\w+", TEXT)) == {
        *("Pleasex", "Pleasey", "judgex", "judgey", "Replyx", "Replyy"),
        *("item", "0"),
    }
    assert all(
        "this review: item 0 Repl" in text and text.endswith(" good or bad.") for text in asked
    )
    assert found.wording.text == TEXT


@pytest.mark.parametrize("effect", [0.0, 1e-6])
def test_what_lowers_nothing_is_not_changed(method, effect):
    scorer = Adding({"judgex": -effect, "Pleasey": -effect})
    found = run(scorer, method())
    assert found.steps == ()
    assert found.wording.text == TEXT
    assert found.accuracy == found.clean_accuracy == 0.2
    assert found.queries == 1 + 4 + 4 * 2


@pytest.mark.parametrize("budget", range(1, 15))
def test_no_more_is_asked_than_the_budget_allows(method, budget):
    scorer = Adding()
    found = run(scorer, method(), budget=budget)
    assert found.queries == sum(scorer.prompts) == min(budget, 13)
    assert scorer.prompts[0] == 1
    assert sum(scorer.prompts[1:2]) <= max(1, budget // 2), "words can still be replaced"


def test_the_search_ends_where_nothing_is_right(method):
    scorer = Adding({"judge": 3, "review": 5}, base=0)
    found = run(scorer, method())
    assert found.accuracy == 0
    assert scorer.prompts == [1, 4, 2, 2], "the other two words are not tried"
    hopeless = Adding({}, base=0)
    for level in ("word", "sentence"):
        found = run(hopeless, method(level))
        assert (found.queries, found.steps, found.wording.text) == (1, (), TEXT)


def test_no_more_words_change_than_the_method_allows(method):
    assert [each.before for each in run(Adding(), method(most_changes=1)).steps] == ["review"]
    assert [each.before for each in run(Adding(), method(most_share=0.5)).steps] == [
        "review",
        "judge",
    ]


@pytest.mark.parametrize(("weight", "expected"), [(-3, 0.7), (0, 1.0)])
def test_at_sentence_level_the_worst_of_all_variants_is_taken(monkeypatch, weight, expected):
    def replace(text, site, random, lexicon):
        return [" so it goes", " or not", " and yet"]

    def find(text, frozen):
        return [perturb.Site(len(text), len(text))]

    made = Perturbation("made", "sentence", "", "", find, replace)
    monkeypatch.setitem(perturb.PERTURBATIONS, "made", made)
    scorer = Adding(WEIGHTS | {"goes": 1, "not": weight, "yet": 2})
    found = run(scorer, "made")
    assert found.wording.text == f"{TEXT} or not"
    assert found.steps == (Change("", " or not", expected, 4),)
    assert (found.accuracy, found.clean_accuracy) == (expected, 1.0)
    assert scorer.prompts == [1, 3]


@pytest.mark.parametrize("name", ["deepwordbug", "textbugger", "checklist", "stresstest"])
def test_the_same_seed_gives_the_same_attack(name):
    scorers = [Adding(base=1.5) for _ in range(3)]
    found = [run(scorer, name, seed=seed) for scorer, seed in zip(scorers, (0, 0, 1), strict=True)]
    assert found[0] == found[1]
    assert scorers[0].calls == scorers[1].calls
    assert (scorers[0].calls == scorers[2].calls) == (name == "stresstest")
    assert found[0].wording.text != TEXT
    assert found[0].wording.template.placeholders == {"sentence"}


def test_a_lexicon_proposes_the_words():
    class Lexicon:
        def synonyms(self, word, text, start, end):
            assert text[start:end] == word
            return {"review": ["critique", "reviewy"], "Please": ["Kindly"]}.get(word, [])

    found = run(Adding(), "textfooler", lexicon=Lexicon())
    assert found.steps == (Change("review", "critique", 0.5, 7),)
    with pytest.raises(PerturbationError, match="lexicon"):
        run(Adding(), "textfooler")


def test_answers_can_be_compared_by_the_mean_over_their_tokens(method):
    plain, normalized = Adding(), Adding()
    run(plain, method())
    run(normalized, method(), length_normalized=True)
    assert (plain.normalized, normalized.normalized) == ({False}, {True})


def test_progress_is_told_with_each_call_of_the_model(method):
    lines = []
    run(Adding(), method(), note=lines.append)
    assert lines == [
        "made, mood clean/4: 4 words ranked; accuracy 100.0% -> 100.0%, 5 of 100 queries",
        "made, mood clean/4: 'review' -> 'reviewy'; accuracy 100.0% -> 60.0%, 7 of 100 queries",
        "made, mood clean/4: 'judge' -> 'judgex'; accuracy 100.0% -> 30.0%, 9 of 100 queries",
        "made, mood clean/4: 'Please' stays; accuracy 100.0% -> 30.0%, 11 of 100 queries",
        "made, mood clean/4: 'Reply' stays; accuracy 100.0% -> 30.0%, 13 of 100 queries",
    ]


def test_what_cannot_be_attacked_is_refused(method):
    with pytest.raises(PerturbationError, match="deepwordbug"):
        run(Adding(), "typos")
    with pytest.raises(ValueError, match="'mood': there are no instances"):
        run(Adding(), method(), instances=[])
    with pytest.raises(ValueError, match="1 or more"):
        run(Adding(), method(), budget=0)
    with pytest.raises(ValueError, match=r"NaN for task 'mood'.*mood/0"):
        run(Adding({"judge": math.nan}), method())
