"""Wordings by a T5 that paraphrases.

T5's vocabulary has neither braces nor line breaks (Raffel et al. 2020, section 2.2), so a template
goes through it line by line, with letters for its placeholders: "Does {premise} imply {claim}?" is
asked as "Does X imply Y?". Lines that say nothing themselves stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from coin_jax.curation.paraphrasers.paraphraser import (
    Request,
    Usage,
    keep_sound,
)
from coin_jax.progress import Progress
from coin_jax.robustness.perturb import frozen_spans

Generate = Callable[[list[str]], Sequence[Sequence[str]]]
"""Texts -> several rewordings of each, best first."""

BATCH = 64
LEAST_WORDS = 3
"""Of a line that is reworded; `Answer:` and `Sentence 1: {text}` are no sentences."""
LETTERS = "XYZWVUTSRQPNMLKJHGFEDCB"


class Masked(NamedTuple):
    """A line with letters for its placeholders and other braces."""

    text: str
    letters: dict[str, str]
    """What stands for what, {letter: placeholder}."""


class Model:
    """Rewordings by a function from texts to candidates; those that lost something are dropped."""

    name, origin = "model", "model"

    def __init__(self, generate: Generate):
        self.usage, self.notes = Usage(), []
        self._generate = generate

    def reword(self, requests: Sequence[Request], progress: Progress) -> list[list[str]]:
        lines: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for request in requests:
            for line in request.text.split("\n"):
                if is_sentence(line, request.frozen):
                    lines[line, request.frozen] = []
        asked = list(lines)
        for start in range(0, len(asked), BATCH):
            batch = asked[start : start + BATCH]
            masks = [mask(line) for line, _ in batch]
            answers = self._generate([masked.text for masked in masks])
            for (line, frozen), masked, answer in zip(batch, masks, answers, strict=True):
                kept = keep_sound(line, (unmask(each, masked) for each in answer), frozen)
                self.usage.dropped += len(answer) - len(kept)
                lines[line, frozen] = kept
            progress(start + len(batch), len(asked), "")
        results = [self._assemble(request, lines) for request in requests]
        self.usage.asked += len(requests)
        self.usage.failed += results.count([])
        return results

    def _assemble(
        self, request: Request, lines: Mapping[tuple[str, tuple[str, ...]], list[str]]
    ) -> list[str]:
        """The n-th candidate of every line makes the n-th wording; a line without one stays."""
        originals = request.text.split("\n")
        candidates = [lines.get((line, request.frozen), []) for line in originals]
        wordings = (
            "\n".join(
                found[number] if number < len(found) else original
                for original, found in zip(originals, candidates, strict=True)
            )
            for number in range(max(map(len, candidates)))
        )
        return keep_sound(request.text, wordings, request.frozen)


def is_sentence(line: str, frozen: Sequence[str]) -> bool:
    """Whether a line has enough words to be reworded, besides what must stay."""
    rest = line
    for span in reversed(frozen_spans(line, frozen)):
        rest = rest[: span.start] + " " + rest[span.end :]
    words = re.findall(r"[^\W\d_]{2,}", rest)
    return len(words) >= LEAST_WORDS and len(mask(line).letters) == len(frozen_spans(line))


def mask(line: str) -> Masked:
    """Puts a capital letter that the line does not use as a word for each brace and placeholder.

    Where there are not letters enough, the last braces stay.
    """
    free = (letter for letter in LETTERS if not re.search(rf"\b{letter}\b", line))
    letters, text, end = {}, "", 0
    for span, letter in zip(frozen_spans(line), free, strict=False):
        letters[letter] = line[span.start : span.end]
        text += line[end : span.start] + letter
        end = span.end
    return Masked((text + line[end:]).strip(), letters)


def unmask(candidate: str, masked: Masked) -> str:
    """The placeholders back in place of their letters."""
    if not masked.letters:
        return candidate
    return re.sub(
        rf"\b(?:{'|'.join(masked.letters)})\b", lambda match: masked.letters[match[0]], candidate
    )
