"""Files from strangers: what they may claim at most, and how they are read and shown within that.

Whoever reads a file that may come from elsewhere reads it through this module or keeps its bounds.
They are far above what the project's own files need; docs/security.md lists them with the reasons.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import pathlib
import re
import reprlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import IO, Any

LONGEST_LINE = 16 << 20
"""Bytes (in CSV characters) of a line of JSONL, CSV or text, which is held as a whole; a long book
has 3 MB."""
LARGEST_JSON = 64 << 20
"""Bytes of a config, suite, template file or tokenizer.json; that of a 250,000 token vocabulary has
17 MB."""
LARGEST_MANIFEST = 256 << 20
"""Bytes of a set's manifest, in which thousands of tasks have all of their wordings."""
MOST_VALUES = 4_000_000
"""Commas, colons and opening brackets of a JSON file: an object takes 64 bytes of memory or more
for two bytes of text, so the size alone would allow ten times this."""
EXPANSION, EXPANSION_FROM = 200, 64 << 20
"""A compressed file may become this many times as large, beyond the first so many bytes. Text
shrinks to a third or a tenth, repeated rows to a fiftieth; gzip's own limit is a thousandth, and
Parquet has none."""
ROW_BYTES = 64
MOST_BAD_ROWS = 1_000_000
"""Rows that cannot be read, of all files, for the others to be taken; an error of each is kept."""
MOST_FAULTS = 1000
"""Faults of one file that are spelled out; a file of faults would make a larger report of them."""
LONGEST_MESSAGE = 20_000
"""Characters of an error."""
LONGEST_NAME = 1000
"""Characters of a task's, field's, condition's or wording's name: tables and paths show them."""


TOKENIZER_FILES = (
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
OTHER_TOKENIZER_FILES = (
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
"""Of models that are no T5."""
HUB_PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    *TOKENIZER_FILES,
    *OTHER_TOKENIZER_FILES,
)
"""All that is ever fetched of a model: weights without pickle, and small files without code."""


class UntrustedError(ValueError):
    """What is wrong with a file, without the file's name."""


def read_bytes(path: str | os.PathLike, most: int = LARGEST_JSON) -> bytes:
    """The content of a regular file (or a link to one) of at most `most` bytes.

    Raises: UntrustedError for a larger one, a pipe or a device; OSError for one that is not there.
    """
    path = pathlib.Path(path)
    if path.exists() and not path.is_file():
        raise UntrustedError("not a file")  # reading a pipe would wait for ever
    with open(path, "rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise UntrustedError(f"larger than {most:,} bytes, which is the most that is read")
    return content


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises: UntrustedError for anything that is not JSON, NaN and Infinity among it, for a key that
    stands twice in one object, and for nesting deeper than Python's own stack allows (about 1000).
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        return _DECODER.decode(text)
    except UnicodeDecodeError as error:
        reason = f"byte {error.start + 1} is not valid UTF-8"
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:
        reason = str(error)
    raise UntrustedError(f"not JSON in UTF-8: {reason}")


def read_json(path: str | os.PathLike, most: int = LARGEST_JSON) -> Any:
    """The value of a JSON file. Raises as `read_bytes` and `parse_json` do."""
    content = read_bytes(path, most)
    check_values(content)
    return parse_json(content)


def check_values(content: bytes) -> None:
    """Raises: UntrustedError for a JSON text with more than MOST_VALUES values.

    Commas in texts count too: they are counted because that takes no parsing.
    """
    if sum(content.count(mark) for mark in (b",", b":", b"[", b"{")) > MOST_VALUES:
        raise UntrustedError(f"more than {MOST_VALUES:,} values, which is the most that is read")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {shown(twice)} stands twice in one object")
    return found


def _constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
decode_json = _DECODER.raw_decode
"""As json's, but as strict as `parse_json`. Raises ValueError and RecursionError."""


def model_folder(path_or_name: str | os.PathLike, patterns: Sequence[str] = HUB_PATTERNS) -> str:
    """The folder of a model or tokenizer: the path itself, or a download of the hub's `patterns`.

    Raises: UntrustedError for what is neither a folder nor OWNER/NAME; the hub's own errors.
    """
    folder, name = pathlib.Path(path_or_name).expanduser(), str(path_or_name)
    if folder.is_dir():
        return str(folder)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UntrustedError("neither a folder nor a Hugging Face name (owner/model)")
    import huggingface_hub

    return huggingface_hub.snapshot_download(name, allow_patterns=list(patterns))


class Expansion:
    """Refuses a file that unpacks to far more than it is.

    A row counts ROW_BYTES besides its texts, which is less than what Python keeps of an empty one.
    """

    def __init__(self, path: str | os.PathLike):
        self._most = EXPANSION_FROM + EXPANSION * os.stat(path).st_size
        self._bytes = 0

    def add(self, size: int, rows: int = 1) -> None:
        """Raises: UntrustedError once more than EXPANSION times the file's size was unpacked."""
        self._bytes += size + ROW_BYTES * rows
        if self._bytes > self._most:
            raise UntrustedError(
                f"unpacks to more than {self._most:,} bytes, {EXPANSION} times its size: a "
                "decompression bomb? Unpack it by hand if it is meant so"
            )


class _Unpacked(io.RawIOBase):
    def __init__(self, path: str | os.PathLike):
        self._stream = gzip.open(path, "rb")  # noqa: SIM115 (closed with this one)
        self._expansion = Expansion(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(len(buffer))
        self._expansion.add(len(content), 0)
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._stream.close()
        super().close()


def unpack(path: str | os.PathLike) -> IO[bytes]:
    """A gzipped file, open for reading; UntrustedError once it unpacks to too much."""
    return io.BufferedReader(_Unpacked(path), 1 << 16)


def read_arrays(path: str | os.PathLike) -> dict[str, Any]:
    """The arrays of one of numpy's .npz files, without pickle.

    Raises: UntrustedError for one that is damaged, or that unpacks to far more than it is; OSError
    for one that is not there.
    """
    import numpy

    if not os.path.isfile(path):  # opening a pipe would wait for ever
        raise FileNotFoundError(path)
    try:
        expansion = Expansion(path)
        with zipfile.ZipFile(path) as packed:
            for member in packed.infolist():
                expansion.add(member.file_size)
        with numpy.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (UntrustedError, FileNotFoundError):
        raise
    except Exception as error:  # of zipfile, its ways of packing, and numpy's own little parser
        raise UntrustedError(f"not whole: {type(error).__name__}: {error}") from None
    if not all(isinstance(array, numpy.ndarray) for array in arrays.values()):
        raise UntrustedError("holds something else than arrays")
    return arrays


def read_line(stream: IO[Any]) -> tuple[Any, int]:
    """(the next line, its length) of a stream of bytes or text; (nothing, 0) at the end.

    Of a line longer than LONGEST_LINE comes (nothing, its length); it is never held as a whole.
    """
    line = stream.readline(LONGEST_LINE + 1)
    length = len(line)
    if length > LONGEST_LINE:
        while line and line[-1:] not in (b"\n", "\n", "\r"):
            line = stream.readline(LONGEST_LINE)
            length += len(line)
        line = line[:0]
    return line, length


_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What steers a terminal, turns the direction of writing round, or cannot be printed."""
_STEERING = re.compile("[\x00-\x08\x0e-\x1f\x7f\x9b]")
_USER = re.compile(r"(?<=://)[^/\s\"'<>]*@")
_QUERY = re.compile(r"([?&][\w.%-]+=)[^&\s\"'<>]+")
_SECRET_NAME = re.compile(r"key|token|secret|passw|signature|credential|sig=|auth", re.IGNORECASE)
_TOKEN = re.compile(
    r"\b(hf_|sk-|gh[opsu]_|github_pat_|glpat-|xox[abp]-|AIza|AKIA)(?=[\w-]*\d)[\w-]{16,}"
    r"|(?<=Bearer )[^\s\"']{8,}"
)
_KEY_VARIABLE = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD)$")
_SHORTEST_KEY = 12


def is_name(text: str) -> bool:
    """Whether a text can stand in a table, a path or a terminal: short, printable, one line."""
    return len(text) <= LONGEST_NAME and not _UNSEEN.search(text) and "\n" not in text


def steers_terminal(text: str) -> bool:
    """Whether a text holds escape sequences or the like, which no instruction needs.

    Marks of the direction of writing are let through, and so are page breaks.
    """
    return _STEERING.search(text) is not None


def is_whole(text: str) -> bool:
    """Whether a text can be written in UTF-8: JSON can spell half a character."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


@functools.cache
def key_values() -> re.Pattern[str] | None:
    """What finds the values of this process's environment variables that are named as keys."""
    values = (value for name, value in os.environ.items() if _KEY_VARIABLE.search(name))
    escaped = [re.escape(value) for value in values if len(value) >= _SHORTEST_KEY]
    return re.compile("|".join(escaped)) if escaped else None


def without_credentials(text: str) -> str:
    """The text without the user and password of addresses, and without keys.

    Keys are what looks like one, and the values of environment variables named as one.
    """
    if keys := key_values():
        text = keys.sub("***", text)
    if "://" in text:
        text = _USER.sub("***@", text)
    if "=" in text:
        text = _QUERY.sub(lambda m: f"{m[1]}***" if _SECRET_NAME.search(m[1]) else m[0], text)
    return _TOKEN.sub("***", text)


def public(value: Any) -> Any:
    """A value of dicts, lists and texts, to be written down, without credentials."""
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, Mapping):
        return {name: public(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [public(inner) for inner in value]
    return value


def printable(text: str) -> str:
    """A message for terminal and log: without escape sequences and credentials, and not endless."""
    # Cut twice: an address that the cut parts would keep half a password.
    text = without_credentials(text[: 10 * LONGEST_MESSAGE])
    if len(text) > LONGEST_MESSAGE:
        text = f"{text[:LONGEST_MESSAGE]} ... (shortened)"
    return _UNSEEN.sub(lambda m: m[0].encode("unicode_escape").decode("ascii"), text)


def shown(value: Any, most: int = 80) -> str:
    """A value of whatever size and depth, for an error; of a text `most` characters."""
    shortened = reprlib.Repr()
    shortened.maxlevel, shortened.maxstring, shortened.maxother = 2, most, 80
    return shortened.repr(value)
