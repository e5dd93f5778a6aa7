"""Tokenizer files of strangers, looked at before a library reads them.

The libraries take what a file says: a piece of ten million letters, ten thousand steps, a character
that stands for a million others. Some end the process where memory is short, which nothing can
catch, so that what would come to that is refused here.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import math
import os
import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from coin_jax.data.sources import DataError
from coin_jax.untrusted import (
    LARGEST_JSON,
    OTHER_TOKENIZER_FILES,
    TOKENIZER_FILES,
    UntrustedError,
    check_values,
    read_bytes,
    shown,
)

MOST_GROWTH = 1000
"""Times that replacements may lengthen a text; real ones give three letters, or 33 bytes, for
one."""
LONGEST_TOKEN = 10_000
"""Characters of a token, pattern or replacement; those of real files have some hundreds."""
LONGEST_AFFIX = 100
"""Characters of what marks a piece within a word, `##`: it is put before every part tried."""
LONGEST_WORD = 1000
"""Letters of a word that is looked up piece by piece: that takes their square. Real files: 100."""
LARGEST_UNIGRAMS = 4 << 20
"""Bytes of all pieces of a unigram model in tokenizer.json, each of which takes up to 350 in
memory; those of mT5's 250,000 have about half."""
MOST_STEPS = 1000
"""Of normalizing, splitting and decoding; real files have about ten."""
MOST_ADDED = 200_000
"""Tokens added to a vocabulary; they become one automaton of some kilobytes a token."""

_LONG = ("precompiled_charsmap", "chat_template")
"""Values that are long in real files: a table that is looked at, and a text that is not used."""
_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")


def check_files(path: pathlib.Path) -> None:
    """Looks at a tokenizer's file, or all those of a folder.

    Raises: UntrustedError, naming the file where there are several, for one that would take far
    more memory than it has; and for a folder without any, of which transformers makes a tokenizer
    that knows no word.
    """
    if not path.is_dir():
        check_file(path)
        return
    names = (*TOKENIZER_FILES, *OTHER_TOKENIZER_FILES)
    files = [path / name for name in names if (path / name).exists()]
    if not files:
        raise UntrustedError(f"no {', '.join(names)} is there")
    for file in files:
        try:
            check_file(file)
        except UntrustedError as error:
            raise UntrustedError(f"{file.name}: {error}") from None
    # Transformers looks for more: other vocabularies, templates.
    for pattern in ("*.json", "*.model", "*.txt", "*.jinja", "additional_chat_templates/*"):
        for file in path.glob(pattern):
            if file.is_file() and file.stat().st_size > LARGEST_JSON:
                raise UntrustedError(f"{file.name}: larger than {LARGEST_JSON:,} bytes")


def check_file(file: pathlib.Path) -> None:
    """Raises: UntrustedError for what would take far more memory or time than a file should."""
    content = read_bytes(file)
    if file.suffix == ".model":
        check_sentencepiece(content)
    elif file.suffix == ".json":
        check_values(content)
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UntrustedError(f"not JSON: {error}") from None
        _check_document(document)


def _check_document(document: Any) -> None:
    """tokenizer.json above all; the rules fit the small files too."""
    if not isinstance(document, dict):
        raise UntrustedError(f"must hold a JSON object, not {shown(document)}")
    # It names files to be read in place of tokenizer.json, in any folder.
    if document.get("fast_tokenizer_files"):
        raise UntrustedError("fast_tokenizer_files names other files; leave it out")
    # Versions of transformers before 5.23 open these wherever they lie. Real files name places on
    # the machine where they were made.
    for name, value in document.items():
        if name.endswith("_file") and isinstance(value, str) and os.path.exists(value):
            raise UntrustedError(f"{shown(name)} names another file, {shown(value)}; leave it out")
    for name, text in _texts(document):
        most = LONGEST_AFFIX if name in _AFFIXES else LONGEST_TOKEN
        if name not in _LONG and len(text) > most:
            raise UntrustedError(f"{shown(text)} has {len(text):,} characters; at most {most:,}")
    added = max(
        (len(document.get(name) or ()) for name in ("added_tokens", "added_tokens_decoder")
         if isinstance(document.get(name), list | dict)),
        default=0,
    )  # fmt: skip
    if added > MOST_ADDED:
        raise UntrustedError(f"{added:,} added tokens; at most {MOST_ADDED:,}")
    model = document.get("model")
    model = model if isinstance(model, dict) else {}
    longest = model.get("max_input_chars_per_word", 0)
    if not isinstance(longest, int) or longest > LONGEST_WORD:
        raise UntrustedError(
            f"max_input_chars_per_word is {shown(longest)}; at most {LONGEST_WORD}"
        )
    pieces = model.get("vocab")
    if isinstance(pieces, list):
        size = sum(len(text.encode("utf-8", "replace")) for _, text in _texts({"": pieces}))
        if size > LARGEST_UNIGRAMS:
            raise UntrustedError(f"pieces of {size:,} bytes; at most {LARGEST_UNIGRAMS:,}")
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        step = document.get(name)
        if sum(isinstance(inner, dict) for inner in _values(step)) > MOST_STEPS:
            raise UntrustedError(f"{name}: more than {MOST_STEPS} steps")
        if growth(step) > MOST_GROWTH:
            raise UntrustedError(
                f"its replacements could make a text more than {MOST_GROWTH} times as long"
            )


def _texts(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(the key above it, text) of all texts, keys among them."""
    waiting: list[tuple[str, Any]] = list(document.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield "", key
                waiting.append((key, inner))
        elif isinstance(value, list):
            waiting += [(name, inner) for inner in value]


def _values(value: Any) -> Iterator[Any]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        yield value
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value


def growth(step: Any) -> int:
    """Times that a step of normalizing or decoding can lengthen a text, at most."""
    if isinstance(step, list):
        return math.prod(map(growth, step))
    if not isinstance(step, dict):
        return 1
    times = 1
    for name, value in step.items():
        if name in ("content", "prepend") and isinstance(value, str):
            times *= max(1, len(value) + (name == "prepend"))
        elif name == "precompiled_charsmap" and isinstance(value, str):
            try:
                times *= _longest_replacement(base64.b64decode(value))
            except binascii.Error:
                raise UntrustedError("a precompiled_charsmap that is not base64") from None
        elif name != "pattern":
            times *= growth(value)
    return times


def _longest_replacement(table: bytes) -> int:
    """Bytes of the longest text in SentencePiece's table of characters and what stands for them: a
    trie after its size, then texts that end in zero bytes."""
    if len(table) < 4:
        return 1
    (size,) = struct.unpack_from("<I", table)
    return max(1, *map(len, table[4 + size :].split(b"\0")))


def check_sentencepiece(model: bytes) -> None:
    """Raises: UntrustedError for a model whose table of characters blows texts up, or that is no
    message of protocol buffers."""
    for number, value in _fields(model):
        if number == _PIECES and len(value) > LONGEST_TOKEN:
            raise UntrustedError(f"a piece of {len(value):,} bytes; at most {LONGEST_TOKEN:,}")
        if number in _NORMALIZERS:
            for inner, table in _fields(value):
                if inner == _TABLE and _longest_replacement(table) > MOST_GROWTH:
                    raise UntrustedError(
                        f"its replacements could make a text more than {MOST_GROWTH} times as long"
                    )


_PIECES, _NORMALIZERS, _TABLE = 1, (3, 5), 2
"""Fields of sentencepiece_model.proto: a piece; how texts are normalized, there and back; the
table of one of these."""


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, content) of the fields of a message of protocol buffers that have a length."""
    view, place = memoryview(message), 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while shift < 70:
            byte = view[place]
            place += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise IndexError

    try:
        while place < len(view):
            key = varint()
            match key & 7:
                case 0:
                    varint()
                case 1:
                    place += 8
                case 2:
                    size = varint()
                    if size > len(view) - place:
                        raise IndexError
                    yield key >> 3, bytes(view[place : place + size])
                    place += size
                case 5:
                    place += 4
                case _:
                    raise IndexError
    except IndexError:
        raise UntrustedError("no SentencePiece model: its content does not fit together") from None


@contextlib.contextmanager
def without_panic() -> Iterator[None]:
    """What tokenizers raises of a text is `Exception` itself; where a pattern takes too long, it is
    not even one, and so would pass by everything that handles exceptions."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"the tokenizer fails on a text: {error}") from None
