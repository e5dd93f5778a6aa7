"""Configs on the command line and on disk.

A config file is Python and defines `get_config(arg: str = "") -> Config`, or another dataclass of
settings where another program asks for it. The command line
`--config configs/flan_t5.py:base --training.steps 1000` loads the file, passes it `base`, and lays
the rest over it. The resolved config is written as JSON into the run directory and into every
checkpoint.

A Python config is code and is run with all that the user may do. The JSON of a run is data: nothing
in it is executed, wherever it comes from. A folder stands for its config.json, so `--config` of a
downloaded run never runs a file of it.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import itertools
import json
import math
import pathlib
import types
import typing
from collections.abc import Sequence
from typing import Any

import pydantic
import tyro

from coin_jax.config import Config, ConfigError, TokenizerConfig, validate
from coin_jax.type_errors import readable_faults
from coin_jax.untrusted import (
    MOST_FAULTS,
    UntrustedError,
    parse_json,
    printable,
    read_bytes,
    without_credentials,
)

LARGEST_CONFIG = 1 << 20
"""Bytes of a config.json: a run's has 3,000, and long lists of files are patterns."""
Schema = typing.TypeVar("Schema")


def load(arguments: Sequence[str], program: str = "python -m coin_jax.train") -> Config:
    """The config that a command line asks for: `--config FILE[:ARGUMENT] [--field value ...]`.

    FILE is a Python config file, or an earlier run's folder or its config.json, of which nothing is
    executed.
    Raises ConfigError on a file that cannot be used or a value that cannot be run; an unknown
    field ends the program through tyro, which names the nearest ones.
    """
    file, rest = config_argument(arguments)
    base = load_file(file) if file else Config(tokenizer=TokenizerConfig(kind="bytes"))
    description = (
        "--config FILE[:ARGUMENT] comes first: a config file, or an earlier run's folder. "
        "Every field can be set over it:"
    )
    return validate(overlay(base, rest, program, description))


def config_argument(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of `--config`, and the other arguments."""
    arguments = list(arguments)
    for index, argument in enumerate(arguments):
        if argument == "--config":
            if index + 1 == len(arguments):
                raise ConfigError("--config needs a file: --config configs/quickstart.py")
            return arguments[index + 1], arguments[:index] + arguments[index + 2 :]
        if argument.startswith("--config="):
            del arguments[index]
            return argument.removeprefix("--config="), arguments
    return None, arguments


def overlay(base: Schema, arguments: Sequence[str], program: str, description: str) -> Schema:
    """`base`, a dataclass, with the fields replaced that the arguments name.

    Raises: ConfigError for a key in an address or elsewhere, since configs are saved and shared.
    """
    for schema in type(base).__mro__[:-1]:
        _describe_fields(schema)
    config = tyro.cli(
        type(base), default=base, args=arguments, prog=program, description=description
    )
    _refuse_passwords(dataclasses.asdict(config))
    return config


def _refuse_passwords(value: Any, path: str = "") -> None:
    if isinstance(value, str) and without_credentials(value) != value:
        raise ConfigError(
            f"{path} holds a user or password in an address, or what looks like a key, and every "
            "run and data set keeps its config; leave it out, and put it where the service's own "
            "programs look for it (an environment variable, ~/.netrc). A file at a signed address "
            "is best fetched by hand"
        )
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list | tuple) else inner
    for name, entry in inner:
        _refuse_passwords(entry, f"{path}.{name}" if path else str(name))


def _describe_fields(schema: type) -> None:
    """Hands the docstrings of a schema's fields to tyro with their lines joined: it keeps the line
    breaks of indented ones, wherever the source happens to have them."""
    body = ast.parse(inspect.getsource(schema)).body[0].body
    documented = {
        field.target.id: " ".join(after.value.value.split())
        for field, after in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr)
    }
    for field in dataclasses.fields(schema):
        if documented.get(field.name):
            field.metadata = types.MappingProxyType({"help": documented[field.name]})
        if dataclasses.is_dataclass(field.default):
            _describe_fields(type(field.default))


def is_code(name: str) -> bool:
    """Whether `--config NAME` is a Python file, which is run."""
    return not pathlib.Path(name).is_dir() and (".py:" in name or name.endswith(".py"))


def load_file(name: str, schema: type[Schema] = Config) -> Schema:
    """Runs the Python config file `name[:argument]`, or reads the JSON config `name`, which may be
    a run's folder.

    Raises: ConfigError where it cannot be used, or gives anything but a `schema`.
    """
    # A folder stands for its config.json, even one that is called `run.py:base`.
    is_folder = pathlib.Path(name).is_dir()
    path, separator, argument = (name, "", "") if is_folder else name.partition(".py:")
    path = pathlib.Path(path + ".py" if separator else name)
    if is_folder:
        path /= "config.json"
    if not path.is_file():
        nearby = sorted(str(other) for other in path.parent.glob("*.py")) if path.parent else []
        raise ConfigError(
            f"--config {name}: there is no file {path}"
            + (f"; this folder has {', '.join(nearby)}" if nearby else "")
        )
    if path.suffix == ".json":
        try:
            text = read_bytes(path, LARGEST_CONFIG)
        except (OSError, UntrustedError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from None
        return from_json(text, str(path), schema)
    if path.suffix != ".py":  # Python's importer would also run compiled code
        raise ConfigError(f"{path}: a config is a .py file, a run's folder or its config.json")
    specification = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{path} does not run: {type(error).__name__}: {error}") from error
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} defines no get_config(arg='') -> {schema.__name__}")
    try:
        config = module.get_config(argument) if argument else module.get_config()
    except ValueError as error:  # what a config says itself, such as ConfigError
        raise ConfigError(f"{path}: get_config({argument!r}) failed: {error}") from error
    except Exception as error:
        raise ConfigError(
            f"{path}: get_config({argument!r}) failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, schema):
        raise ConfigError(
            f"{path}: get_config must return a {schema.__name__}, not {type(config).__name__}"
        )
    return config


def to_json(config: object) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_json(text: str | bytes, where: str = "config", schema: type[Schema] = Config) -> Schema:
    """The config that `to_json` wrote. Raises ConfigError naming unknown or ill-typed fields."""
    try:
        values = parse_json(text)
        _check_keys(values, schema, where)
        return pydantic.TypeAdapter(schema).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        if error.error_count() > MOST_FAULTS:
            raise ConfigError(f"{where}: {error.error_count()} values do not fit") from None
        faults = (f"{where}: {path}: {reason}" for path, reason in readable_faults(error))
        raise ConfigError(printable("\n".join(faults))) from error
    except (UntrustedError, RecursionError) as error:
        raise ConfigError(f"{where} is {printable(str(error))}") from error


def _check_keys(values: Any, schema: type, where: str, path: str = "") -> None:
    """Raises ConfigError where a key is no field of `schema`: pydantic drops those in silence."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: {path.rstrip('.') or 'config'} must be an object with fields")
    types_of = typing.get_type_hints(schema)
    for key, value in values.items():
        if key not in types_of:
            key = printable(key)
            near = difflib.get_close_matches(key, types_of, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"fields: {', '.join(types_of)}"
            raise ConfigError(f"{where}: unknown field '{path}{key}'; {hint}")
        is_huge = isinstance(value, int) and abs(value) >= 2**63
        if is_huge or (isinstance(value, float) and not math.isfinite(value)):
            raise ConfigError(f"{where}: {path}{key} is larger than any number")
        if dataclasses.is_dataclass(types_of[key]):
            _check_keys(value, types_of[key], where, f"{path}{key}.")
        elements = [
            kind for kind in typing.get_args(types_of[key]) if dataclasses.is_dataclass(kind)
        ]
        if elements and isinstance(value, list):
            for number, element in enumerate(value):
                _check_keys(element, elements[0], where, f"{path}{key}.{number}.")
