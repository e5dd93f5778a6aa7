"""Pretraining on plain text by span corruption (Raffel et al. 2020, section 3.1.4).

Spans of the text are replaced by one sentinel each; the target names each sentinel and the tokens
it stands for. All windows have one length, so their inputs and targets do as well.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from coin_jax.config import BatchConfig, DataConfig
from coin_jax.data.order import random_bits
from coin_jax.data.packing import TokenizedSet
from coin_jax.data.sources import DataError, read_text
from coin_jax.data.tokenizer import Tokenizer

_CHARACTERS = 1 << 20
"""Text that is tokenised at a time."""


class SpanCorruption:
    """Corrupted windows of one long text, by index: a source for BatchPipeline.

    tokens: integers [N], memory-mapped ones are left where they are. In every epoch the windows
    begin elsewhere and other spans are masked: a pure function of (seed, epoch, index).

    Raises: DataError where the text is empty, or the rows, the tokenizer's sentinels or
    data.noise_density allow no window.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        tokenizer: Tokenizer,
        batch: BatchConfig,
        data: DataConfig,
        seed: int,
    ):
        if len(tokens) < 2:
            raise DataError(f"data.files hold {len(tokens)} tokens of text; at least 2 are needed")
        self._tokens, self._seed = tokens, seed
        self._eos_id = tokenizer.eos_id
        noise = (data.noise_density, data.mean_noise_span_length)
        longest = raw_length(batch.encoder_length, batch.decoder_length, *noise)
        self.raw_length = min(longest, len(tokens))
        """Tokens of text in a window."""
        self._noise, self._spans = noise_counts(self.raw_length, *noise)
        self._sentinels = np.asarray(tokenizer.sentinel_ids[: self._spans], np.int32)
        if len(self._sentinels) < self._spans:
            raise DataError(
                f"a window of {self.raw_length} tokens has {self._spans} masked spans, and the "
                f"tokenizer only {len(self._sentinels)} sentinels: shorter rows, a lower "
                "data.noise_density or a longer data.mean_noise_span_length help"
            )

    def __len__(self) -> int:
        """Windows per epoch: what is too short for one more is left out, elsewhere every time."""
        return len(self._tokens) // self.raw_length

    def tokenized(self, index: int, epoch: int) -> TokenizedSet:
        """One input and its target, both ending in eos; no pair."""
        start = int(random_bits(1, self._seed, epoch)[0]) + index * self.raw_length
        start %= len(self._tokens)
        text = self._tokens[start : start + self.raw_length].astype(np.int32)
        if len(text) < self.raw_length:  # the text is read in a circle
            begin = self._tokens[: self.raw_length - len(text)].astype(np.int32)
            text = np.concatenate([text, begin])
        is_noise = noise_mask(self.raw_length, self._noise, self._spans, self._seed, epoch, index)
        begins = is_noise & ~np.roll(is_noise, 1)  # a window begins with text, so never at a wrap
        masked = text.copy()
        masked[begins] = self._sentinels
        inputs = masked[~is_noise | begins]
        targets = np.insert(text[is_noise], np.flatnonzero(begins[is_noise]), self._sentinels)
        return TokenizedSet([np.append(inputs, self._eos_id)], [np.append(targets, self._eos_id)])


def noise_counts(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """(masked tokens, spans they form) in a window of `length` tokens, at least one of each."""
    noise = min(max(round(length * density), 1), length - 1)
    return noise, min(max(round(noise / mean_span), 1), noise, length - noise)


def raw_length(max_input: int, max_target: int, density: float, mean_span: float) -> int:
    """Tokens of the longest window whose input and target, with sentinels and eos, fit.

    Raises: DataError where not even two tokens do.
    """
    length = 1
    while True:
        noise, spans = noise_counts(length + 1, density, mean_span)
        if length + 1 - noise + spans + 1 > max_input or noise + spans + 1 > max_target:
            break
        length += 1
    if length < 2:
        raise DataError(
            f"batch.encoder_length = {max_input} and batch.decoder_length = {max_target} are too "
            "short for span corruption: both need at least 3 tokens"
        )
    return length


def noise_mask(length: int, noise: int, spans: int, *draw: int) -> np.ndarray:
    """bool [length], True where masked: `spans` runs, `noise` in total, drawn by the numbers.

    The lengths of the runs, and of the text between them, are uniform among all that add up. A
    window begins with text and ends with a masked span, as T5's random spans do.
    """
    lengths = np.empty(2 * spans, np.int64)
    lengths[::2] = _parts(length - noise, spans, *draw, 0)
    lengths[1::2] = _parts(noise, spans, *draw, 1)
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def _parts(total: int, count: int, *draw: int) -> np.ndarray:
    """`total` as a sum of `count` positive numbers: cuts at random places between the units."""
    cuts = np.sort(np.argsort(random_bits(total - 1, *draw), kind="stable")[: count - 1]) + 1
    return np.diff(cuts, prepend=0, append=total)


def read_tokens(
    files: Sequence[pathlib.Path],
    tokenizer: Tokenizer,
    *,
    bad_rows: Literal["error", "skip"] = "error",
    cache_folder: str | pathlib.Path | None = None,
) -> tuple[np.ndarray, list[DataError]]:
    """(tokens [N] of all text in the files, paragraph after paragraph; errors of skipped lines).

    uint16 where the vocabulary allows it, else uint32: 100 MB of English make some 25 million
    tokens of T5's vocabulary, 50 MB. In memory that is the limit; with a cache folder the tokens
    are memory-mapped from there, and a second run on the same files tokenises nothing. The file's
    name says its size: one that was cut is made anew.

    Raises: DataError with file and line where text is not valid UTF-8 and `bad_rows` is "error".
    """
    errors: list[DataError] = []
    chunks = _chunks(read_text(files), tokenizer, bad_rows, errors)
    if cache_folder is None:
        return np.concatenate([np.zeros(0, _dtype(tokenizer)), *chunks]), errors
    folder = pathlib.Path(cache_folder)
    name = f"tokens-{_fingerprint(files, tokenizer)}"
    for path in folder.glob(f"{name}*.bin"):
        if path.name == f"{name}-{path.stat().st_size}.bin":
            return _mapped(path, tokenizer), errors
        path.unlink()  # it was cut short, and would be taken for other text
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        part = pathlib.Path(unfinished) / "tokens"
        with part.open("wb") as stream:
            for chunk in chunks:
                chunk.tofile(stream)
            stream.flush()
            os.fsync(stream.fileno())
        # Text with lines left out is not kept: the next run must hear of them again.
        if errors:
            return _mapped(part, tokenizer), errors
        path = part.replace(folder / f"{name}-{part.stat().st_size}.bin")
    return _mapped(path, tokenizer), errors


def _mapped(path: pathlib.Path, tokenizer: Tokenizer) -> np.ndarray:
    """The tokens in a file, which may lose its name afterwards; an empty one cannot be mapped."""
    if not path.stat().st_size:
        return np.zeros(0, _dtype(tokenizer))
    return np.memmap(path, _dtype(tokenizer), mode="r")


def _chunks(
    texts: Iterable[str | DataError], tokenizer: Tokenizer, bad_rows: str, errors: list[DataError]
) -> Iterator[np.ndarray]:
    """Tokens of about `_CHARACTERS` of text at a time."""

    def paragraphs() -> Iterator[str]:
        for text in texts:
            if not isinstance(text, DataError):
                yield text + "\n"  # tokenizers that know line breaks keep the paragraphs apart
            elif bad_rows == "error":
                raise text
            else:
                errors.append(text)

    size, waiting = 0, []
    for text in itertools.chain(paragraphs(), [None]):
        if text is not None:
            waiting.append(text)
            size += len(text)
        if waiting and (text is None or size >= _CHARACTERS):
            ids = itertools.chain.from_iterable(tokenizer.encode_batch(waiting))
            yield np.fromiter(ids, _dtype(tokenizer))
            size, waiting = 0, []


def _dtype(tokenizer: Tokenizer) -> type:
    return np.uint16 if tokenizer.vocabulary_size <= 1 << 16 else np.uint32


def _fingerprint(files: Sequence[pathlib.Path], tokenizer: Tokenizer) -> str:
    """Of the files' names, sizes and times, and of what the tokenizer makes of their first line."""
    parts: list[object] = [tokenizer.vocabulary_size]
    for file in files:
        status = file.stat()
        parts.append((str(file.resolve()), status.st_size, status.st_mtime_ns))
    first = next((text for text in read_text(files) if isinstance(text, str)), "")
    parts.append(list(tokenizer.encode(first[:10_000])))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
