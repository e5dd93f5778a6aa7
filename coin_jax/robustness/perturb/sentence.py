"""Sentence level: irrelevant text after the instruction. Semantic level: all in other words."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence

import numpy as np

from coin_jax.robustness.perturb.method import Lexicon, Perturbation
from coin_jax.robustness.perturb.words import Site

TAUTOLOGIES = ("and true is true", "and false is not true")
REPETITIONS = 5
SEQUENCE_LENGTH = 10
SEQUENCES = 12
"""How many random sequences are offered; a search may try each of them."""

_CLOSING = re.compile(
    r"""(?:(?<=[\n.?!:])|\A)\s*["'“]?\{\w+\}["'”]?\s*\Z"""  # {text} on its own
    r"|(?:(?<=\n)\w+(?:[ ]\w+){0,2}|(?<=[.?!])\s+\w+):\s*\Z"  # Answer:
)


def _end(text: str, frozen: Sequence[str]) -> list[Site]:
    """The end of the instruction: before the fields, and lead-ins like `Answer:`, that close it.

    After `{sentence}` or `Answer:` it would not be the instruction that is changed, but the
    instance or the answer's beginning. None in a blank text.
    """
    end = len(text.rstrip())
    while match := _CLOSING.search(text, 0, end):
        start = len(text[: match.start()].rstrip())
        if not start:
            break
        end = start
    return [Site(end, end)] if end else []


def _spaced(text: str, site: Site, addition: str) -> str:
    follows = text[site.end : site.end + 1]
    return f" {addition}" + (" " if follows.strip() else "")


def _checklist(
    text: str, site: Site, random: np.random.Generator, lexicon: Lexicon | None
) -> Iterator[str]:
    """Ten random letters and digits, bare, as a handle or as a shortened address, in turn."""
    symbols = list(string.ascii_letters + string.digits)
    for number in range(SEQUENCES):
        sequence = "".join(random.choice(symbols, SEQUENCE_LENGTH))
        yield _spaced(text, site, ("", "@", "https://t.co/")[number % 3] + sequence)


def _stresstest(
    text: str, site: Site, random: np.random.Generator, lexicon: Lexicon | None
) -> Iterator[str]:
    for tautology in TAUTOLOGIES:
        yield _spaced(text, site, tautology)
    yield _spaced(text, site, " ".join([TAUTOLOGIES[0]] * REPETITIONS))


def _whole(text: str, frozen: Sequence[str]) -> list[Site]:
    return [Site(0, len(text))] if text.strip() else []


def _reworded(
    text: str, site: Site, random: np.random.Generator, lexicon: Lexicon
) -> Iterator[str]:
    yield from lexicon.synonyms(text, text, site.start, site.end)


METHODS = (
    Perturbation(
        name="checklist",
        level="sentence",
        source="Ribeiro et al. 2020, Beyond Accuracy: Behavioral Testing of NLP Models with "
        "CheckList, ACL, arXiv 2005.04118 (invariance to random handles and URLs)",
        departures="It is appended to the instruction, not to the instance, as PromptBench does.",
        find=_end,
        replace=_checklist,
    ),
    Perturbation(
        name="stresstest",
        level="sentence",
        source="Naik et al. 2018, Stress Test Evaluation for Natural Language Inference, COLING, "
        "arXiv 1806.00692 (word overlap, negation, length mismatch)",
        departures="It is appended to the instruction, not to premise or hypothesis, as "
        "PromptBench does; also where `true` or `false` is an answer.",
        find=_end,
        replace=_stresstest,
    ),
    Perturbation(
        name="semantic",
        level="semantic",
        source="Zhu et al. 2023, PromptBench, arXiv 2306.04528 (semantic-level prompts)",
        departures="Rewordings come from a paraphraser rather than by translation from other "
        "languages; those that lose a placeholder or a frozen word are dropped.",
        find=_whole,
        replace=_reworded,
        lexicon="a paraphraser: ParaphrasingLexicon with a function from a text to rewordings; or "
        "put rewordings of your own into the suite, as a condition",
    ),
)
