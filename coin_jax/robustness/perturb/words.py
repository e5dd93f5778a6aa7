"""Words and frozen spans of a prompt: what a perturbation may change, and what it must leave."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_FUNCTION_WORDS = """
    a an the this that these those
    i me my mine myself we us our ours ourselves you your yours yourself yourselves
    he him his himself she her hers herself it its itself they them their theirs themselves
    who whom whose which what where when why how whether
    am is are was were be been being do does did doing done have has had having
    can could may might must shall should will would ought
    about above across after against along among around as at before behind below beneath beside
    besides between beyond by down during except for from in inside into like near of off on onto
    out outside over past per since than through throughout till to toward towards under until up
    upon via with within without
    and or but nor so yet if unless because although though while whereas either neither both
    no not none never only just too very also again then there here such same other another
    any some each every all few more most much many own one ones everybody everyone everything
    somebody someone something anybody anyone anything nobody nothing
    don't doesn't didn't isn't aren't wasn't weren't hasn't haven't hadn't can't couldn't won't
    wouldn't shouldn't mustn't i'm you're he's she's it's we're they're i've you've we've they've
    i'll you'll he'll she'll we'll they'll i'd you'd he'd she'd we'd they'd that's there's what's
    let's
"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())
"""English function words. Replacing one breaks the grammar or, as with `not`, the meaning."""

_BRACES = r"\{\{|\}\}|\{[^{}]*\}|[{}]"
_WORD = re.compile("[a0][a0m]*(?:'[a0][a0m]*)*")


class Site(NamedTuple):
    """A place that can be changed: text[start:end]; empty where something is put in."""

    start: int
    end: int

    def moved(self, changed: Site, growth: int) -> Site:
        """This site after another one was changed and the text grew by so many characters."""
        shift = growth if changed.start < self.start else 0
        return Site(self.start + shift, self.end + shift)


def frozen_spans(text: str, words: Sequence[str] = ()) -> list[Site]:
    """Where a text must stay as it is, in order and without overlaps.

    Those are placeholders and all other braces, and `words`: label words, several words in a row
    too, in any case and spacing, as whole words (`not_entailment` is three of them). Words inside
    words do not count: `real` is not frozen in `really`.
    """
    spans: list[Site] = []
    for start, end in sorted(m.span() for p in _patterns(tuple(words)) for m in p.finditer(text)):
        if spans and start < spans[-1].end:
            spans[-1] = Site(spans[-1].start, max(end, spans[-1].end))
        else:
            spans.append(Site(start, end))
    return spans


def frozen_texts(text: str, words: Sequence[str] = ()) -> Counter[str]:
    """What is frozen in a text and how often, whatever its case and spacing."""
    texts = (text[start:end] for start, end in frozen_spans(text, words))
    return Counter(" ".join(each.casefold().split()) for each in texts)


@functools.lru_cache(maxsize=64)
def _patterns(words: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    """One a word, so that `not entailment` is found beside `entailment`."""
    spaced = (r"\s+".join(map(re.escape, word.split())) for word in words if word.strip())
    whole = (rf"(?<![^\W_]){word}(?![^\W_])" for word in spaced)
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in (_BRACES, *whole))


def word_sites(text: str, frozen: Sequence[str] = (), least: int = 2) -> list[Site]:
    """Words that may be changed: of `least` letters, neither stop words nor in a frozen span.

    A word is a run of letters with their marks and with apostrophes inside; a run that holds a
    digit is a number or a name and stays.
    """
    spans, sites = frozen_spans(text, frozen), []
    kinds = "".join(map(_kind, text))
    for match in _WORD.finditer(kinds):
        start, end = match.span()
        if (
            match[0].count("a") >= least
            and "0" not in match[0]
            and text[start:end].replace("’", "'").lower() not in STOP_WORDS
            and not any(span.start < end and start < span.end for span in spans)
        ):
            sites.append(Site(start, end))
    return sites


def letters(word: str) -> list[str]:
    """The letters of a word as a reader sees them, each with its combining marks."""
    found: list[str] = []
    for character in word:
        if found and _kind(character) == "m":
            found[-1] += character
        else:
            found.append(character)
    return found


def with_case(text: str, pattern: str) -> str:
    """`text` in capitals, capitalised or in small letters, as `pattern` is; else as it stands."""
    if pattern.isupper() and len(pattern) > 1:
        return text.upper()
    if pattern.islower():
        return text.lower()
    if pattern[:1].isupper() and not any(map(str.isupper, pattern[1:])):
        return text[:1].upper() + text[1:]
    return text


def _kind(character: str) -> str:
    """a: a letter, 0: a digit, m: a mark on the letter before it (or a joiner), ': an apostrophe"""
    if character.isalpha():
        return "a"
    if character.isalnum():
        return "0"
    if unicodedata.category(character)[0] == "M" or character in "\u200c\u200d":
        return "m"
    return "'" if character in "'’" else " "
