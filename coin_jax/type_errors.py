"""Values of a dataclass whose types are not the declared ones, in words for people."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from coin_jax.untrusted import shown


def type_errors(config: object) -> list[tuple[str, str]]:
    """(field, reason) of every value whose type is not the declared one."""
    try:
        import pydantic
    except ImportError:  # a bare machine with jax, flax and optax alone: configs built in code
        return []
    # Through JSON, where strictness still knows tuples and nested dataclasses. What JSON has no
    # word for becomes a one-field object, which is the wrong type everywhere.
    text = json.dumps(dataclasses.asdict(config), default=lambda value: {"object": repr(value)})
    try:
        pydantic.TypeAdapter(type(config)).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        return readable_faults(error)
    return []


def readable_faults(error: Any) -> list[tuple[str, str]]:
    """(field, reason) of every fault that a pydantic.ValidationError holds."""
    return [
        (
            ".".join(str(part) for part in fault["loc"]),
            f"{fault['msg']}, found {shown(fault['input'])}",
        )
        for fault in error.errors()
    ]
