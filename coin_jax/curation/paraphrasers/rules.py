"""Wordings by rule: the perturbations of the robustness suites, drawn by what the text says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from coin_jax.curation.config import ParaphraseConfig
from coin_jax.curation.paraphrasers.paraphraser import Request, Usage, has_words
from coin_jax.data.draws import stable_hash
from coin_jax.progress import Progress
from coin_jax.robustness.perturb import Lexicon, PerturbationError, find_perturbation, perturb

SPARE = 2
"""Times as many copies as wanted: small changes to a long text count as no change at all."""
DRAWS = 4
"""Draws for each copy: a rule that has few to give gives the same one again."""


class Rules:
    """Random perturbed copies by each rule in turn.

    `lexicon` gives what a rule by that name takes its words from, or None.

    Raises: PerturbationError for an unknown rule, a share outside (0, 1], a missing lexicon.
    """

    name, origin = "rules", "rule"

    def __init__(
        self,
        config: ParaphraseConfig,
        lexicon: Callable[[str], Lexicon | None] = lambda rule: None,
        seed: int = 0,
    ):
        self.usage, self.notes = Usage(), []
        self._wanted, self._share, self._seed = config.wordings * SPARE, config.share, seed
        if not config.rules:
            raise PerturbationError("paraphrase.rules is empty, but methods has rules")
        if not 0 < config.share <= 1:
            raise PerturbationError(
                f"paraphrase.share must be above 0 and at most 1, not {config.share}"
            )
        self._lexicons = {rule: lexicon(rule) for rule in config.rules}
        for rule, found in self._lexicons.items():
            if (needed := find_perturbation(rule).lexicon) and found is None:
                raise PerturbationError(f"paraphrase.rules: {rule} needs {needed}")

    def reword(self, requests: Sequence[Request], progress: Progress) -> list[list[str]]:
        results = []
        for request in requests:
            results.append(self._copies(request) if has_words(request.text) else [])
            self.usage.asked += 1
            self.usage.failed += not results[-1]
            progress(len(results), len(requests), "")
        return results

    def _copies(self, request: Request) -> list[str]:
        rules, found = list(self._lexicons), {}
        for draw in range(self._wanted * DRAWS):
            rule = rules[draw % len(rules)]
            copy = perturb(
                request.text,
                rule,
                frozen=request.frozen,
                random=np.random.default_rng(
                    stable_hash(self._seed, "rules", rule, draw, request.text)
                ),
                share=self._share,
                lexicon=self._lexicons[rule],
            )
            if copy != request.text:
                found[copy] = None
            if len(found) == self._wanted:
                break
        return list(found)
