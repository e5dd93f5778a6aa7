"""Where a run's numbers go: JSONL always, TensorBoard and Weights & Biases where asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from coin_jax.config import Config, ConfigError
from coin_jax.training.storage import write_whole
from coin_jax.untrusted import public


def check_writers(config: Config) -> None:
    """Raises ConfigError where a run would log to what is not installed."""
    if config.training.wandb_project and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"training.wandb_project = {config.training.wandb_project!r}: Weights & Biases is not "
            "installed; pip install wandb, or leave the field empty"
        )


class MetricLog:
    """Writes records of metrics. A context manager.

    RUN/metrics.jsonl has a line a record: {"step": .., name: value, ..}. A run that goes on from
    step N drops the lines after N first: they will be written again.

    Raises OSError, with the file's name, where the folder cannot be written or is full.
    """

    def __init__(self, run_directory: pathlib.Path, config: Config, start_step: int):
        self.path = run_directory / "metrics.jsonl"
        kept = [record for record in read_metrics(self.path) if record["step"] <= start_step]
        write_whole(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = self.path.open("a")
        self._tensorboard = self._wandb = None
        if config.training.tensorboard:
            self._tensorboard = _tensorboard_writer(run_directory / "tensorboard", start_step)
        if config.training.wandb_project:
            self._wandb = _wandb_run(run_directory, config)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        try:
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()
        except OSError as error:  # a full disk, which does not know whose write it refused
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        if self._tensorboard is not None:
            import tensorflow

            with self._tensorboard.as_default(step):
                for name, value in metrics.items():
                    tensorflow.summary.scalar(name, value)
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)

    def flush(self) -> None:
        """Has all records on the disk, so that they outlive a power cut."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the rest of a write that has already been refused
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; what a crash left of a line is skipped."""
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return [
        {name: value for name, value in record.items() if isinstance(value, int | float)}
        for record in records
        if isinstance(record, dict) and isinstance(record.get("step"), int)
    ]


def _tensorboard_writer(folder: pathlib.Path, start_step: int) -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow

    # After a crash TensorBoard shows the steps since the last checkpoint twice; it cannot forget.
    return tensorflow.summary.create_file_writer(str(folder), filename_suffix=f".{start_step}")


def _wandb_run(run_directory: pathlib.Path, config: Config) -> Any:
    import wandb

    return wandb.init(
        project=config.training.wandb_project,
        name=config.name,
        dir=str(run_directory),
        config=public(dataclasses.asdict(config)),
        resume="allow",
    )
