"""What a paraphraser is, and which of its rewordings can stand for a text."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from coin_jax.data.set_format import Origin
from coin_jax.data.sources import DataError
from coin_jax.data.templates import parse_template
from coin_jax.progress import Progress
from coin_jax.robustness.perturb.words import frozen_texts
from coin_jax.untrusted import is_whole, steers_terminal


class Request(NamedTuple):
    """An instruction to reword."""

    task: str
    wording: str
    """Its name in the task."""
    text: str
    """Template text; its placeholders stay."""
    frozen: tuple[str, ...] = ()
    """The answers and other words that must occur as often as they do, no more and no less."""


@dataclasses.dataclass
class Usage:
    """What rewording took, for the manifest."""

    asked: int = 0
    """Different texts that it worked on; of a chat, those that its cache did not have."""
    cached: int = 0
    """Different texts whose rewordings were in the cache."""
    failed: int = 0
    """Of those asked, the ones that gave nothing."""
    dropped: int = 0
    """Rewordings that lost or gained a placeholder or a frozen word, or were no change."""
    tries: int = 0
    """Requests sent to an endpoint, repeated ones included."""
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0


class Paraphraser(Protocol):
    """Makes more wordings out of some."""

    name: str
    origin: Origin
    usage: Usage
    notes: list[str]
    """What went wrong on the way, in sentences for the log."""

    def reword(self, requests: Sequence[Request], progress: Progress) -> list[list[str]]:
        """Rewordings of each request, in their order, distinct, best first.

        A few more than were asked for, since filters drop some; none where it found none.
        """


def has_words(text: str) -> bool:
    """Whether a template says anything besides its placeholders."""
    return any(literal.strip() for literal, _ in parse_template(text, "wording").parts)


def keep_sound(text: str, candidates: Iterable[str], frozen: Sequence[str]) -> list[str]:
    """The candidates that can stand for a text, without blanks around them, each once.

    They have its placeholders and frozen words, each as often, differ by more than blanks, and hold
    neither half characters nor what steers a terminal.
    """
    needed = frozen_texts(text, frozen), _placeholders(text)
    kept: dict[str, str] = {}
    for candidate in map(str.strip, candidates):
        if steers_terminal(candidate) or not is_whole(candidate):
            continue
        try:
            found = frozen_texts(candidate, frozen), _placeholders(candidate)
        except DataError:  # a brace too many or too few
            continue
        if found == needed:
            kept.setdefault(" ".join(candidate.split()), candidate)
    kept.pop(" ".join(text.split()), None)
    return list(kept.values())


def _placeholders(text: str) -> Counter[str]:
    # In their own case, which `frozen_texts` does not tell apart.
    return Counter(name for _, name in parse_template(text, "wording").parts if name)
