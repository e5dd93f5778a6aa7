"""Attacks: a perturbation searched against the model, for the wording it answers worst.

As PromptBench attacks prompts (Zhu et al. 2023, section 3.2): what is attacked is the prompt, for
all instances at once, and the goal is a low accuracy on a sample of them. Words are tried greedily
in the order of their importance, which deletion tells, as DeepWordBug, TextBugger, TextFooler and
BERT-Attack do. Different from there:

- where accuracy does not tell two prompts apart, the mean probability of the right answer does; on
  a hundred instances accuracy has few values, and most single edits move none of them;
- all deletions, and all variants of a word, are asked in one call of the model;
- the budget counts prompts, and ranking the words takes half of it at most.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from coin_jax.data.draws import stable_hash
from coin_jax.robustness.perturb import Lexicon, Perturbation, Site, find_perturbation
from coin_jax.robustness.scoring import AnswerScorer
from coin_jax.robustness.suite import Instance, SuiteTask, Wording, make_wording, prompt

NOISE = 1e-5
"""A mean probability has to fall by more, or rounding in other batches would decide."""


class Change(NamedTuple):
    """A step of an attack."""

    before: str
    """What stood in the prompt; empty where text was added."""
    after: str
    accuracy: float
    """With this change and all before it."""
    queries: int
    """Spent by then."""


@dataclasses.dataclass(frozen=True)
class Attack:
    """What an attack found. Accuracies are those on the instances that it searched with."""

    wording: Wording
    """The worst one; its `origin` and `index` are the index of the wording that was attacked."""
    clean_accuracy: float
    accuracy: float
    queries: int
    """Prompts asked, each on all instances; the clean one and the deletions count."""
    steps: tuple[Change, ...]


class Outcome(NamedTuple):
    """How the model fares with a prompt; what compares as less is worse."""

    accuracy: float
    probability: float
    """Of the right answer, mean over instances: softmax over the answers' scores."""
    margin: float
    """Log-likelihood of the right answer less that of the likeliest other, mean over instances."""


def attack(
    scorer: AnswerScorer,
    task: SuiteTask,
    wording: Wording,
    instances: Sequence[Instance],
    method: str,
    *,
    budget: int,
    seed: int,
    condition: str,
    lexicon: Lexicon | None = None,
    length_normalized: bool = False,
    note: Callable[[str], None] | None = None,
) -> Attack:
    """Searches the wording, made with one perturbation, that the model answers worst.

    Character and word level: each word is tried once; its worst variant is kept where accuracy
    falls, or the mean probability of the right answer at the same accuracy. Sentence and semantic
    level: all variants are asked and the worst is taken, even if it is no worse than the clean
    wording. The search ends where accuracy is 0, the words or the budget are used up, or as many
    words are changed as the method allows. The same seed gives the same attack.

    Args:
      instances: to search with; others than those reported on, if there are enough.
      budget: queries at most; a query is one prompt asked on all instances.
      condition: that of the wording found.
      length_normalized: compare answers by mean log-likelihood of their tokens.
      note: is told of each call of the model how far the search is.

    Raises: PerturbationError for an unknown method and a missing lexicon; ValueError for no
    instances, a budget below 1, and scores of NaN.
    """
    perturbation = find_perturbation(method)
    if not instances:
        raise ValueError(f"task {task.name!r}: there are no instances to search an attack with")
    if budget < 1:
        raise ValueError(f"an attack's budget is {budget} queries; allowed: 1 or more")
    random = np.random.default_rng(stable_hash(seed, method, task.name, wording.text))
    questions = _Questions(scorer, task, instances, budget, length_normalized)

    def tell(what: str) -> None:
        if note:
            note(f"{method}, {task.name} {wording.name}: {what}")

    search = _Search(perturbation, lexicon, questions, wording.text, random, tell)
    search.run()
    return Attack(
        make_wording(task, condition, wording.index, search.text, origin=wording.index),
        search.clean.accuracy,
        search.now.accuracy,
        questions.asked,
        tuple(search.changes),
    )


class _Questions:
    """Asks the model whole prompts on all instances, as many as the budget allows."""

    def __init__(
        self,
        scorer: AnswerScorer,
        task: SuiteTask,
        instances: Sequence[Instance],
        budget: int,
        length_normalized: bool,
    ):
        self.task, self.budget, self.asked = task, budget, 0
        self._scorer, self._instances = scorer, instances
        self._labels_I = np.array([instance.label for instance in instances])
        self._length_normalized = length_normalized

    @property
    def left(self) -> int:
        return self.budget - self.asked

    def ask(self, texts: Sequence[str]) -> list[Outcome]:
        """An outcome a text, in one call of the model; of no more texts than are left to ask."""
        texts = texts[: self.left]
        if not texts:
            return []
        self.asked += len(texts)
        wordings = [make_wording(self.task, "attack", n, text) for n, text in enumerate(texts)]
        prompts = [prompt(self.task, each, one) for each in wordings for one in self._instances]
        scores = self._scorer.score(
            prompts, list(self.task.answers), length_normalized=self._length_normalized
        )
        shape = (len(texts), len(self._instances), len(self.task.answers))
        scores_TxIxA = np.asarray(scores, np.float64).reshape(shape)
        if np.isnan(scores_TxIxA).any():
            number, instance, _ = np.argwhere(np.isnan(scores_TxIxA))[0]
            raise ValueError(
                f"the model gives NaN for task {self.task.name!r}, prompt {texts[number]!r}, "
                f"instance {self._instances[instance].key}: its parameters may have diverged"
            )
        is_right_IxA = self._labels_I[:, None] == np.arange(shape[2])
        right_TxI = scores_TxIxA[:, is_right_IxA]
        margin_TxI = right_TxI - np.where(is_right_IxA, -np.inf, scores_TxIxA).max(-1)
        odds_TxIxA = np.exp(scores_TxIxA - scores_TxIxA.max(-1, keepdims=True))
        probability_TxI = odds_TxIxA[:, is_right_IxA] / odds_TxIxA.sum(-1)
        correct_TxI = scores_TxIxA.argmax(-1) == self._labels_I
        means = (values.mean(1) for values in (correct_TxI, probability_TxI, margin_TxI))
        return [Outcome(*map(float, row)) for row in zip(*means, strict=True)]


class _Search:
    """One prompt on its way down."""

    def __init__(
        self,
        perturbation: Perturbation,
        lexicon: Lexicon | None,
        questions: _Questions,
        text: str,
        random: np.random.Generator,
        note: Callable[[str], None],
    ):
        self._perturbation, self._lexicon, self._questions = perturbation, lexicon, questions
        self._frozen = (*questions.task.answers, *questions.task.frozen_words)
        self._random, self._note = random, note
        self.text = text
        self.clean = self.now = questions.ask([text])[0]
        self.changes: list[Change] = []

    def run(self) -> None:
        sites = self._perturbation.sites(self.text, self._frozen)
        is_greedy = self._perturbation.level in ("character", "word")
        allowed = self._perturbation.allowed(len(sites))
        waiting = self._by_importance(sites) if is_greedy and self.now.accuracy else sites
        while (
            waiting and self.now.accuracy and self._questions.left and len(self.changes) < allowed
        ):
            site, *waiting = waiting
            growth = self._change(site, anyway=not is_greedy)
            waiting = [other.moved(site, growth) for other in waiting]

    def _by_importance(self, sites: list[Site]) -> list[Site]:
        """The word first whose deletion hurts most; words that there is no budget for come last."""
        deleted = [_without(self.text, site) for site in sites[: self._questions.left // 2]]
        outcomes = self._questions.ask(deleted)
        self._tell(f"{len(outcomes)} words ranked")
        ranked = [
            site
            for _, site in sorted(
                zip(outcomes, sites, strict=False),
                key=lambda pair: (pair[0].accuracy, pair[0].margin, pair[1]),
            )
        ]
        return ranked + sites[len(ranked) :]

    def _change(self, site: Site, anyway: bool) -> int:
        """Puts in the site's worst variant, if it is worse or `anyway`; how much the text grew."""
        variants = self._perturbation.variants(
            self.text, site, self._random, self._lexicon, self._frozen
        )
        outcomes = self._questions.ask(variants)
        if not outcomes:
            return 0
        worst = min(range(len(outcomes)), key=outcomes.__getitem__)
        before = self.text[site.start : site.end]
        bar = self.now._replace(probability=self.now.probability - NOISE)
        if not anyway and outcomes[worst] >= bar:
            self._tell(f"{before!r} stays")
            return 0
        growth = len(variants[worst]) - len(self.text)
        self.text, self.now = variants[worst], outcomes[worst]
        after = self.text[site.start : site.end + growth]
        self.changes.append(Change(before, after, self.now.accuracy, self._questions.asked))
        self._tell(f"{before!r} -> {after!r}")
        return growth

    def _tell(self, what: str) -> None:
        self._note(
            f"{what}; accuracy {self.clean.accuracy:.1%} -> {self.now.accuracy:.1%}, "
            f"{self._questions.asked} of {self._questions.budget} queries"
        )


def _without(text: str, site: Site) -> str:
    """The text less a word and one of the spaces around it."""
    before, after = text[: site.start], text[site.end :]
    return before + (after[1:] if before[-1:] in ("", " ") and after[:1] == " " else after)
