"""Hard negatives chosen when a set is built, as row numbers, for `SetWriter.add_negatives`.

Other rows of the task with another answer need no choice here: training draws them. What costs
more is chosen once: the most similar of them, and rows that ask something else of the same input.
Neither has both the input and the answer of its row, which would make it no negative at all.
"""

from __future__ import annotations

import itertools
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow.parquet

from coin_jax.curation.config import NegativeConfig
from coin_jax.data.draws import stable_hash
from coin_jax.data.order import shuffled
from coin_jax.data.set_format import InstructionTask, needed_fields

CHUNK = 4096
"""Rows read, and texts embedded, at a time."""
BLOCK = 1024
"""Rows that are compared with the same candidates."""
MOST_COMPARED = 64
"""Rows with the same input that a row looks through for another instruction."""

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts -> unit vectors, float32 [N, D]."""


def hardest(
    shards: Sequence[pathlib.Path],
    tasks: Sequence[InstructionTask],
    embed: Embed,
    settings: NegativeConfig,
    seed: int,
) -> Iterator[np.ndarray]:
    """The most similar rows of the task that have another input and another answer.

    A row is compared with `settings.candidates` rows of its task, drawn for each BLOCK of rows by
    the seed and the task's name; with all of them where there are no more. Equal inputs are left
    out whatever their answers: a text may have several right ones, as in summarisation.

    In memory: 16 bytes for each row of one task. Its vectors, float16, are on disk meanwhile.

    Yields: int64 [rows, settings.keep], row numbers, best first; -1 where there are fewer.
    """
    first = 0
    for number, chunks in itertools.groupby(_chunks(shards), lambda chunk: chunk.task):
        task = tasks[number]
        key = stable_hash(seed, "candidates", task.name)
        with tempfile.TemporaryFile(dir=shards[0].parent) as store:
            inputs, answers = _embedded(chunks, task, embed, store)
            vectors = np.memmap(store, np.float16, "r").reshape(len(inputs), -1)
            for block, start in enumerate(range(0, len(inputs), BLOCK)):
                rows = np.arange(start, min(start + BLOCK, len(inputs)))
                candidates = np.arange(len(inputs))
                if len(inputs) > settings.candidates:
                    places = np.arange(settings.candidates) + block * settings.candidates
                    candidates = np.unique(shuffled(places, len(inputs), key)[1])
                is_negative = (answers[rows, None] != answers[candidates]) & (
                    inputs[rows, None] != inputs[candidates]
                )
                similarity = _rows(vectors, rows) @ _rows(vectors, candidates).T
                badness = np.where(is_negative, -similarity, np.inf)
                best = np.argsort(badness, axis=1, kind="stable")[:, : settings.keep]
                is_there = np.take_along_axis(is_negative, best, axis=1)
                yield np.where(is_there, first + candidates[best], -1)
            del vectors
        first += len(inputs)


def other_instruction(
    shards: Sequence[pathlib.Path], tasks: Sequence[InstructionTask], keep: int
) -> Iterator[np.ndarray]:
    """Rows that have the same input texts under another instruction, and another answer.

    That is another task, or another instruction of the row's own. The names of the fields, their
    order, case and blanks make no difference. Where many rows share an input, each begins at a
    different one of them.

    In memory: 32 bytes a row.

    Yields: int64 [rows, at most `keep`], row numbers; -1 where there are fewer.
    """
    size = sum(pyarrow.parquet.read_metadata(shard).num_rows for shard in shards)
    instructions, inputs, answers = (np.empty(size, np.uint64) for _ in range(3))
    own_fields = [_numbers(task, {task.own_instruction}) for task in tasks]
    input_fields = [_numbers(task, _shown(task) - {task.own_instruction}) for task in tasks]
    start = 0
    for chunk in _chunks(shards):
        rows = slice(start, start + len(chunk.targets))
        own = own_fields[chunk.task]
        instructions[rows] = _hashes(chunk, own) if own else stable_hash("task", chunk.task)
        inputs[rows] = _hashes(chunk, input_fields[chunk.task])
        answers[rows] = _answers(chunk)
        start = rows.stop
    by_input = np.argsort(inputs, kind="stable")
    for start in range(0, size, CHUNK):
        rows = np.arange(start, min(start + CHUNK, size))
        begin = np.searchsorted(inputs, inputs[rows], "left", sorter=by_input)
        count = np.searchsorted(inputs, inputs[rows], "right", sorter=by_input) - begin
        steps = np.arange(min(count.max(), MOST_COMPARED))
        places = begin[:, None] + (rows[:, None] + steps) % count[:, None]
        candidates = by_input[places]
        is_negative = (
            (steps < count[:, None])
            & (instructions[candidates] != instructions[rows, None])
            & (answers[candidates] != answers[rows, None])
            & (inputs[rows, None] != _NO_INPUT)
        )
        best = np.argsort(~is_negative, axis=1, kind="stable")[:, :keep]
        is_there = np.take_along_axis(is_negative, best, axis=1)
        yield np.where(is_there, np.take_along_axis(candidates, best, axis=1), -1)


class _Chunk(NamedTuple):
    """Neighbouring rows of one task."""

    task: int
    inputs: list[list[str | None]]
    targets: list[str]


def _chunks(shards: Sequence[pathlib.Path]) -> Iterator[_Chunk]:
    """All rows in their order."""
    for path in shards:
        with pyarrow.parquet.ParquetFile(path) as shard:
            for batch in shard.iter_batches(CHUNK, columns=["task", "inputs", "target"]):
                tasks = batch["task"].to_numpy()
                cuts = (np.flatnonzero(np.diff(tasks)) + 1).tolist()
                for start, stop in itertools.pairwise([0, *cuts, len(tasks)]):
                    part = batch.slice(start, stop - start)
                    yield _Chunk(
                        int(tasks[start]), part["inputs"].to_pylist(), part["target"].to_pylist()
                    )


def _shown(task: InstructionTask) -> set[str]:
    """The fields that tell instances apart: not those that hold rewordings of others."""
    return {field for wording in task.wordings if not wording.of for field in wording.placeholders}


def _numbers(task: InstructionTask, fields: Set[str]) -> list[int]:
    return [number for number, field in enumerate(task.fields) if field in fields]


def _hashes(chunk: _Chunk, fields: Sequence[int]) -> np.ndarray:
    """Of what the rows have in the fields, in any order, uint64 [rows]."""
    texts = ([_plain(row[field] or "") for field in fields] for row in chunk.inputs)
    hashes = (stable_hash(*sorted(filter(None, row))) for row in texts)
    return np.fromiter(hashes, np.uint64, len(chunk.inputs))


def _answers(chunk: _Chunk) -> np.ndarray:
    """Hashes, uint64 [rows]."""
    hashes = (stable_hash(_plain(target)) for target in chunk.targets)
    return np.fromiter(hashes, np.uint64, len(chunk.targets))


_NO_INPUT = np.uint64(stable_hash())


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _text_of(task: InstructionTask) -> Callable[[Sequence[str | None]], str]:
    """What stands for an instance when it is compared: the inputs that its first wording shows.

    The instruction is left out, for it is the same in all; of finished prompts there is one.
    """
    shown = [needed_fields(task, wording) for wording in task.wordings]

    def text(inputs: Sequence[str | None]) -> str:
        for places in shown:
            texts = [inputs[place] for place in places]
            if texts and None not in texts:
                return "\n".join(texts)
        return "\n".join(filter(None, inputs))

    return text


def _embedded(
    chunks: Iterable[_Chunk], task: InstructionTask, embed: Embed, store: BinaryIO
) -> tuple[np.ndarray, np.ndarray]:
    """Writes the vectors of a task's rows to a file, float16; returns the hashes of their inputs
    and answers."""
    text_of, fields = _text_of(task), _numbers(task, _shown(task))
    inputs, answers = [], []
    for chunk in chunks:
        vectors = embed([text_of(row) for row in chunk.inputs])
        store.write(np.asarray(vectors, np.float16).tobytes())
        inputs.append(_hashes(chunk, fields))
        answers.append(_answers(chunk))
    store.flush()
    return np.concatenate(inputs), np.concatenate(answers)


def _rows(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return vectors[rows].astype(np.float32)
