"""From tokenised sets to the training step's batches: shuffled, packed, prefetched, resumable.

The global batch is made of `BatchConfig.shards` independent streams, shard k taking the positions
k, k + shards, ... of one shuffled stream and filling its own block of rows. A host computes the
shards it owns and nothing else, so the global batch does not depend on the number of hosts.

In batch mode `one_wording` the number of the global batch says which wording all of it has, so what
a shard has fetched ahead of a batch is fetched again in the next one's wording.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from coin_jax.config import BatchConfig, ConfigError
from coin_jax.data.mixture import Mixture
from coin_jax.data.order import shuffled
from coin_jax.data.packing import (
    MAX_LOOKAHEAD,
    PackedStream,
    PackingError,
    Room,
    TokenizedSet,
    assemble,
)
from coin_jax.data.sources import DataError

_BLOCK = 1024
"""Positions whose place in the shuffle is computed at a time."""

_COUNTS = ("batches", "sets", "pairs", "sequences", "cut", "encoder_tokens", "decoder_tokens")


class TokenizedSource(Protocol):
    """What a pipeline reads: random access, a pure function of its arguments."""

    def __len__(self) -> int:
        """Sets per epoch."""

    def tokenized(self, index: int, epoch: int) -> TokenizedSet:
        """The set `index`, in the wording it has in this epoch.

        In batch mode `one_wording` a third argument is given, the number of the batch.
        """


class BatchPipeline:
    """Iterates numpy batches without end, prefetched by tf.data in the background.

    A batch is a dict of int32 arrays, for this host's B rows, S and T tokens a row, P pair slots:
    encoder_tokens, encoder_segment_ids [B, S]; decoder_inputs, decoder_targets,
    decoder_segment_ids [B, T]; pair_members [P, 2]; pair_sets, pair_contents [P]. Rows, slots and
    set numbers are counted in the global batch: the hosts' arrays, one after the other, are it.

    What the source raises, `next` raises, after the batches before it. Use it as a context manager
    or call `close`, so that no thread outlives it.

    Args:
      mixture: the order of the data, where it is not one shuffle of all sets.
      start_state: what `state` returned; it must cover this host's shards.
      gather: an int32 array of this host -> those of all hosts, in order, for `state`.

    Raises: ConfigError where the window is too large, shards do not divide the rows or hosts the
      shards; DataError where `start_state` is of another order of data.
    """

    def __init__(
        self,
        source: TokenizedSource,
        batch: BatchConfig,
        seed: int,
        *,
        mixture: Mixture | None = None,
        host_index: int = 0,
        host_count: int = 1,
        decoder_start_token_id: int = 0,
        start_state: dict[str, int] | None = None,
        gather: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        if not 1 <= batch.window <= MAX_LOOKAHEAD:
            raise ConfigError(f"batch.window = {batch.window}: must be 1 to {MAX_LOOKAHEAD}")
        shards = _shards_of_host(batch, host_index, host_count)
        self._gather = gather
        self._order = {"seed": seed, "sets": len(source), "shards": batch.shards}
        order = functools.partial(shuffled, size=len(source), seed=seed)
        if mixture is not None:
            order = mixture
            self._order["mixture"] = mixture.fingerprint
        self._shards = shards
        state = start_state or self._order | {
            f"{kind}_{shard}": 0 for shard in shards for kind in ("position", "taken")
        }
        self._check(state)
        rows = batch.rows // batch.shards
        room = Room(rows, batch.encoder_length, batch.decoder_length, batch.segments_per_row)
        self._tokens = len(shards) * rows * np.array([room.encoder_length, room.decoder_length])
        self._state = np.array([[state[f"position_{k}"], state[f"taken_{k}"]] for k in shards])
        self._first_batch = state.get("batch", 0)
        self._counts = np.zeros(len(_COUNTS), np.int64)
        self._producer = _Producer(
            source,
            order,
            room,
            batch,
            shards,
            self._state.tolist(),
            self._first_batch,
            decoder_start_token_id,
        )
        # A list, so that closing it needs no reference to the pipeline.
        self._iterators = [_prefetched(self._producer, room, len(shards), batch.prefetch)]
        # A Ctrl-C that falls into TensorFlow's own code is lost one time in ten (3 of 40 measured):
        # it waits for the batch in a thread, and the caller in Python, where no signal is lost.
        self._waiter = concurrent.futures.ThreadPoolExecutor(1, "batches")
        self._next: concurrent.futures.Future | None = None
        # Runs at interpreter exit as well, for programs that forget to close.
        self._finalizer = weakref.finalize(
            self, _shut, self._producer, self._iterators, self._waiter
        )

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._iterators:
            raise StopIteration
        if self._next is None:
            self._next = self._waiter.submit(next, self._iterators[0], None)
        batch = self._next.result()
        # Only now: whoever goes on after a Ctrl-C gets the batch that was waited for.
        self._next = None
        if batch is None:
            raise self._producer.error or StopIteration
        self._state = batch.pop("state")
        self._counts = batch.pop("counts")
        return batch

    def state(self) -> dict[str, int]:
        """Where the batch last handed out ends: passed as `start_state`, it gives the next one.

        With `gather` it covers all shards, and all hosts must ask together; without, this host's,
        and the union of the hosts' states is the whole. It fits any number of hosts.
        """
        shards, positions = self._shards, self._state
        if self._gather is not None:
            # As int32, because jax halves wider integers.
            positions = np.asarray(self._gather(positions.view(np.int32)), np.int32)
            positions = positions.reshape(-1, 4).view(np.int64)
            shards = range(len(positions))
        state = self._order | {"batch": self._first_batch + int(self._counts[0])}
        for shard, (position, taken) in zip(shards, positions.tolist(), strict=True):
            state |= {f"position_{shard}": position, f"taken_{shard}": taken}
        return state

    def statistics(self) -> dict[str, float]:
        """Of the batches handed out by this pipeline: counts, shares of padding, epochs begun.

        `cut` is the number of sequences that were truncated; `epoch` counts from the very start, in
        a mixture as many sets as the source has.
        """
        counts = dict(zip(_COUNTS, self._counts.tolist(), strict=True))
        filled = np.array([counts["encoder_tokens"], counts["decoder_tokens"]])
        encoder, decoder = 1 - filled / (self._tokens * max(1, counts["batches"]))
        epoch = self._state[:, 0].min() * self._order["shards"] / self._order["sets"]
        return counts | {
            "encoder_padding": float(encoder),
            "decoder_padding": float(decoder),
            "epoch": float(epoch),
        }

    def close(self) -> None:
        """Ends the background threads; the iteration is over."""
        self._finalizer()

    def __enter__(self) -> BatchPipeline:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _check(self, state: dict[str, int]) -> None:
        for name in ("seed", "sets", "shards", "mixture"):
            saved, now = state.get(name), self._order.get(name)
            if saved != now:
                how = (
                    "under another mixture of tasks (data.mixture_weights, _cap, _temperature)"
                    if name == "mixture"
                    else f"with {name} = {saved}, now it is {now}"
                )
                raise DataError(
                    f"the data position was saved {how}: the order of the data would be another "
                    "one; go on with the old value, or start without the saved position"
                )
        if missing := [k for k in self._shards if f"position_{k}" not in state]:
            raise DataError(
                f"the data position says nothing of shards {missing}: join the states of all hosts"
            )


class _Producer:
    """The part that runs in tf.data's thread; it must not refer to the pipeline that it feeds."""

    def __init__(
        self, source, order, room, batch, shards, states, first_batch, decoder_start_token_id
    ):
        self.error: BaseException | None = None
        self.stopped = threading.Event()
        self._room, self._start = room, decoder_start_token_id
        self._shards = shards
        self._turn = first_batch if batch.mode == "one_wording" else None
        self._orders = [_shard_order(order, shard, batch.shards) for shard in shards]
        self._streams = [
            PackedStream(self._fetch(source, order), room, batch.window, *state)
            for order, state in zip(self._orders, states, strict=True)
        ]

    def batches(self):
        """Yields the pipeline's batches, each with the state after it and the counts up to it."""
        counts = np.zeros(len(_COUNTS), np.int64)
        try:
            while not self.stopped.is_set():
                parts = []
                for number, stream in enumerate(self._streams):
                    parts.append(self._part(number, stream, counts))
                batch = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
                batch["state"] = np.array([[s.position, s.taken] for s in self._streams])
                counts[0] += 1
                counts[-2] += np.count_nonzero(batch["encoder_segment_ids"])
                counts[-1] += np.count_nonzero(batch["decoder_segment_ids"])
                yield batch | {"counts": counts.copy()}
                if self._turn is not None:
                    self._turn += 1
                    for stream in self._streams:
                        stream.restart()
        except Exception as error:
            # tf.data would bury it in a traceback of its own; the consumer raises it as it is.
            self.error = error

    def _part(self, number: int, stream: PackedStream, counts) -> dict[str, np.ndarray]:
        try:
            batch = stream.next_batch()
        except PackingError as error:
            epoch, index = self._orders[number](error.position)
            raise PackingError(f"item {index} of the data in epoch {epoch}: {error}") from None
        counts[1:5] += np.sum(
            [(1, len(s.contents), len(s.encoder), s.cut) for s in batch.sets], axis=0
        )
        shard, room = self._shards[number], self._room
        return assemble(
            batch,
            room,
            decoder_start_token_id=self._start,
            first_row=shard * room.rows,
            first_set=shard * room.pairs,
        )

    def _fetch(self, source, order) -> Callable[[int], TokenizedSet]:
        def fetch(position: int) -> TokenizedSet:
            epoch, index = order(position)
            if self._turn is None:
                return source.tokenized(index, epoch)
            return source.tokenized(index, epoch, self._turn)

        return fetch


def _shard_order(order: Callable, shard: int, shards: int) -> Callable[[int], tuple[int, int]]:
    """position in the shard's stream -> (epoch, index), computed a block at a time."""
    first, block = 0, []

    def at(position: int) -> tuple[int, int]:
        nonlocal first, block
        if not first <= position < first + len(block):
            first = position
            positions = (first + np.arange(_BLOCK)) * shards + shard
            block = list(zip(*(a.tolist() for a in order(positions)), strict=True))
        return block[position - first]

    return at


def _shards_of_host(batch: BatchConfig, host_index: int, host_count: int) -> range:
    """The shards that a host computes, neighbours so that its rows are."""
    if batch.rows % batch.shards:
        raise ConfigError(
            f"batch.rows = {batch.rows} must be a multiple of batch.shards = {batch.shards}"
        )
    if batch.shards > 1 and batch.rows // batch.shards * batch.segments_per_row % 2:
        raise ConfigError(
            f"the {batch.rows // batch.shards} rows of a shard hold an odd number of sequences at "
            f"batch.segments_per_row = {batch.segments_per_row}: make one of the two even"
        )
    if batch.shards % host_count:
        raise ConfigError(
            f"batch.shards = {batch.shards} must be a multiple of the number of hosts, {host_count}"
        )
    if not 0 <= host_index < host_count:
        raise ConfigError(f"there is no host {host_index} of {host_count}")
    each = batch.shards // host_count
    return range(host_index * each, (host_index + 1) * each)


def _prefetched(producer: _Producer, room: Room, shards: int, prefetch: int) -> Iterator[dict]:
    tensorflow = _tensorflow()
    encoder = (shards * room.rows, room.encoder_length)
    decoder = (shards * room.rows, room.decoder_length)
    pairs = shards * room.pairs
    shapes = {
        "encoder_tokens": encoder,
        "encoder_segment_ids": encoder,
        "decoder_inputs": decoder,
        "decoder_targets": decoder,
        "decoder_segment_ids": decoder,
        "pair_members": (pairs, 2),
        "pair_sets": (pairs,),
        "pair_contents": (pairs,),
    }
    signature = {k: tensorflow.TensorSpec(v, tensorflow.int32) for k, v in shapes.items()}
    signature["state"] = tensorflow.TensorSpec((shards, 2), tensorflow.int64)
    signature["counts"] = tensorflow.TensorSpec((len(_COUNTS),), tensorflow.int64)
    dataset = tensorflow.data.Dataset.from_generator(producer.batches, output_signature=signature)
    options = tensorflow.data.Options()
    options.threading.private_threadpool_size = 2
    options.autotune.enabled = False
    return dataset.prefetch(max(1, prefetch)).with_options(options).as_numpy_iterator()


def _shut(
    producer: _Producer, iterators: list, waiter: concurrent.futures.ThreadPoolExecutor
) -> None:
    """Lets tf.data run to its end, which comes at once when the producer stops.

    Dropping the iterator is not enough: a traceback (of Ctrl-C, say) may still refer to it, and at
    interpreter exit its thread and the main one would then wait for each other.
    """
    producer.stopped.set()
    waiter.shutdown()
    while iterators:
        for _ in iterators.pop():
            pass


def _tensorflow():
    """TensorFlow, imported when a pipeline starts: without its log noise and without a GPU."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Its notice is written at every level; nothing here multiplies matrices in TensorFlow.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow

    # Where TensorFlow has been set up already, someone else has decided about its devices.
    with contextlib.suppress(RuntimeError):
        tensorflow.config.set_visible_devices([], "GPU")
    return tensorflow
