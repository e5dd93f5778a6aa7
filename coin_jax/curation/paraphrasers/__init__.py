"""More wordings of an instruction: by rules, by a model, by a chat endpoint."""

from __future__ import annotations

from collections.abc import Callable

from coin_jax.curation.config import ParaphraseConfig
from coin_jax.curation.paraphrasers.chat import Chat
from coin_jax.curation.paraphrasers.model import Generate, Model
from coin_jax.curation.paraphrasers.paraphraser import (
    Paraphraser,
    Request,
    Usage,
    has_words,
)
from coin_jax.curation.paraphrasers.replies import ChatError
from coin_jax.curation.paraphrasers.rules import Rules
from coin_jax.robustness.perturb import Lexicon

__all__ = [
    "ChatError",
    "Paraphraser",
    "Request",
    "Usage",
    "has_words",
    "make_paraphrasers",
]


def make_paraphrasers(
    config: ParaphraseConfig,
    generate: Callable[[], Generate] | None = None,
    lexicon: Callable[[str], Lexicon | None] = lambda rule: None,
    seed: int = 0,
) -> list[Paraphraser]:
    """One for each of `config.methods`, in their order.

    `generate` loads the model of `config.checkpoint`, if it is needed; `lexicon` gives what a rule
    takes its words from.

    Raises: PerturbationError (a ValueError) for rules that cannot be followed, ChatError (one too)
    for an endpoint that cannot be one, ValueError where a model is needed and none is given.
    """
    made: list[Paraphraser] = []
    for method in dict.fromkeys(config.methods):
        if method == "rules":
            made.append(Rules(config, lexicon, seed))
        elif method == "chat":
            made.append(Chat(config.chat, config.wordings))
        elif generate is None:
            raise ValueError("paraphrase.methods has model: paraphrase.checkpoint must name a T5")
        else:
            made.append(Model(generate()))
    return made
