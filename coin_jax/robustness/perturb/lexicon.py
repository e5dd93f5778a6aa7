"""Where replacements come from, WordNet aside: embeddings, T5's infilling, a paraphraser."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from coin_jax.robustness.perturb.method import PerturbationError

_SENTINEL = "<extra_id_0>"
_SENTINELS = re.compile(r"<extra_id_\d+>|<pad>|</s>")


class EmbeddingLexicon:
    """The words whose vectors have the greatest cosine with a word's.

    `words` [V] and `vectors_VxD`, such as a model's input embedding. These are not the
    counter-fitted vectors of TextFooler (Mrkšić et al. 2016): antonyms may be near, and cosines
    are on another scale, so that there is no threshold unless `least_cosine` sets one.
    """

    def __init__(
        self,
        words: Sequence[str],
        vectors: np.ndarray,
        *,
        count: int = 50,
        least_cosine: float = -1.0,
    ):
        vectors_VxD = np.asarray(vectors, np.float32)
        if vectors_VxD.ndim != 2 or len(vectors_VxD) != len(words):
            raise PerturbationError(
                f"an embedding lexicon needs a vector a word: {len(words)} words, but vectors of "
                f"shape {vectors_VxD.shape}"
            )
        norms = np.linalg.norm(vectors_VxD, axis=1, keepdims=True)
        self._unit_VxD = vectors_VxD / np.maximum(norms, np.finfo(np.float32).tiny)
        self._words = list(words)
        self._rows = {word: row for row, word in reversed(list(enumerate(words)))}
        self._count, self._least_cosine = count, least_cosine

    def synonyms(self, word: str, text: str, start: int, end: int) -> list[str]:
        row = self._rows.get(word, self._rows.get(word.lower()))
        if row is None:
            return []
        cosine_V = self._unit_VxD @ self._unit_VxD[row]
        found: dict[str, str] = {}
        for other in np.argsort(-cosine_V, kind="stable"):
            if cosine_V[other] < self._least_cosine or len(found) > self._count:
                break
            found.setdefault(self._words[other].casefold(), self._words[other])
        found.pop(word.casefold(), None)
        return list(found.values())[: self._count]


class InfillingLexicon:
    """The single words that T5 puts where a word was, as in its pretraining (Raffel et al. 2020).

    `generate` takes prompts with a sentinel each and gives several answers for each, best first;
    with or without sentinels in them. Answers of several words are left out.
    """

    def __init__(self, generate: Callable[[list[str]], Sequence[Sequence[str]]]):
        self._generate = generate

    def synonyms(self, word: str, text: str, start: int, end: int) -> list[str]:
        found: dict[str, str] = {}
        for answer in self._generate([text[:start] + _SENTINEL + text[end:]])[0]:
            parts = (part.strip(" .,;:!?\"'") for part in _SENTINELS.split(answer))
            filled = next(filter(None, parts), "")
            if filled.isalpha():
                found.setdefault(filled.casefold(), filled)
        found.pop(word.casefold(), None)
        return list(found.values())


class ParaphrasingLexicon:
    """Rewordings of a whole text by any function that gives some, for `semantic`."""

    def __init__(self, paraphrase: Callable[[str], Sequence[str]]):
        self._paraphrase = paraphrase

    def synonyms(self, word: str, text: str, start: int, end: int) -> list[str]:
        return [each for each in self._paraphrase(word) if each.strip() and each != word]
