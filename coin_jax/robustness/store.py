"""Predictions on disk, under what they depend on: asked once, read ever after."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from coin_jax.untrusted import UntrustedError, read_arrays, read_json


class Answered(NamedTuple):
    """What one model said to one wording of a task, for I instances and A answers."""

    predictions: np.ndarray
    """int32 [I], indices into the task's answers; -1 where the text generated is none of them."""
    scores: np.ndarray | None = None
    """float32 [I, A], log-likelihoods; None where answers were generated."""
    texts: np.ndarray | None = None
    """str [I], what was generated; None where answers were scored."""

    def fits(self, instances: int, answers: int) -> bool:
        """Whether it can be what was said to so many instances with so many answers."""
        said, scores, texts = self
        return (
            said.shape == (instances,)
            and said.dtype == np.int32
            and bool(((said >= -1) & (said < answers)).all())
            and (scores is None) != (texts is None)
            and (texts is None or (texts.shape == (instances,) and texts.dtype.kind == "U"))
            and (
                scores is None
                or (
                    scores.shape == (instances, answers)
                    and scores.dtype == np.float32
                    and not np.isnan(scores).any()
                    and bool((said >= 0).all())
                )
            )
        )


class PredictionStore:
    """A folder of small files, one a key; a file that is not whole counts as absent."""

    def __init__(self, folder: str | pathlib.Path):
        self._folder = pathlib.Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def key(**facts: Any) -> str:
        """A digest of everything that an answer depends on, as JSON values."""
        content = json.dumps(facts, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:40]

    def read(self, key: str, instances: int, answers: int) -> Answered | None:
        """What was said to so many instances; None where nothing that fits them is there."""
        try:
            found = Answered(**read_arrays(self._folder / f"{key}.npz"))
        except (OSError, ValueError, TypeError):
            return None
        return found if found.fits(instances, answers) else None

    def write(self, key: str, answered: Answered) -> None:
        arrays = {name: a for name, a in answered._asdict().items() if a is not None}
        self._replace(f"{key}.npz", lambda file: np.savez_compressed(file, **arrays))

    def read_record(self, key: str) -> dict[str, Any] | None:
        """A record of plain values, such as an attack's end."""
        try:
            record = read_json(self._folder / f"{key}.json")
        except (OSError, UntrustedError):
            return None
        return record if isinstance(record, dict) else None

    def write_record(self, key: str, record: Mapping[str, Any]) -> None:
        content = json.dumps(record).encode("utf-8")
        self._replace(f"{key}.json", lambda file: file.write(content))

    def _replace(self, name: str, write: Any) -> None:
        # Under another name first: whoever reads finds a whole file or none.
        partial = self._folder / f"{name}.{os.getpid()}.partial"
        try:
            with open(partial, "wb") as file:
                write(file)
            os.replace(partial, self._folder / name)
        finally:
            partial.unlink(missing_ok=True)
