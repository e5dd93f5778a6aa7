"""Several processes answer as one model: process 0 leads, and the others compute what it asks.

A question takes all processes, and one that is asked by fewer waits for ever. So the others decide
nothing: what process 0 reads, finds in a store or draws decides for all of them what comes next.

    process 0   predictor = load("runs/coin"); predictor.score(..); ..; dismiss()
    others      follow()
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from typing import Any, get_args

import jax
import numpy as np

from coin_jax.config import MeshConfig, Pooling
from coin_jax.parallel import distributed
from coin_jax.parallel.mesh import make_mesh
from coin_jax.parallel.sharding import replicated
from coin_jax.parallel.share import tell
from coin_jax.predictor import Predictor

QUESTIONS = ("score", "candidates", "pooled_states")
"""What a process may be told to compute."""


class LeadingPredictor(Predictor):
    """In process 0, a model that all processes have loaded: it tells them of each question."""

    number: int

    def score(
        self, prompts: Sequence[Any], answers: Any, length_normalized: bool = False
    ) -> np.ndarray:
        prompts = self._told("score", prompts, answers=answers, length_normalized=length_normalized)
        return super().score(prompts, answers, length_normalized)

    def candidates(self, prompts: Sequence[Any], **settings: Any) -> list[list[str]]:
        return super().candidates(self._told("candidates", prompts, **settings), **settings)

    def pooled_states(
        self,
        prompts: Sequence[Any],
        answers: Sequence[str],
        kinds: Sequence[Pooling] = get_args(Pooling),
    ) -> dict[str, np.ndarray]:
        prompts = self._told("pooled_states", prompts, answers=answers, kinds=kinds)
        return super().pooled_states(prompts, answers, kinds)

    def _told(self, question: str, prompts: Sequence[Any], **arguments: Any) -> list[Sequence[int]]:
        encoded = self._encode(prompts)
        if encoded:  # without prompts nothing is computed
            _send({"ask": question, "of": self.number, "arguments": arguments}, encoded)
        return encoded


_leading: list[weakref.ref[LeadingPredictor]] = []


def load(checkpoint: str, **settings: Any) -> Predictor:
    """`Predictor.from_checkpoint`; of several processes, in all of them.

    Raises ValueError where there is none, ConfigError where they do not read the same.
    """
    if jax.process_count() == 1:
        return Predictor.from_checkpoint(checkpoint, **settings)
    kept = [number for number, predictor in enumerate(_leading) if predictor() is not None]
    _send({"load": checkpoint, "settings": settings, "kept": kept})
    predictor = _everywhere(LeadingPredictor, checkpoint, settings)
    predictor.number = len(_leading)
    _leading.append(weakref.ref(predictor))
    return predictor


def follow() -> None:
    """Computes what process 0 asks, until it says that this is all."""
    predictors: list[Predictor | None] = []
    while True:
        said, prompts = _receive()
        if "load" in said:
            predictors = [p if n in said["kept"] else None for n, p in enumerate(predictors)]
            predictors.append(_everywhere(Predictor, said["load"], said["settings"]))
        elif said.get("ask") in QUESTIONS:
            getattr(predictors[said["of"]], said["ask"])(prompts, **said["arguments"])
        else:
            return


def dismiss() -> None:
    """Process 0 has no more to ask."""
    if jax.process_count() > 1:
        _send({})


def _everywhere(kind: type[Predictor], checkpoint: str, settings: dict[str, Any]) -> Predictor:
    mesh = make_mesh(MeshConfig())
    predictor = kind.from_checkpoint(checkpoint, mesh=mesh, **settings)
    distributed.check_same(f"model in {checkpoint}", predictor.identity)
    predictor.params = jax.tree.map(
        lambda array: jax.make_array_from_callback(
            array.shape, replicated(mesh), lambda index: array[index]
        ),
        predictor.params,
    )
    return predictor


def _send(said: dict[str, Any], prompts: Sequence[Sequence[int]] = ()) -> None:
    """JSON, a zero, and the ids of all prompts."""
    said = said | {"lengths": [len(ids) for ids in prompts]}
    ids = np.concatenate([np.zeros(0, np.int32), *prompts]).astype(np.int32)
    distributed.barrier("something is asked")  # until then the others wait without a time limit
    tell(json.dumps(said).encode() + b"\0" + ids.tobytes())


def _receive() -> tuple[dict[str, Any], list[list[int]]]:
    distributed.barrier("something is asked")
    text, _, ids = tell(None).partition(b"\0")
    said = json.loads(text)
    ends = np.cumsum(said["lengths"], dtype=np.int64)[:-1]
    prompts = np.split(np.frombuffer(ids, np.int32), ends) if said["lengths"] else []
    return said, [part.tolist() for part in prompts]
