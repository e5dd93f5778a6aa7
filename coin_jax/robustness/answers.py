"""Which of the known answers a generated text gives.

As the evaluation of PromptBench (Zhu et al. 2023) and of the CoIN paper's code: the text in lower
case, without padding and end tokens and without punctuation around it, must begin with an answer;
any other is invalid. Different from there:

- a whole word must end where the answer ends: `positively` is not `positive`, `1.5` is not `1`;
- of several answers the longest counts, not the one that stands first in a list;
- answers are normalised as the text is, so that one with a capital letter can be given at all;
- runs of white space count as one space;
- there, the numbers of the labels pass for their names; here they do only as answers of the task.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence

INVALID = -1
"""What `match` says of a text that gives no answer."""

_SPECIAL = re.compile(r"<pad>|</s>")
_AROUND = re.compile(r"^[\W_]+|[\W_]+$")


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation at the ends, no `<pad>` and `</s>`.

    Of a text that is all punctuation it stays.
    """
    text = " ".join(_SPECIAL.sub(" ", text.lower()).split())
    return _AROUND.sub("", text) or text


def match(text: str, answers: Sequence[str]) -> int:
    """Index of the answer that the text begins with, after `normalise`; -1 where it gives none.

    The longest such answer; of two that are normalised alike, the first.
    """
    pattern, places = _compiled(tuple(answers))
    found = pattern.match(normalise(text))
    return places[found.lastindex - 1] if found else INVALID


def prefixes(answers: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (shorter, longer) of which one begins the other after `normalise`, or equals it.

    A generation that is cut off, or goes on, may then be taken for the wrong one; and where
    end-of-sequence is not scored the longer can never win.
    """
    pairs = []
    for pair in itertools.combinations(zip(map(normalise, answers), answers, strict=True), 2):
        (beginning, shorter), (whole, longer) = sorted(pair, key=lambda entry: len(entry[0]))
        if whole.startswith(beginning):
            pairs.append((shorter, longer))
    return pairs


@functools.lru_cache(maxsize=256)
def _compiled(answers: tuple[str, ...]) -> tuple[re.Pattern[str], list[int]]:
    """One group an answer, the longest first, and which answer each group stands for."""
    texts = [normalise(answer) for answer in answers]
    places = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
    groups = "|".join(f"({re.escape(texts[place])})" for place in places)
    return re.compile(rf"(?:{groups})(?!\w|[.,]\d)"), places
