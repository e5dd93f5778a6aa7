"""Packing: which contrastive sets make a batch, in which rows, and the arrays of that batch.

A stream of sets is cut into batches in its own order. A batch takes the longest run of waiting sets
that fits into its rows, then fills what is left with sets from a little further on. What was taken
out of turn is remembered in the bits of one integer, so the state of a stream is two integers,
every batch is full, and none is lost or waits for more than one batch. numpy only.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from coin_jax.data.sources import DataError

MAX_LOOKAHEAD = 64
"""Sets; their marks must fit into a non-negative int64."""


class PackingError(DataError):
    """A set that no batch of this shape can hold. `position` is its place in the stream."""

    def __init__(self, message: str, position: int = -1):
        super().__init__(message)
        self.position = position


class TokenizedSet(NamedTuple):
    """One item of the stream: a contrastive set, or a single sequence of plain text."""

    encoder: Sequence[np.ndarray]
    """int32 [length] each, ending in eos: anchor, positive[, the negative's anchor, positive]."""
    decoder: Sequence[np.ndarray]
    """int32 [length] each, ending in eos: the targets, in the same order."""
    contents: tuple[int, ...] = ()
    """One 31-bit hash of (input instance, answer) a pair; empty: these sequences are no pairs."""
    cut: int = 0
    """How many of the sequences were truncated."""


@dataclasses.dataclass(frozen=True)
class Room:
    """The rows of one batch of one stream."""

    rows: int
    encoder_length: int
    decoder_length: int
    segments: int

    @property
    def pairs(self) -> int:
        """Pair slots of the batch."""
        return self.rows * self.segments // 2


class Batch(NamedTuple):
    """The sets of one batch and the row of each of their sequences, set by set."""

    sets: list[TokenizedSet]
    rows: list[int]


@dataclasses.dataclass
class _Waiting:
    """A set that is not in a batch yet, with its lengths."""

    position: int
    content: TokenizedSet
    sizes: list[tuple[int, int]]
    encoder_total: int
    decoder_total: int


class PackedStream:
    """Cuts the stream fetch(0), fetch(1), ... into batches.

    `position` is the first set not in a batch yet; bit i of `taken` tells that position + 1 + i
    is. These two integers, with `fetch` and `room`, determine every batch to come.
    """

    def __init__(
        self,
        fetch: Callable[[int], TokenizedSet],
        room: Room,
        lookahead: int = 16,
        position: int = 0,
        taken: int = 0,
    ):
        if not 1 <= lookahead <= MAX_LOOKAHEAD:
            raise ValueError(f"a window of {lookahead} sets; allowed are 1 to {MAX_LOOKAHEAD}")
        if position < 0 or not 0 <= taken < 2**63:
            raise ValueError(f"no stream has the state (position={position}, taken={taken})")
        self.position, self.taken = position, taken
        self._fetch, self._room, self._lookahead = fetch, room, lookahead
        self._waiting: list[_Waiting] = []
        self._next = position

    def next_batch(self) -> Batch:
        """The next batch. Raises PackingError where the set in turn fits no empty batch."""
        count = self._longest_run()
        chosen, rows = self._fill(count)
        # A stream that goes on with a shorter look-ahead must still pass all that it had taken.
        while self._next <= self.position + self.taken.bit_length():
            self._at(len(self._waiting))
        sets = [self._waiting[i].content for i in chosen]
        left = set(range(len(self._waiting))).difference(chosen)
        self._waiting = [self._waiting[i] for i in sorted(left)]
        self.position = self._at(0).position
        waiting = {item.position for item in self._waiting}
        self.taken = sum(
            1 << (p - self.position - 1)
            for p in range(self.position + 1, min(self._next, self.position + MAX_LOOKAHEAD))
            if p not in waiting
        )
        return Batch(sets, rows)

    def restart(self) -> None:
        """Forgets what was fetched ahead, for a `fetch` that has changed; the state stays."""
        self._waiting, self._next = [], self.position

    def _at(self, i: int) -> _Waiting:
        """The i-th waiting set, fetched when it is first looked at."""
        while len(self._waiting) <= i:
            mark = self._next - self.position - 1
            if mark < 0 or not self.taken >> mark & 1:
                content = self._fetch(self._next)
                self._waiting.append(self._measured(self._next, content))
            self._next += 1
        return self._waiting[i]

    def _measured(self, position: int, content: TokenizedSet) -> _Waiting:
        sizes = [(len(e), len(d)) for e, d in zip(content.encoder, content.decoder, strict=True)]
        room = self._room
        for encoder, decoder in sizes:
            if not (0 < encoder <= room.encoder_length and 0 < decoder <= room.decoder_length):
                raise PackingError(
                    f"a sequence of {encoder} input and {decoder} target tokens does not fit into "
                    f"a row of {room.encoder_length} and {room.decoder_length}; each side needs at "
                    "least one",
                    position,
                )
        encoder_total, decoder_total = (sum(side) for side in zip(*sizes, strict=True))
        return _Waiting(position, content, sizes, encoder_total, decoder_total)

    def _longest_run(self) -> int:
        """How many of the waiting sets, taken in order, fit into one batch."""
        room, run = self._room, 0
        encoder = decoder = sequences = 0
        while True:
            item = self._at(run)
            encoder += item.encoder_total
            decoder += item.decoder_total
            sequences += len(item.sizes)
            if (
                encoder > room.rows * room.encoder_length
                or decoder > room.rows * room.decoder_length
                or sequences > room.rows * room.segments
            ):
                break
            run += 1
        # The totals allow `run`; gaps in the rows cost a little. Ever longer steps down to a run
        # that fits, then halving between it and the shortest that did not.
        too_long, step = run + 1, 1
        while run and not self._fits(range(run)):
            too_long, run, step = run, max(0, run - step), 2 * step
        while too_long - run > 1:
            middle = (run + too_long) // 2
            run, too_long = (middle, too_long) if self._fits(range(middle)) else (run, middle)
        if not run:
            sizes = ", ".join(f"{e} input and {d} target" for e, d in self._at(0).sizes)
            raise PackingError(
                f"a set of {len(self._at(0).sizes)} sequences ({sizes} tokens) does not fit into "
                f"one batch of {room.rows} rows of {room.encoder_length} input and "
                f"{room.decoder_length} target tokens: more rows (or fewer shards) or longer rows "
                "help",
                self._at(0).position,
            )
        return run

    def _fill(self, run: int) -> tuple[list[int], list[int]]:
        """The run and what else fits: (waiting sets in order, the row of each sequence)."""
        room, chosen = self._room, list(range(run))
        rows = self._fits(chosen)
        encoder = room.rows * room.encoder_length - sum(self._at(i).encoder_total for i in chosen)
        decoder = room.rows * room.decoder_length - sum(self._at(i).decoder_total for i in chosen)
        # Sets may be taken from up to `lookahead` behind the first one that stays.
        end, last = run, self._at(run).position + self._lookahead
        while self._at(end).position < last:
            end += 1
        # The largest first: it fills most, and small ones are easy to place in any batch.
        for i in sorted(range(run, end), key=lambda i: -self._at(i).encoder_total):
            item = self._at(i)
            if item.encoder_total > encoder or item.decoder_total > decoder:
                continue
            with_it = sorted([*chosen, i])
            if found := self._fits(with_it):
                chosen, rows = with_it, found
                encoder -= item.encoder_total
                decoder -= item.decoder_total
        return chosen, rows

    def _fits(self, chosen: Sequence[int]) -> list[int] | None:
        return place([size for i in chosen for size in self._waiting[i].sizes], self._room)


def place(sizes: Sequence[tuple[int, int]], room: Room) -> list[int] | None:
    """Best-fit decreasing: the row of each sequence, or None where they do not all fit.

    sizes: (encoder, decoder) tokens of each sequence. The longest sequence goes first, into the
    fullest row that still has room for it.
    """
    if len(sizes) > room.rows * room.segments:
        return None
    # Encoder and decoder lengths are compared as shares of their row.
    shares = [max(e * room.decoder_length, d * room.encoder_length) for e, d in sizes]
    rows_of = [0] * len(sizes)
    opened = 0
    rows: list[
        tuple[int, int, int, int]
    ] = []  # (encoder room, decoder room, segments, row), sorted
    for i in sorted(range(len(sizes)), key=shares.__getitem__, reverse=True):
        encoder, decoder = sizes[i]
        for at in range(bisect.bisect_left(rows, (encoder,)), len(rows)):
            if rows[at][1] >= decoder and rows[at][2]:
                encoder_room, decoder_room, segments, row = rows.pop(at)
                break
        else:
            if opened == room.rows:
                return None
            row, opened = opened, opened + 1
            encoder_room, decoder_room = room.encoder_length, room.decoder_length
            segments = room.segments
        rows_of[i] = row
        bisect.insort(rows, (encoder_room - encoder, decoder_room - decoder, segments - 1, row))
    return rows_of


def assemble(
    batch: Batch, room: Room, *, decoder_start_token_id: int, first_row: int = 0, first_set: int = 0
) -> dict[str, np.ndarray]:
    """The arrays of a batch, all int32, B rows of S and T tokens, P = B * G // 2 pair slots.

    encoder_tokens, encoder_segment_ids [B, S]; decoder_inputs, decoder_targets,
    decoder_segment_ids [B, T]; pair_members [P, 2]; pair_sets, pair_contents [P].
    `first_row` and `first_set` are what the stream's first row and set are called in the global
    batch; they are counted in pair_members (slot = row * G + segment - 1) and pair_sets.
    """
    encoder = [sequence for item in batch.sets for sequence in item.encoder]
    decoder = [sequence for item in batch.sets for sequence in item.decoder]
    rows = np.asarray(batch.rows)
    order = np.argsort(rows, kind="stable")
    starts = np.flatnonzero(np.diff(rows[order], prepend=-1))
    runs = np.diff(starts, append=len(order))
    segments = np.arange(len(order)) - np.repeat(starts, runs) + 1
    slots = np.empty(len(order), np.int64)
    slots[order] = (rows[order] + first_row) * room.segments + segments - 1

    tokens, places, encoder_segments, _ = _flat(encoder, rows, order, segments, room.encoder_length)
    encoder_shape = (room.rows, room.encoder_length)
    targets, target_places, decoder_segments, begins = _flat(
        decoder, rows, order, segments, room.decoder_length
    )
    decoder_shape = (room.rows, room.decoder_length)
    inputs = np.roll(targets, 1)
    inputs[begins] = decoder_start_token_id

    members = np.full((room.pairs, 2), -1, np.int32)
    sets = np.full(room.pairs, -1, np.int32)
    contents = np.full(room.pairs, -1, np.int32)
    sizes = [len(item.encoder) for item in batch.sets]
    pairs = [len(item.contents) for item in batch.sets]
    for size, count in zip(sizes, pairs, strict=True):
        if count and size != 2 * count:
            raise PackingError(f"a set of {size} sequences holds {count} pair contents")
    paired = slots[np.repeat(np.asarray(pairs) > 0, sizes)].reshape(-1, 2)
    members[: len(paired)] = paired
    sets[: len(paired)] = np.repeat(np.arange(len(sizes)) + first_set, pairs)
    contents[: len(paired)] = [hashed for item in batch.sets for hashed in item.contents]
    return {
        "encoder_tokens": _spread(tokens, places, encoder_shape),
        "encoder_segment_ids": _spread(encoder_segments, places, encoder_shape),
        "decoder_inputs": _spread(inputs, target_places, decoder_shape),
        "decoder_targets": _spread(targets, target_places, decoder_shape),
        "decoder_segment_ids": _spread(decoder_segments, target_places, decoder_shape),
        "pair_members": members,
        "pair_sets": sets,
        "pair_contents": contents,
    }


def _flat(sequences, rows, order, segments, length):
    """All tokens, row by row: (tokens, places in the flat batch, segments, begins)."""
    in_order = [sequences[i] for i in order]
    lengths = np.fromiter(map(len, in_order), np.int64, len(in_order))
    ends = np.cumsum(lengths)
    begins = ends - lengths
    new_row = np.diff(rows[order], prepend=-1) != 0
    row_begins = np.maximum.accumulate(np.where(new_row, begins, 0))
    shifts = rows[order] * length - row_begins
    places = np.arange(ends[-1]) + np.repeat(shifts, lengths)
    return np.concatenate(in_order), places, np.repeat(segments, lengths), begins


def _spread(values, places, shape) -> np.ndarray:
    array = np.zeros(shape, np.int32)
    array.ravel()[places] = values
    return array
