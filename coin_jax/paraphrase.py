"""Builds a contrastive training set from instruction collections.

    python -m coin_jax.paraphrase --config configs/data/tasks.py:FOLDER --output data/my_set
    python -m coin_jax.paraphrase --output data/my_set --inspect

The second line shows pairs of a set that is there. To train on one:

    python -m coin_jax.train --config ... --data.source set --data.files data/my_set
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import signal
import sys
from collections.abc import Sequence

import numpy as np
from rich.console import Console

from coin_jax.config import ConfigError
from coin_jax.config_files import config_argument, is_code, load_file, overlay
from coin_jax.curation.build import build
from coin_jax.curation.config import ChatConfig, SetConfig, validate
from coin_jax.curation.inspection import inspect
from coin_jax.curation.negatives import Embed
from coin_jax.curation.paraphrasers import make_paraphrasers
from coin_jax.curation.paraphrasers.model import Generate
from coin_jax.curation.summary import print_summary
from coin_jax.data.set_format import Manifest
from coin_jax.lexicons import PARAPHRASE_PREFIX, choose_lexicon
from coin_jax.predictor import Predictor

LONGEST_REWORDING = 256
"""Tokens."""


@dataclasses.dataclass(frozen=True)
class Arguments(SetConfig):
    """A set's config, and what to do with it."""

    output: str = ""
    """The folder of the set."""
    inspect: bool = False
    """Show pairs side by side with their differences marked; of the set that is in the output's
    folder, where no config is given."""
    pairs_shown: int = 5
    task_shown: str = ""
    """Of one task only; empty: of all in turn."""
    overwrite: bool = False
    """Replace a set that is there, once the new one is whole."""


DESCRIPTION = (
    "Builds a contrastive training set. --config FILE[:ARGUMENT] comes first. Every field can be "
    "set over it:"
)


def run(arguments: Sequence[str], console: Console) -> int:
    """Builds, shows, or both. Raises ValueErrors for people (ConfigError, DataError)."""
    file, rest = config_argument(arguments)
    base = load_file(file, SetConfig) if file else SetConfig()
    base = Arguments(
        **{field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    )
    chosen = overlay(base, rest, "python -m coin_jax.paraphrase", DESCRIPTION)
    if file and not is_code(file):
        _refuse_foreign_endpoint(chosen, rest)
    if not chosen.output:
        raise ConfigError("--output is empty: name the folder of the set")
    output = pathlib.Path(chosen.output)
    only_shown = chosen.inspect and not chosen.sources
    if not only_shown:
        config = SetConfig(
            **{field.name: getattr(chosen, field.name) for field in dataclasses.fields(SetConfig)}
        )
        manifest = build_set(validate(config), output, chosen.overwrite, console)
        print_summary(manifest, output, console)
    if chosen.inspect:
        inspect(output, chosen.pairs_shown, console, chosen.task_shown or None, chosen.seed)
    return 0


def _refuse_foreign_endpoint(config: SetConfig, arguments: Sequence[str]) -> None:
    """Raises: ConfigError where a JSON config, which may be a stranger's, says where a key goes.

    Python configs are code, and could send every key anyway.
    """
    chat, usual = config.paraphrase.chat, ChatConfig()
    if "chat" not in config.paraphrase.methods:
        return
    for field in ("base_url", "key_variable"):
        name = f"--paraphrase.chat.{field.replace('_', '-')}"
        given = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
        if getattr(chat, field) != getattr(usual, field) and name not in given:
            raise ConfigError(
                f"paraphrase.chat.{field} = {getattr(chat, field)!r} comes from a file, and the "
                f"value of ${chat.key_variable} would be sent to {chat.base_url}: say "
                f"{name} {getattr(chat, field)} if you mean it"
            )


def build_set(
    config: SetConfig, output: pathlib.Path, overwrite: bool, console: Console
) -> Manifest:
    """`build`, with the models that the config names."""

    def generate() -> Generate:
        predictor = _load(config.paraphrase.checkpoint)
        # Twice as many as wanted: filters drop some.
        beams = 2 * config.paraphrase.wordings
        settings = {"beams": beams, "candidates": beams, "max_new_tokens": LONGEST_REWORDING}
        return lambda texts: predictor.candidates(
            [PARAPHRASE_PREFIX + text for text in texts], **settings
        )

    paraphrasers = make_paraphrasers(config.paraphrase, generate, choose_lexicon, config.seed)
    return build(
        config,
        output,
        paraphrasers=paraphrasers,
        similarity=_embedding(config.filters.similarity_checkpoint),
        negatives=_embedding(config.negatives.checkpoint),
        overwrite=overwrite,
        console=console,
    )


def _embedding(checkpoint: str) -> Embed | None:
    """Texts -> unit vectors: the mean encoder states of a T5, as Sentence-T5 takes them (Ni et al.
    2022, section 3.1)."""
    if not checkpoint:
        return None

    def embed(texts: Sequence[str]) -> np.ndarray:
        states_NxD = _load(checkpoint).pooled_states(texts, [""] * len(texts), ("encoder_mean",))
        states_NxD = states_NxD["encoder_mean"]
        return states_NxD / np.maximum(np.linalg.norm(states_NxD, axis=1, keepdims=True), 1e-12)

    return embed


@functools.cache
def _load(checkpoint: str) -> Predictor:
    return Predictor.from_checkpoint(checkpoint)


def main(arguments: Sequence[str] | None = None) -> int:
    errors = Console(stderr=True, highlight=False, markup=False)
    try:
        return run(sys.argv[1:] if arguments is None else arguments, Console())
    except (ValueError, OSError) as error:  # ConfigError, DataError and others for people
        errors.print(str(error), style="red", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        errors.print("Interrupted: nothing was written, and what a chat answered is kept.")
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
