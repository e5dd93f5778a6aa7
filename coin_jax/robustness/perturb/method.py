"""What a perturbation is: where it changes a text, and into what."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

import numpy as np

from coin_jax.robustness.perturb.words import Site, frozen_texts


class PerturbationError(ValueError):
    """A perturbation that cannot be made: an unknown name, or something that it needs."""


class Lexicon(Protocol):
    """Where replacements of words come from."""

    def synonyms(self, word: str, text: str, start: int, end: int) -> list[str]:
        """Replacements for `word`, which is text[start:end]; best first, none that is `word`."""
        ...


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """A kind of change to a prompt."""

    name: str
    level: Literal["character", "word", "sentence", "semantic"]
    source: str
    """Who described it."""
    departures: str
    """Where this one differs from the source."""
    find: Callable[[str, Sequence[str]], list[Site]]
    """(text, frozen words) -> sites."""
    replace: Callable[[str, Site, np.random.Generator, Lexicon | None], Iterable[str]]
    """(text, site, random, lexicon) -> what may stand at the site, best first."""
    lexicon: str = ""
    """What kind of lexicon it cannot do without."""
    most_changes: int | None = None
    """How many sites of a text may be changed at most."""
    most_share: float = 1.0
    """The same as a share of the sites."""

    def sites(self, text: str, frozen: Sequence[str]) -> list[Site]:
        """Places that can be changed, in the order of the text, none within a frozen span."""
        return self.find(text, frozen)

    def variants(
        self,
        text: str,
        site: Site,
        random: np.random.Generator,
        lexicon: Lexicon | None = None,
        frozen: Sequence[str] = (),
    ) -> list[str]:
        """Whole texts with that site changed, best first, distinct, never the text itself.

        Placeholders are as they were. With `frozen` no variant has one frozen word more or less:
        a replacement that names an answer would give the model a hint. What sentence level appends
        is exempt.

        Raises: PerturbationError where it needs a lexicon and has none.
        """
        if self.lexicon and lexicon is None:
            raise PerturbationError(f"{self.name} needs {self.lexicon}")
        before, after = text[: site.start], text[site.end :]
        found = dict.fromkeys(
            before + new + after for new in self.replace(text, site, random, lexicon)
        )
        found.pop(text, None)
        if self.level == "sentence":
            return list(found)
        kept = frozen_texts(text, frozen)
        return [variant for variant in found if frozen_texts(variant, frozen) == kept]

    def allowed(self, sites: int) -> int:
        """How many of so many sites may be changed in one text."""
        most = sites if self.most_changes is None else min(sites, self.most_changes)
        return min(most, max(1, int(self.most_share * sites)))
