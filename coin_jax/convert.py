"""`python -m coin_jax.convert --from google/flan-t5-base --to folder`

Writes a folder that both coin_jax (`model.init_from = "folder"`) and transformers load. `--from` is
a Hugging Face name, a folder with config.json and safetensors, or the directory of a run or of one
of its checkpoints.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import Annotated, Literal

import tyro

from coin_jax.config import ConfigError
from coin_jax.model import huggingface
from coin_jax.untrusted import UntrustedError, read_json


@dataclasses.dataclass(frozen=True)
class Arguments:
    source: Annotated[str, tyro.conf.arg(name="from")]
    """Hugging Face name, folder of a Hugging Face model, run directory, or checkpoint."""
    to: pathlib.Path
    """Folder to write; made where there is none."""
    tokenizer_from: str = ""
    """Folder whose tokenizer files are carried along; empty: the source's, if it has any."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the stored weights."""


def convert(arguments: Arguments) -> None:
    """Loads the weights from wherever they are, and saves them."""
    if is_run(arguments.source):
        from coin_jax.training.checkpoint import CheckpointError, load_parameters

        try:
            run_config, params = load_parameters(arguments.source)
        except CheckpointError as error:
            raise huggingface.CheckpointError(str(error)) from error
        config = run_config.model
        # RUN, or RUN/checkpoints/STEP.
        folder = pathlib.Path(arguments.source).absolute()
        run = folder if (folder / "tokenizer").is_dir() else folder.parents[1]
        tokenizer = run / "tokenizer"
        if run_config.tokenizer.kind == "sentencepiece" and not run_config.tokenizer.path:
            print(
                "This run trained its own SentencePiece model, which knows line breaks. The folder "
                "carries it for coin_jax; transformers reads it by other rules, so give "
                "transformers ids from coin_jax.data.tokenizer rather than text.",
                file=sys.stderr,
            )
    else:
        tokenizer = huggingface.find(arguments.source)
        config, params = huggingface.load(tokenizer)
    tokenizer = arguments.tokenizer_from or tokenizer
    huggingface.save(arguments.to, config, params, tokenizer_from=tokenizer, dtype=arguments.dtype)


def is_run(source: str) -> bool:
    """Whether `source` is a local folder that is not a Hugging Face model."""
    folder = pathlib.Path(source)
    config = folder / "config.json"
    if not folder.is_dir():
        return False
    try:
        return not (config.is_file() and "d_model" in read_json(config))
    except (UntrustedError, TypeError) as error:
        raise ConfigError(f"{config}: {error}") from None


def main(arguments: list[str] | None = None) -> None:
    parsed = tyro.cli(Arguments, args=arguments, description=__doc__)
    try:
        convert(parsed)
    except (huggingface.CheckpointError, ConfigError) as error:
        sys.exit(str(error))
    print(f"{parsed.source} -> {parsed.to}")


if __name__ == "__main__":
    main()
