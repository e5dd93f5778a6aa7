"""The suite file: its schema, and GLUE's tasks for files that name none. See docs/suites.md."""

from __future__ import annotations

import dataclasses
import difflib
import json
import pathlib
from collections.abc import Collection, Sequence
from typing import Annotated, Any, get_type_hints

import pydantic
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from coin_jax.data.sources import DataError
from coin_jax.untrusted import (
    LONGEST_NAME,
    MOST_FAULTS,
    UntrustedError,
    is_name,
    read_json,
    shown,
    steers_terminal,
)

LARGEST_SUITE = 4 << 20
"""Bytes of a suite file; that of all of PromptBench's prompts has a tenth."""
MOST_PROMPTS = 20_000
"""Of a suite file: each is put to hundreds of instances."""
MOST_NAMES = 1000
"""Conditions, and tasks, of a suite file."""
MOST_WORDINGS = 100_000
"""Prompts of a suite file with the perturbed copies that it asks for."""
LONGEST_TEXT = 20_000
"""Characters of a prompt or an answer: what perturbing one takes grows with their square."""
MOST_ANSWERS = 500
"""Of a task: each is compared with each."""
MOST_PLACES = 100
"""Where the data of one task may be."""
MOST_COPIES = 1000
"""Perturbed versions of one prompt."""
MOST_COMPARED = 100
"""Characters of an unknown name that are compared with the known ones: what that takes grows with
their square."""
STRICT = pydantic.ConfigDict(extra="forbid")
Count = Annotated[int, pydantic.Field(ge=1, le=10**9)]


def _named(name: str) -> str:
    if not is_name(name):
        raise ValueError(f"must be a name of at most {LONGEST_NAME} characters, all printable")
    return name


Name = Annotated[str, pydantic.AfterValidator(_named)]


class PerturbationSettings(TypedDict, total=False):
    """Arguments of coin_jax.robustness.perturb.perturb."""

    __pydantic_config__ = STRICT

    share: Annotated[float, pydantic.Field(gt=0, le=1)]


class AttackSettings(TypedDict, total=False):
    """Arguments of coin_jax.robustness.attack.attack."""

    __pydantic_config__ = STRICT

    length_normalized: bool


@dataclasses.dataclass(frozen=True)
class PerturbationRequest:
    """A condition to be made from another by a method of coin_jax.robustness.perturb."""

    __pydantic_config__ = STRICT

    condition: Name
    method: Name
    of: Name = ""
    """The condition it starts from; in a file, the clean one unless another is named."""
    copies: Annotated[int, pydantic.Field(ge=1, le=MOST_COPIES)] = 1
    """Different perturbations of each prompt."""
    settings: PerturbationSettings = dataclasses.field(default_factory=dict)
    optional: bool = False
    """Left out with a note, not an error, where what the method needs (a lexicon) is missing."""


@dataclasses.dataclass(frozen=True)
class AttackRequest:
    """A condition to be searched for against the model; see coin_jax.robustness.attack."""

    __pydantic_config__ = STRICT

    condition: Name
    method: Name
    of: Name = ""
    instances: Count = 100
    budget: Count = 500
    """Prompts that may be tried on all instances, for each prompt attacked."""
    settings: AttackSettings = dataclasses.field(default_factory=dict)


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    if steers_terminal(text):
        raise ValueError("must hold no control characters")
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"must have at most {LONGEST_TEXT} characters")
    return text


Text = Annotated[str, pydantic.AfterValidator(_filled)]


@dataclasses.dataclass(frozen=True)
class TaskEntry:
    """A task as a suite file has it."""

    __pydantic_config__ = STRICT

    data: Annotated[
        list[Text],
        pydantic.BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        pydantic.Field(min_length=1, max_length=MOST_PLACES),
    ]
    """One place or several, of which the first that has the data is read: a JSONL name or pattern,
    `builtin:NAME`, `tfds:NAME`, `hub:NAME` or `hub:NAME:CONFIG`."""
    fields: Annotated[
        dict[Name, Name],
        pydantic.BeforeValidator(
            lambda value: (
                dict(zip(value, value, strict=True))
                if isinstance(value, list) and all(isinstance(name, str) for name in value)
                else value
            )
        ),
        pydantic.Field(min_length=1, max_length=MOST_NAMES),
    ]
    """The fields of a row that prompts use; as an object, {name in the data: name in prompts}."""
    answers: Annotated[dict[Name, Text], pydantic.Field(min_length=1, max_length=MOST_ANSWERS)]
    """The answer to each label of the data, in the order in which options are listed. Several
    labels may share an answer."""
    split: str = "validation"
    """Of TFDS and hub data sets."""
    label: str = "label"
    """The column with the label, in TFDS and hub data sets."""
    content: str = ""
    """How the fields are laid out where a prompt has no places for them; a template."""
    frozen: Annotated[list[Text], pydantic.Field(max_length=MOST_NAMES)] = dataclasses.field(
        default_factory=list
    )
    """Words that perturbations must not touch, besides answers and placeholders."""
    optional: bool = False
    """Left out with a note, not an error, where its data is missing."""


@dataclasses.dataclass(frozen=True)
class SuiteFile:
    """A suite file."""

    __pydantic_config__ = STRICT

    prompts: Annotated[
        dict[Name, dict[Name, Annotated[list[Text], pydantic.Field(min_length=1)]]],
        pydantic.Field(min_length=1, max_length=MOST_NAMES),
    ]
    """{condition: {task: [prompt, ...]}}"""
    tasks: Annotated[dict[Name, TaskEntry], pydantic.Field(max_length=MOST_NAMES)] = (
        dataclasses.field(default_factory=dict)
    )
    """What is not named here is one of `GLUE`."""
    name: Name = ""
    description: str = ""
    seed: Annotated[int, pydantic.Field(ge=-(2**63), lt=2**63)] = 0
    sample: Count | None = None
    clean: Name = ""
    """The condition that others are compared with; the first, unless another is named."""
    perturbations: Annotated[list[PerturbationRequest], pydantic.Field(max_length=MOST_NAMES)] = (
        dataclasses.field(default_factory=list)
    )
    attacks: Annotated[list[AttackRequest], pydantic.Field(max_length=MOST_NAMES)] = (
        dataclasses.field(default_factory=list)
    )


def _glue(
    name: str, fields: Sequence[str], labels: Sequence[str], content: str = "", **same: str
) -> TaskEntry:
    config = "mnli_matched" if name == "mnli" else name
    return TaskEntry(
        data=[f"{name}.dev.jsonl", f"hub:nyu-mll/glue:{config}", f"tfds:glue/{config}"],
        fields=dict(zip(fields, fields, strict=True)),
        answers={label: label for label in labels} | same,
        content=content,
    )


_SENTENCES = ("sentence1", "sentence2")
_THREE_WAY = (("premise", "hypothesis"), ("entailment", "neutral", "contradiction"))
_DUPLICATE = {"not_duplicate": "not_equivalent", "duplicate": "equivalent"}
GLUE = {
    entry[0]: _glue(*entry, **(_DUPLICATE if entry[0] == "qqp" else {}))
    for entry in (
        ("sst2", ("sentence",), ("negative", "positive")),
        ("cola", ("sentence",), ("unacceptable", "acceptable")),
        ("qqp", ("question1", "question2"), ("not_equivalent", "equivalent")),
        ("mrpc", _SENTENCES, ("not_equivalent", "equivalent")),
        ("mnli", *_THREE_WAY),
        ("mnli_matched", *_THREE_WAY),
        ("mnli_mismatched", *_THREE_WAY),
        (
            "qnli",
            ("question", "sentence"),
            ("entailment", "not_entailment"),
            "Question: {question} Context: {sentence}",
        ),
        ("rte", _SENTENCES, ("entailment", "not_entailment")),
        ("wnli", _SENTENCES, ("not_entailment", "entailment")),
    )
}
"""GLUE's tasks (Wang et al. 2018) for prompt files that name no tasks, with the answers that
PromptBench's prompts ask for."""
OTHER_TASKS = {
    "math", "iwslt", "un_multi", "squad_v2", "mmlu", "bool_logic", "valid_parentheses",
}  # fmt: skip
"""Those of PromptBench's files that are none of GLUE."""


def read_suite_file(path: pathlib.Path) -> SuiteFile:
    """Reads a suite file, or one of the shape {condition: {task: [prompt, ...]}}.

    Raises: DataError with a line for each fault, naming the file and the place in it.
    """
    try:
        content = read_json(path, LARGEST_SUITE)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UntrustedError as error:
        raise DataError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object {{condition: {{task: [prompt, ...]}}}}")
    # A condition may be called `clean`, so the values tell: settings are no objects.
    if content.keys().isdisjoint(("prompts", "tasks")) and all(
        isinstance(value, dict) for value in content.values()
    ):
        content = {"prompts": content}
    try:
        file = pydantic.TypeAdapter(SuiteFile).validate_json(json.dumps(content), strict=True)
    except RecursionError:
        raise DataError(f"{path}: nested too deeply for a suite") from None
    except pydantic.ValidationError as error:
        if error.error_count() > MOST_FAULTS:
            raise DataError(
                f"{path}: no suite file: {error.error_count()} values do not fit"
            ) from None
        faults = [f"{path}: {_readable(fault)}" for fault in error.errors()]
        raise DataError("\n".join(faults)) from None
    sizes = {name: sum(map(len, tasks.values())) for name, tasks in file.prompts.items()}
    prompts, clean = sum(sizes.values()), file.clean or next(iter(sizes))
    if prompts > MOST_PROMPTS:
        raise DataError(f"{path}: {prompts} prompts; at most {MOST_PROMPTS} are read")
    made = sum(sizes.get(one.of or clean, 0) * one.copies for one in file.perturbations)
    if prompts + made > MOST_WORDINGS:
        raise DataError(f"{path}: asks for {made} perturbed prompts; at most {MOST_WORDINGS}")
    return file


def _readable(fault: Any) -> str:
    *above, last = fault["loc"] or ("",)
    within = f"{place(*above)}: " if above else ""
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        schema = SCHEMAS[above[0], len(above)] if above else SuiteFile
        return within + unknown("key", str(last), list(get_type_hints(schema)))
    if fault["type"] in ("missing", "missing_argument"):
        return f"{within}the key {last!r} is missing"
    reason = fault["msg"].removeprefix("Value error, ")
    return f"{place(*above, last)}: {reason}, found {shown(fault['input'])}"


SCHEMAS = {
    ("tasks", 2): TaskEntry,
    ("perturbations", 2): PerturbationRequest,
    ("perturbations", 3): PerturbationSettings,
    ("attacks", 2): AttackRequest,
    ("attacks", 3): AttackSettings,
}
"""What stands under which key of a file, so many keys deep."""


def place(*keys: str | int) -> str:
    """Where in a file: `prompts.clean.sst2[2]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)[1:]


def unknown(what: str, name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name[:MOST_COMPARED], known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(known)}"
    return f"unknown {what} {name!r}; {hint}"
