"""Which lexicon proposes the words of a word-level perturbation, those of a model among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from coin_jax.curation.paraphrasers import Request
from coin_jax.curation.paraphrasers.model import Model
from coin_jax.predictor import Predictor
from coin_jax.robustness.perturb import (
    EmbeddingLexicon,
    InfillingLexicon,
    Lexicon,
    ParaphrasingLexicon,
    PerturbationError,
    WordNetLexicon,
    find_perturbation,
)

Choice = Literal["auto", "wordnet", "embedding", "infilling"]

INFILLED = 20
"""Answers of the model for each word."""
PARAPHRASES = 8
"""Rewordings of each prompt; those that lose a placeholder or an answer are dropped."""
PARAPHRASE_PREFIX = "paraphrase: "
"""What T5 paraphrasers are commonly asked with."""


def choose_lexicon(
    method: str,
    choice: Choice = "auto",
    model: Callable[[], Predictor] | None = None,
    paraphraser: Callable[[], Predictor] | None = None,
) -> Lexicon | None:
    """What `method` takes its words from.

    auto: none where the method can do without, so that its prompts are the same on every machine;
    the model's infilling for BERT-Attack; else WordNet. The neighbours of a small model's embedding
    are often no synonyms: they are there to be chosen.
    Raises: PerturbationError where there is no such lexicon, with what to install or to give.
    """
    needed = find_perturbation(method).lexicon
    if not needed and choice == "auto":
        return None
    if method == "semantic":
        if paraphraser is None:
            raise PerturbationError("semantic needs a paraphraser, or rewordings in the suite")
        return paraphrasing_lexicon(paraphraser())
    if choice == "auto":
        choice = "infilling" if method == "bertattack" and model is not None else "wordnet"
    if choice == "wordnet":
        return WordNetLexicon()
    if model is None:
        raise PerturbationError(f"{method} with lexicon {choice!r} needs a model to take it from")
    predictor = model()
    if not isinstance(predictor, Predictor):
        raise PerturbationError(f"lexicon {choice!r} needs a model of ours, not one of torch")
    return embedding_lexicon(predictor) if choice == "embedding" else infilling_lexicon(predictor)


def embedding_lexicon(predictor: Predictor) -> EmbeddingLexicon:
    """Neighbours in the input embedding, among words that are one token."""
    tokenizer = predictor.tokenizer
    decoded = [tokenizer.decode([token]) for token in range(tokenizer.vocabulary_size)]
    words = [word if word.isalpha() and len(word) > 1 else "" for word in decoded]
    rows = [
        token
        for token, ids in enumerate(tokenizer.encode_batch(words))
        if words[token] and list(ids) == [token]
    ]
    vectors_VxD = np.asarray(predictor.params["embedding"])[rows]
    return EmbeddingLexicon([words[row] for row in rows], vectors_VxD)


def infilling_lexicon(predictor: Predictor) -> InfillingLexicon:
    """What the model writes for a missing word; one that was pretrained by span corruption."""
    return InfillingLexicon(
        lambda prompts: predictor.candidates(
            prompts, max_new_tokens=8, beams=INFILLED, candidates=INFILLED
        )
    )


def paraphrasing_lexicon(predictor: Predictor) -> ParaphrasingLexicon:
    """Whole rewordings by a T5 that was trained to paraphrase."""

    # Line by line and with letters for placeholders, which T5's vocabulary cannot write.
    paraphraser = Model(
        lambda texts: predictor.candidates(
            [PARAPHRASE_PREFIX + text for text in texts],
            beams=PARAPHRASES,
            candidates=PARAPHRASES,
            max_new_tokens=128,
        )
    )

    def paraphrase(text: str) -> list[str]:
        return paraphraser.reword([Request("", "", text)], lambda done, total, note: None)[0]

    return ParaphrasingLexicon(paraphrase)
