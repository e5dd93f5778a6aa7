"""What a new wording must keep of the one that it rewords, and where it must differ from it."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein

from coin_jax.curation.config import FilterConfig
from coin_jax.data.sources import DataError
from coin_jax.data.templates import OPTIONS, parse_template
from coin_jax.robustness.perturb.words import frozen_spans, frozen_texts
from coin_jax.robustness.suite import template_words, words

LEAKING_WORDS = 5
"""Of a long answer so many in a row give it away."""
LEAST_LIKELY = 0.01
"""A text is in another language where the language asked for is less likely than this share of the
most likely one. Short and misspelt texts stay above."""
CONTENT_WORDS = 5
"""A frozen text of so many words is content, not instruction: how a wording reads, how long it is
and how far from another is measured without it."""

_LIST = re.compile(r"^[ \t]*options?:.*(?:\n[ \t]*-.*)*", re.IGNORECASE | re.MULTILINE)
_MARK = re.compile(r"\boptions?\s*:", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"\{\w*\}")
_TOKEN = re.compile(r"\{\w*\}|[^\W_]+")

Encode = Callable[[Sequence[str]], np.ndarray]
"""Texts -> unit vectors [N, D]."""


class Candidate(NamedTuple):
    """A new wording, and what it rewords."""

    task: str
    original: str
    text: str
    answers: tuple[str, ...] = ()
    """The task's closed set."""
    frozen: tuple[str, ...] = ()
    """Other texts that stay."""
    target: str | None = None
    """The answer, where the wording belongs to a single instance."""


class Fault(NamedTuple):
    """Why a wording is left out."""

    filter: str
    """One of FILTERS."""
    detail: str


def wording_fault(
    original: str,
    candidate: str,
    *,
    answers: Sequence[str] = (),
    frozen: Sequence[str] = (),
    target: str | None = None,
    settings: FilterConfig,
    similarity: Encode | None = None,
) -> Fault | None:
    """What is wrong with one rewording by itself; None where nothing is."""
    each = Candidate("", original, candidate, tuple(answers), tuple(frozen), target)
    return wording_faults([each], settings, similarity)[0]


def wording_faults(
    candidates: Sequence[Candidate],
    settings: FilterConfig,
    similarity: Encode | None = None,
    taken: Mapping[str, Iterable[str]] | None = None,
) -> list[Fault | None]:
    """What is wrong with each rewording; None where nothing is.

    `taken`: by task, the wordings that there are; those that pass count for the ones after them.
    `similarity` sees all texts that pass the other filters, in one call.

    Raises: ValueError where the settings ask for a similarity and none is given, and for a language
    that is not known; DataError for an original that is no template.
    """
    if settings.least_similarity > 0 and similarity is None:
        raise ValueError(
            "filters.least_similarity needs filters.similarity_checkpoint, which measures it"
        )
    faults = [_fault(candidate, settings) for candidate in candidates]
    if settings.least_similarity > 0:
        _add_dissimilar(faults, candidates, settings.least_similarity, similarity)
    known = {task: list(texts) for task, texts in (taken or {}).items()}
    for place, (candidate, fault) in enumerate(zip(candidates, faults, strict=True)):
        if fault is None:
            others = known.setdefault(candidate.task, [])
            faults[place] = _near_duplicate(candidate, others, settings)
            if faults[place] is None:
                others.append(candidate.text)
    return faults


def _fault(candidate: Candidate, settings: FilterConfig) -> Fault | None:
    return (
        _placeholders(candidate)
        or _options(candidate)
        or _answer_leak(candidate)
        or _label_words(candidate)
        or _length(candidate, settings.length_ratio)
        or _language(candidate, settings.language)
        or _near_copy(candidate, settings.least_edit_distance)
    )


# --- what is kept -------------------------------------------------------------------------


def _placeholders(candidate: Candidate) -> Fault | None:
    before = _names(candidate.original)
    try:
        after = _names(candidate.text)
    except DataError as error:
        return Fault("placeholders", str(error))
    if before == after:
        return None
    changed = _changed(before, after, "{%s}")
    before.pop(OPTIONS, None), after.pop(OPTIONS, None)
    return Fault("options" if before == after else "placeholders", changed)


def _names(template: str) -> Counter[str]:
    return Counter(name for _, name in parse_template(template, "wording").parts if name)


def _options(candidate: Candidate) -> Fault | None:
    """A list of options as it stands in the text, not the placeholder for one."""
    before, after = (
        (len(_MARK.findall(text)), [tuple(each.split()) for each in _LIST.findall(text)])
        for text in (candidate.original, candidate.text)
    )
    if before == after:
        return None
    return Fault("options", "the list of options, or its mark, is not as it was")


def _answer_leak(candidate: Candidate) -> Fault | None:
    target = words(candidate.target or "")
    size = min(len(target), LEAKING_WORDS)
    if not size:
        return None
    leaked = _grams(target, size) & _grams(words(candidate.text), size)
    leaked -= _grams(words(candidate.original), size)
    return Fault("answer leak", f"names {' '.join(min(leaked))!r}") if leaked else None


def _grams(text: Sequence[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(text[start : start + size]) for start in range(len(text) - size + 1)}


def _label_words(candidate: Candidate) -> Fault | None:
    labels = tuple(map(_unified, (*candidate.answers, *candidate.frozen)))
    before, after = (
        frozen_texts(_shown(text), labels) for text in (candidate.original, candidate.text)
    )
    if before == after:
        return None
    return Fault("label words", _changed(before, after, "%.60r"))


def _shown(template: str) -> str:
    """The text as it is shown, with single braces and one way to write each character."""
    parts = parse_template(template, "wording").parts
    return _unified("".join(literal + (f"{{{name}}}" if name else "") for literal, name in parts))


def _unified(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("’", "'")


def _changed(before: Counter[str], after: Counter[str], form: str) -> str:
    parts = []
    for verb, names in (("loses", before - after), ("adds", after - before)):
        if names:
            parts.append(f"{verb} {', '.join(form % name for name in sorted(names.elements()))}")
    return "; ".join(parts)


# --- how it reads -------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _instruction(template: str, frozen: tuple[str, ...]) -> str:
    """The text as shown, without content."""
    text = _shown(template)
    content = tuple(_unified(each) for each in frozen if len(words(each)) >= CONTENT_WORDS)
    for start, end in reversed(frozen_spans(text, content) if content else []):
        if not _PLACEHOLDER.fullmatch(text[start:end]):
            text = f"{text[:start]} {text[end:]}"
    return text


def _length(candidate: Candidate, most: float) -> Fault | None:
    before, after = (
        max(1, len(" ".join(template_words(_instruction(text, candidate.frozen)))))
        for text in (candidate.original, candidate.text)
    )
    if max(before, after) <= most * min(before, after):
        return None
    return Fault("length", f"{after} letters and spaces for {before}, placeholders aside")


def _language(candidate: Candidate, language: str) -> Fault | None:
    other = _other_language(candidate.text, candidate.frozen, language)
    # Where the original seems to be in another one too, who knows.
    if not other or _other_language(candidate.original, candidate.frozen, language):
        return None
    return Fault("language", f"reads as {other!r}")


def _other_language(text: str, frozen: tuple[str, ...], language: str) -> str:
    """The language that a text is in, where it is surely not in the one asked for; else empty."""
    if not language:
        return ""
    plain = _PLACEHOLDER.sub(" ", _instruction(text, frozen))
    ranking = dict(_identifier(language).rank(" ".join(plain.split())))
    likeliest = max(ranking, key=ranking.__getitem__)
    return likeliest if ranking[language] < LEAST_LIKELY * ranking[likeliest] else ""


@functools.cache
def _identifier(language: str):
    # py3langid: naive Bayes over byte n-grams (Lui & Baldwin 2012); the model is in the package.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if language not in identifier.labels:
        known = ", ".join(sorted(identifier.labels))
        raise ValueError(f"filters.language is {language!r}; the languages known are {known}")
    return identifier


# --- where it differs ---------------------------------------------------------------------


def _near_copy(candidate: Candidate, least: float) -> Fault | None:
    distance = _distance(candidate.original, candidate.text, candidate.frozen)
    if distance and distance >= least:
        return None
    return Fault("near-copy", f"{distance:.1%} of its characters are different")


def _near_duplicate(
    candidate: Candidate, others: Iterable[str], settings: FilterConfig
) -> Fault | None:
    for other in others:
        distance = _distance(other, candidate.text, candidate.frozen)
        if not distance or distance < settings.least_edit_distance:
            return Fault("near-duplicate", f"of {other!r}")
    return None


def _distance(first: str, second: str, frozen: tuple[str, ...]) -> float:
    """Edits as a share of the longer text's characters, from 0 to 1."""
    return Levenshtein.normalized_distance(_plain(first, frozen), _plain(second, frozen))


@functools.lru_cache(maxsize=4096)
def _plain(template: str, frozen: tuple[str, ...]) -> str:
    """Words and placeholders: differences in case, punctuation and white space are none."""
    return " ".join(_TOKEN.findall(_instruction(template, frozen).casefold()))


def _add_dissimilar(
    faults: list[Fault | None],
    candidates: Sequence[Candidate],
    least: float,
    similarity: Encode,
) -> None:
    asked = [place for place, fault in enumerate(faults) if fault is None]
    if not asked:
        return
    pairs = [(candidates[place].original, candidates[place].text) for place in asked]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(sum(pairs, ())))}
    vectors_NxD = np.asarray(similarity(list(numbers)), np.float32)
    if vectors_NxD.ndim != 2 or len(vectors_NxD) != len(numbers):
        raise ValueError(
            f"similarity: {len(numbers)} texts must give as many vectors, and gave an array of "
            f"shape {vectors_NxD.shape}"
        )
    for place, (original, text) in zip(asked, pairs, strict=True):
        cosine = float(vectors_NxD[numbers[original]] @ vectors_NxD[numbers[text]])
        if not cosine >= least:  # nor is one that is not a number
            faults[place] = Fault("similarity", f"cosine {cosine:.2f}")
