"""Checkpoints of a run: state, data position and config together, written by Orbax.

    RUN/config.json               the resolved config
    RUN/tokenizer/                what `coin_jax.data.tokenizer.make_tokenizer` reads, as a path
    RUN/checkpoints/STEP/state    TrainState
    RUN/checkpoints/STEP/data     the data position, a few integers
    RUN/checkpoints/STEP/config   the config that the state was trained with
    RUN/checkpoints/STEP/metrics  of the evaluation at that step, if there was one
    RUN/checkpoints/STEP/unlogged sums of the metrics since the last record in metrics.jsonl

Where a run goes on from, in this order: the newest checkpoint of its own directory; else
`model.init_from`; else random weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from coin_jax.config import CheckpointConfig, Config, ConfigError
from coin_jax.config_files import from_json
from coin_jax.training.state import TrainState


class CheckpointError(RuntimeError):
    """A checkpoint that is not there, or does not fit what is to be restored from it."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds."""

    state: TrainState
    data_position: dict[str, int]
    unlogged: dict[str, float]
    changed: list[str]
    """`field: old -> new` of the fields that were other when it was written."""


class Checkpoints:
    """The checkpoints of one run directory. A context manager: leaving it waits for writes."""

    def __init__(self, run_directory: pathlib.Path, config: CheckpointConfig):
        keep = [preservation_policy.LatestN(config.keep_last)]
        # Of a checkpoint from before `best_metric` was set to what it is now.
        unknown = -math.inf if config.best_is_highest else math.inf
        if config.keep_best:
            keep.append(
                preservation_policy.BestN(
                    get_metric_fn=lambda metrics: metrics.get(config.best_metric, unknown),
                    # Orbax keeps the end of the ascending order; reversed, that is the smallest.
                    reverse=not config.best_is_highest,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._best_metric = config.best_metric if config.keep_best else None
        self._manager = ocp.CheckpointManager(
            (run_directory / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=True,
            ),
        )
        self.directory = run_directory / "checkpoints"

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def saved_config(self) -> Config | None:
        """The config of the newest checkpoint; None where there is none."""
        step = self.latest_step
        if step is None:
            return None
        saved = self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
        try:
            where = f"{self.directory}/{step}/config"
            return from_json(json.dumps(saved["config"]), where)
        except ConfigError as error:
            raise CheckpointError(str(error)) from error

    def save(
        self,
        state: TrainState,
        data_position: Mapping[str, int],
        config: Config,
        metrics: Mapping[str, float] | None = None,
        unlogged: Mapping[str, float] | None = None,
    ) -> None:
        """Begins to write `state`, which may be donated as soon as this returns.

        unlogged: sums that the loop goes on with, so that its next record is the same.
        metrics: of the evaluation at this step; with keep_best its `best_metric` decides.
        Raises CheckpointError if that metric is not among them.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if self._best_metric and metrics and self._best_metric not in metrics:
            raise CheckpointError(
                f"checkpoint.best_metric = {self._best_metric!r} is not measured; there is "
                + ", ".join(sorted(metrics))
            )
        items = {
            "state": ocp.args.StandardSave(state),
            "data": ocp.args.JsonSave(dict(data_position)),
            "config": ocp.args.JsonSave(dataclasses.asdict(config)),
            "unlogged": ocp.args.JsonSave(dict(unlogged or {})),
        }
        if metrics:
            metrics = {name: float(value) for name, value in metrics.items()}
            # Where Orbax looks when the run goes on; it writes this itself only for a `best_fn`,
            # and then complains about every checkpoint without metrics.
            items["metrics"] = ocp.args.JsonSave(metrics)
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics or None)

    def restore(self, abstract_state: TrainState, config: Config) -> Restored:
        """The newest checkpoint.

        abstract_state: ShapeDtypeStructs with the shardings that the state is to have; the mesh may
        be another one than the state was written from.
        Raises CheckpointError where the architecture or the optimizer changed.
        """
        step = self.latest_step
        if step is None:
            raise CheckpointError(f"There is no checkpoint in {self.directory}.")
        before = self.saved_config()
        changed = differences(before, config)
        if fatal := [line for line in changed if _decides_arrays(line, before, config)]:
            raise CheckpointError(
                f"{self.directory}/{step} holds another model, tokenizer or optimizer than this "
                "config:\n  "
                + "\n  ".join(fatal)
                + "\nUse the old values, or another --name or --output for a new run."
            )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract_state),
                data=ocp.args.JsonRestore(),
                unlogged=ocp.args.JsonRestore(),
            ),
        )
        return Restored(restored["state"], restored["data"], restored["unlogged"], changed)

    def wait(self) -> None:
        """Returns once all that was begun is on disk."""
        self._manager.wait_until_finished()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()


# Fields that decide which arrays a state holds, or what they mean. The others may change between
# two starts.
_SHAPING = (
    "tokenizer.",
    "model.vocabulary_size",
    "model.d_",
    "model.num_",
    "model.relative_attention_num_buckets",
    "model.relative_bias_every_layer",
    "model.feed_forward",
    "model.tie_word_embeddings",
    "model.scale_decoder_outputs",
    "optimizer.name",
)
# Of these it matters only whether they are 0.
_SWITCHES = ("ema_decay", "clip_norm", "weight_decay")


def _decides_arrays(line: str, before: Config, now: Config) -> bool:
    return line.startswith(_SHAPING) or any(
        line.startswith(f"optimizer.{name}:")
        and bool(getattr(before.optimizer, name)) != bool(getattr(now.optimizer, name))
        for name in _SWITCHES
    )


def differences(before: Config, now: Config) -> list[str]:
    """`field: old -> new`, for every field that differs."""
    lines = []
    for section in dataclasses.fields(Config):
        old, new = getattr(before, section.name), getattr(now, section.name)
        if dataclasses.is_dataclass(old):
            lines += [
                f"{section.name}.{field.name}: {getattr(old, field.name)!r} -> "
                f"{getattr(new, field.name)!r}"
                for field in dataclasses.fields(old)
                if getattr(old, field.name) != getattr(new, field.name)
            ]
        elif old != new:
            lines.append(f"{section.name}: {old!r} -> {new!r}")
    return lines


def load_parameters(path: str | pathlib.Path) -> tuple[Config, dict[str, Any]]:
    """(config, parameters as nested dicts of numpy arrays) of a run, for inference or export.

    path: a run directory (its newest checkpoint) or one `RUN/checkpoints/STEP` of it. Where the run
    keeps a moving average, that is what is returned. Raises CheckpointError.
    """
    path = pathlib.Path(path)
    folder = path
    if not (folder / "state").is_dir():
        steps = (path / "checkpoints").glob("*") if (path / "checkpoints").is_dir() else ()
        whole = [step for step in steps if step.name.isdigit() and (step / "state").is_dir()]
        if not whole:
            raise CheckpointError(
                f"{path} is neither a run directory with checkpoints nor a checkpoint of one."
            )
        folder = max(whole, key=lambda step: int(step.name))
    try:
        saved = json.loads((folder / "config" / "metadata").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}/config cannot be read: {error}") from error
    try:
        config = from_json(json.dumps(saved), where=f"{folder}/config")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    checkpointer = ocp.PyTreeCheckpointer()
    with _quiet_orbax():
        tree = checkpointer.metadata((folder / "state").absolute()).item_metadata.tree
    part = "ema" if tree.get("ema") else "params"
    wanted = {part: jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree[part])}
    restored = checkpointer.restore(
        (folder / "state").absolute(),
        args=ocp.args.PyTreeRestore(
            item=wanted,
            restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted),
            partial_restore=True,
        ),
    )
    return config, restored[part]


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Without its warning that one item of a checkpoint has no metadata of a whole checkpoint."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
