"""Predictions on disk, under what they depend on: asked once, read ever after."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Answered(NamedTuple):
    """What one model said to one wording of a task, for I instances and A answers."""

    predictions: np.ndarray
    """int32 [I], indices into the task's answers; -1 where the text generated is none of them."""
    scores: np.ndarray | None = None
    """float32 [I, A], log-likelihoods; None where answers were generated."""
    texts: np.ndarray | None = None
    """str [I], what was generated; None where answers were scored."""


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

    def read(self, key: str) -> Answered | None:
        try:
            with np.load(self._folder / f"{key}.npz", allow_pickle=False) as file:
                return Answered(**{name: file[name] for name in file.files})
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
            return None

    def write(self, key: str, answered: Answered) -> None:
        arrays = {name: a for name, a in answered._asdict().items() if a is not None}
        self._replace(f"{key}.npz", lambda file: np.savez_compressed(file, **arrays))

    def read_record(self, key: str) -> dict[str, Any] | None:
        """A record of plain values, such as an attack's end."""
        try:
            return json.loads((self._folder / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

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
