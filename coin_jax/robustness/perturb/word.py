"""Word level: other words that mean the same, or that fit as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from coin_jax.robustness.perturb.method import Lexicon, Perturbation
from coin_jax.robustness.perturb.words import STOP_WORDS, Site, with_case, word_sites


def _substitute(count: int) -> Callable[..., Iterator[str]]:
    """The lexicon's first `count` words in the case of the one they replace."""

    def replace(
        text: str, site: Site, random: np.random.Generator, lexicon: Lexicon
    ) -> Iterator[str]:
        word = text[site.start : site.end]
        found = lexicon.synonyms(word, text, site.start, site.end)
        kept = [each for each in found if each.lower() not in STOP_WORDS | {word.lower()}]
        yield from (with_case(each, word) for each in kept[:count])

    return replace


METHODS = (
    Perturbation(
        name="textfooler",
        level="word",
        source="Jin et al. 2020, Is BERT Really Robust? A Strong Baseline for Natural Language "
        "Attack on Text Classification and Entailment, AAAI, arXiv 1907.11932",
        departures="Synonyms are the lexicon's first 50, not those of counter-fitted vectors with "
        "cosine 0.7; neither a part-of-speech tagger nor a sentence encoder filters them.",
        find=word_sites,
        replace=_substitute(50),
        lexicon="a lexicon of synonyms: WordNetLexicon, or EmbeddingLexicon with a model's vectors",
    ),
    Perturbation(
        name="bertattack",
        level="word",
        source="Li et al. 2020, BERT-ATTACK: Adversarial Attack Against BERT Using BERT, EMNLP, "
        "arXiv 2004.09984",
        departures="Candidates are the lexicon's first 48, from T5's infilling of the masked word "
        "rather than from BERT's predictions at the word left unmasked; words are replaced whole, "
        "so no combinations of sub-words are tried.",
        find=word_sites,
        replace=_substitute(48),
        lexicon="a lexicon from a masked language model: InfillingLexicon, which asks T5 to fill "
        "the place of the word",
        most_share=0.4,
    ),
)
