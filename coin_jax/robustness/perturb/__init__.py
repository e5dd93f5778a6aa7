"""Perturbed prompts: seeded changes to the wording of an instruction, its frozen spans untouched.

`perturb` makes a random copy. A search asks a `Perturbation` for its sites and for the variants of
each. Instructions are template text: placeholders stand in single braces and stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coin_jax.robustness.perturb import character, sentence, word
from coin_jax.robustness.perturb.lexicon import (
    EmbeddingLexicon,
    InfillingLexicon,
    ParaphrasingLexicon,
)
from coin_jax.robustness.perturb.method import Lexicon, Perturbation, PerturbationError
from coin_jax.robustness.perturb.wordnet import WordNetLexicon
from coin_jax.robustness.perturb.words import Site, frozen_spans

__all__ = [
    "PERTURBATIONS",
    "EmbeddingLexicon",
    "InfillingLexicon",
    "Lexicon",
    "ParaphrasingLexicon",
    "Perturbation",
    "PerturbationError",
    "Site",
    "WordNetLexicon",
    "find_perturbation",
    "frozen_spans",
    "perturb",
]

PERTURBATIONS: dict[str, Perturbation] = {
    method.name: method for method in (*character.METHODS, *word.METHODS, *sentence.METHODS)
}
DRAWN = 12
"""`perturb` draws among so many of a site's variants: a lexicon's last ones are poor."""


def find_perturbation(name: str) -> Perturbation:
    """The perturbation of that name. PerturbationError, with the names, where there is none."""
    if name not in PERTURBATIONS:
        raise PerturbationError(
            f"unknown perturbation {name!r}; there are {', '.join(PERTURBATIONS)}"
        )
    return PERTURBATIONS[name]


def perturb(
    text: str,
    method: str,
    *,
    frozen: Sequence[str],
    random: np.random.Generator,
    share: float = 0.3,
    lexicon: Lexicon | None = None,
) -> str:
    """A random perturbed copy of a text; the text itself where nothing in it can be changed.

    `share` of the sites are changed, one at least and as many at most as the method allows, each
    as if it were the only one. `frozen` are label words and others that must stay. The same state
    of `random` gives the same copy.

    Raises: PerturbationError for an unknown method, a share outside (0, 1], a missing lexicon.
    """
    perturbation = find_perturbation(method)
    if not 0 < share <= 1:
        raise PerturbationError(f"share must be above 0 and at most 1, not {share}")
    sites = perturbation.sites(text, frozen)
    count = min(max(1, round(share * len(sites))), perturbation.allowed(len(sites)))
    chosen: dict[Site, str] = {}
    for number in random.permutation(len(sites)):
        if len(chosen) == count:
            break
        site = sites[number]
        if variants := perturbation.variants(text, site, random, lexicon, frozen)[:DRAWN]:
            variant = variants[random.integers(len(variants))]
            chosen[site] = variant[site.start : len(variant) - (len(text) - site.end)]
    for site in sorted(chosen, reverse=True):
        text = text[: site.start] + chosen[site] + text[site.end :]
    return text
