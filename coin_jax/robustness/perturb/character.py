"""Character level: typing errors and look-alikes."""

from __future__ import annotations

import string
from collections.abc import Iterator

import numpy as np

from coin_jax.robustness.perturb.method import Lexicon, Perturbation
from coin_jax.robustness.perturb.words import Site, letters, with_case, word_sites

LOOK_ALIKES = {
    **dict(zip("aceijopsxyh", "асеіјорѕхуһ", strict=True)),  # Cyrillic
    **dict(zip("ABCEHIJKMOPSTXY", "АВСЕНІЈКМОРЅТХҮ", strict=True)),  # Cyrillic
    **dict(zip("lvunNZ", "1νυոΝΖ", strict=True)),  # a digit, Greek, Armenian
}
"""Letters and what looks like them. None that NFKC, which T5's tokenizer applies, would undo."""

EDIT_DISTANCE = 30
"""DeepWordBug's bound on the Levenshtein distance between a text and its perturbed copy."""
_SWAP_DISTANCE = 2


def _like(letter: str, model: str) -> str:
    """The letter in the model's case, where that is still one letter."""
    cased = with_case(letter, model)
    return cased if len(cased) == len(letter) else letter


def _swap(word: list[str], first: int, random: np.random.Generator) -> Iterator[str]:
    """Two neighbours from `first` on that differ change places, if there are any."""
    last = len(word) - first
    pairs = [i for i in range(first, last - 1) if word[i].lower() != word[i + 1].lower()]
    if pairs:
        i = int(random.choice(pairs))
        pair = [_like(word[i + 1], word[i]), _like(word[i], word[i + 1])]
        yield "".join([*word[:i], *pair, *word[i + 2 :]])


def _delete(word: list[str], first: int, random: np.random.Generator) -> Iterator[str]:
    """One letter goes, of those that are `first` or more from either end."""
    if len(word) > max(2 * first, 1):
        i = int(random.integers(first, len(word) - first))
        rest = word[:i] + word[i + 1 :]
        rest[0] = _like(rest[0], word[0])
        yield "".join(rest)


def _random_letter(word: list[str], random: np.random.Generator) -> str:
    """From the alphabet, or among the word's own letters where it is not written in ASCII."""
    own = "".join(word)
    choices = string.ascii_lowercase if own.isascii() else sorted(set(letters(own.lower())))
    return str(random.choice(list(choices)))


def _deepwordbug(
    text: str, site: Site, random: np.random.Generator, lexicon: Lexicon | None
) -> Iterator[str]:
    """One of each: swap, substitution, deletion, insertion."""
    word = letters(text[site.start : site.end])
    yield from _swap(word, 0, random)
    i = int(random.integers(len(word)))
    yield "".join([*word[:i], _like(_random_letter(word, random), word[i]), *word[i + 1 :]])
    yield from _delete(word, 0, random)
    i = int(random.integers(1, len(word) + 1))
    model = word[i] if i < len(word) else word[i - 1]
    yield "".join([*word[:i], _like(_random_letter(word, random), model), *word[i:]])


def _textbugger(
    text: str, site: Site, random: np.random.Generator, lexicon: Lexicon | None
) -> Iterator[str]:
    """Insert, delete, swap, a look-alike, and with a lexicon the five nearest words."""
    whole = text[site.start : site.end]
    word = letters(whole)
    if len(word) < 6:
        i = int(random.integers(1, len(word)))
        yield "".join([*word[:i], " ", *word[i:]])
    yield from _delete(word, 1, random)
    if len(word) > 4:
        yield from _swap(word, 1, random)
    if places := [i for i, letter in enumerate(word) if letter in LOOK_ALIKES]:
        i = int(random.choice(places))
        yield "".join([*word[:i], LOOK_ALIKES[word[i]], *word[i + 1 :]])
    if lexicon is not None:
        near = lexicon.synonyms(whole, text, site.start, site.end)[:5]
        yield from (with_case(each, whole) for each in near)


METHODS = (
    Perturbation(
        name="deepwordbug",
        level="character",
        source="Gao et al. 2018, Black-box Generation of Adversarial Text Sequences to Evade Deep "
        "Learning Classifiers, arXiv 1801.04354",
        departures="The distance of 30 is kept by changing at most 15 words, as no edit costs more "
        "than 2. Stop words are left, as PromptBench does. Letters take the case of their place; a "
        "letter counts with its combining marks; in words that are not ASCII new letters come from "
        "the word itself.",
        find=word_sites,
        replace=_deepwordbug,
        most_changes=EDIT_DISTANCE // _SWAP_DISTANCE,
    ),
    Perturbation(
        name="textbugger",
        level="character",
        source="Li et al. 2019, TextBugger: Generating Adversarial Text Against Real-world "
        "Applications, NDSS, arXiv 1812.05271",
        departures="No sentence encoder bounds the meaning. Substituted characters are look-alikes "
        "only, not neighbours on the keyboard. Words are substituted where a lexicon is given, and "
        "its neighbours stand in for GloVe's.",
        find=word_sites,
        replace=_textbugger,
    ),
)
