"""What changed in the config between two starts of a run, and what of it the run cannot take."""

from __future__ import annotations

import dataclasses

from coin_jax.config import Config

# Fields that decide which arrays a state holds, or what they mean. The others may change between
# two starts.
_SHAPING = (
    "tokenizer.",
    "model.vocabulary_size",
    "model.d_",
    "model.num_",
    "model.relative_attention_num_buckets",
    "model.relative_bias_every_layer",
    "model.feed_forward",
    "model.tie_word_embeddings",
    "model.scale_decoder_outputs",
    "optimizer.name",
)
# Of these it matters only whether they are 0.
_SWITCHES = ("ema_decay", "clip_norm", "weight_decay")


def decides_arrays(line: str, before: Config, now: Config) -> bool:
    """Whether a line of `differences` is about other arrays than were saved."""
    return line.startswith(_SHAPING) or any(
        line.startswith(f"optimizer.{name}:")
        and bool(getattr(before.optimizer, name)) != bool(getattr(now.optimizer, name))
        for name in _SWITCHES
    )


def differences(before: Config, now: Config) -> list[str]:
    """`field: old -> new`, for every field that differs."""
    lines = []
    for section in dataclasses.fields(Config):
        old, new = getattr(before, section.name), getattr(now, section.name)
        if dataclasses.is_dataclass(old):
            lines += [
                f"{section.name}.{field.name}: {getattr(old, field.name)!r} -> "
                f"{getattr(new, field.name)!r}"
                for field in dataclasses.fields(old)
                if getattr(old, field.name) != getattr(new, field.name)
            ]
        elif old != new:
            lines.append(f"{section.name}: {old!r} -> {new!r}")
    return lines
