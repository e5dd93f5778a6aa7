"""Checkpoints of a run: state, data position and config together, written by Orbax.

    RUN/config.json               the resolved config
    RUN/tokenizer/                what `coin_jax.data.tokenizer.make_tokenizer` reads, as a path
    RUN/checkpoints/STEP/state    TrainState
    RUN/checkpoints/STEP/data     the data position, a few integers
    RUN/checkpoints/STEP/config   the config that the state was trained with
    RUN/checkpoints/STEP/metrics  of the evaluation at that step, if there was one
    RUN/checkpoints/STEP/unlogged sums of the metrics since the last record in metrics.jsonl
    RUN/checkpoints/STEP/manifest.json  size and hash of each file
    RUN/damaged/STEP              a checkpoint whose files are not as they were written

Where a run goes on from, in this order: the newest whole checkpoint of its own directory;
else
`model.init_from`; else random weights.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import logging
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from coin_jax.config import CheckpointConfig, Config, ConfigError
from coin_jax.config_files import from_json
from coin_jax.training.changes import decides_arrays, differences
from coin_jax.training.manifest import add_to_manifest, fault, write_manifest
from coin_jax.training.state import TrainState
from coin_jax.training.storage import flush_folder, remedy, why, write_whole
from coin_jax.untrusted import EXPANSION, EXPANSION_FROM, read_bytes

_UNFINISHED = ".orbax-checkpoint-tmp"  # Orbax's name for a folder that it has not finished
_REMOVED = ".removed"
OWED = "evaluation_owed"
"""Among the unlogged sums: the evaluation of this step was cut short."""


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
    """The checkpoints of one run directory. A context manager: leaving it waits for writes.

    A checkpoint gets its name when all of it and its manifest are on the disk. Opening looks for
    the newest one that is as it was written; damaged ones that are newer are moved to RUN/damaged.
    One is removed only when `keep_last` newer ones are whole.

    say: is told what people should know of, a line a call.
    Raises CheckpointError where there are checkpoints but none is whole, and OSError.
    """

    def __init__(
        self,
        run_directory: pathlib.Path,
        config: CheckpointConfig,
        say: Callable[[str], None] = print,
    ):
        self.directory = run_directory / "checkpoints"
        self._config, self._say = config, say
        self._is_primary = jax.process_index() == 0
        # Of those on disk, what this process has written or compared.
        self._whole: set[int] = set()
        self._damaged: set[int] = set()
        self.latest_step = self._open()
        """Of the newest checkpoint that is whole, or being written."""
        options = ocp.options.AsyncOptions(
            # Called on the first process, before the folder gets its name.
            post_finalization_callback=self._seal,
            # Orbax waits by the clock of the day, which may be set meanwhile. Alone there is nobody
            # to wait for.
            timeout_secs=1200 if jax.process_count() > 1 else 10**9,
            create_directories_asynchronously=False,
        )
        composite = ocp.CompositeOptions(async_options=options)
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(composite_options=composite), async_options=options
        )
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future | None = None
        self._quiet = contextlib.ExitStack()

    def _open(self) -> int | None:
        """Clears what a killed run left and returns the newest whole step, on every process."""
        newest, problem = None, ""
        if self._is_primary:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._remove_unfinished()
                newest = self._newest_whole()
            except CheckpointError as error:  # for every process to hear of
                problem = str(error)
        if jax.process_count() > 1:
            told = -2 if problem else -1 if newest is None else newest
            told = int(multihost_utils.broadcast_one_to_all(np.int32(told)))
            newest = None if told < 0 else told
            problem = problem or ("The first process found no whole checkpoint." * (told == -2))
        if problem:
            raise CheckpointError(problem)
        return newest

    def _newest_whole(self) -> int | None:
        damaged: dict[int, str] = {}
        for step in sorted(self._steps(), reverse=True):
            reason = fault(self.directory / str(step))
            if reason is None:
                self._whole.add(step)
                break
            damaged[step] = reason
        else:
            if damaged:
                raise CheckpointError(
                    f"No checkpoint in {self.directory} is whole:\n"
                    + "".join(f"  {step}: {reason}\n" for step, reason in damaged.items())
                    + "Put an intact copy of one there, or start anew with another --name."
                )
            return None
        for number, reason in damaged.items():
            place = self._set_aside(number)
            self._say(f"Checkpoint {number} is damaged: {reason}. It is in {place} now.")
        if damaged:
            self._say(f"The newest whole checkpoint is {step}.")
        return step

    def _set_aside(self, step: int) -> pathlib.Path:
        place, number = self.directory.parent / "damaged" / str(step), 1
        place.parent.mkdir(exist_ok=True)
        while place.exists():
            number += 1
            place = place.with_name(f"{step}-{number}")
        return (self.directory / str(step)).rename(place)

    def _steps(self) -> list[int]:
        return [int(path.name) for path in self.directory.iterdir() if path.name.isdecimal()]

    def _remove_unfinished(self) -> None:
        for path in (*self.directory.glob(f"*{_UNFINISHED}"), *self.directory.glob(f"*{_REMOVED}")):
            shutil.rmtree(path, ignore_errors=True)

    def saved_config(self) -> Config | None:
        """The config of the newest checkpoint; None where there is none."""
        if self.latest_step is None:
            return None
        return _saved_config(self.directory / str(self.latest_step))

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
        Raises CheckpointError if that metric is not among them, or the last write failed.
        """
        step = int(state.step)
        if step == self.latest_step:
            return
        self._check_measured(metrics)
        items = {
            "state": ocp.args.StandardSave(state),
            "data": ocp.args.JsonSave(dict(data_position)),
            "config": ocp.args.JsonSave(dataclasses.asdict(config)),
            "unlogged": ocp.args.JsonSave(dict(unlogged or {})),
        }
        if metrics:
            metrics = {name: float(value) for name, value in metrics.items()}
            items["metrics"] = ocp.args.JsonSave(metrics)
        self.wait()
        self._ensure_folder(step)
        self._writing, before, self.latest_step = step, self.latest_step, step
        try:
            self._checkpointer.save(
                (self.directory / str(step)).absolute(), args=ocp.args.Composite(**items)
            )
        except Exception as error:
            raise self._not_written(step, before, error) from error
        self._pending = self._thread.submit(self._finish, step, before)

    def _check_measured(self, metrics: Mapping[str, float] | None) -> None:
        wanted = self._config.best_metric if self._config.keep_best else None
        if wanted and metrics and wanted not in metrics:
            raise CheckpointError(
                f"checkpoint.best_metric = {wanted!r} is not measured; there is "
                + ", ".join(sorted(metrics))
            )

    def _ensure_folder(self, step: int) -> None:
        """Makes RUN/checkpoints anew where it was deleted; where all of RUN is gone, it raises."""
        if not self.directory.parent.is_dir():
            raise self._gone()
        if self._is_primary and not self.directory.is_dir():
            self._say(f"{self.directory} was deleted; it is made anew.")
            try:
                self.directory.mkdir(exist_ok=True)
            except OSError as error:
                raise self._not_written(step, None, error) from error

    def _seal(self) -> None:
        write_manifest(self.directory / f"{self._writing}{_UNFINISHED}")

    def _finish(self, step: int, before: int | None) -> None:
        """Waits until the checkpoint has its name, then removes those that it succeeds."""
        try:
            self._checkpointer.wait_until_finished()
            if self._is_primary:
                flush_folder(self.directory)
                self._whole.add(step)
                self._remove_old()
        except Exception as error:
            raise self._not_written(step, before, error) from error

    def _remove_old(self) -> None:
        """Removes what is older than `keep_last` whole ones, and not the best.

        What is damaged stays until it is too old: perhaps only the disk cannot be read just now.
        """
        newest_first = sorted(self._steps(), reverse=True)
        whole = (step for step in newest_first if self._is_whole(step))
        kept = list(itertools.islice(whole, self._config.keep_last))
        if len(kept) < self._config.keep_last:
            return
        best = self._best(newest_first) if self._config.keep_best else set()
        for step in newest_first:
            if step < kept[-1] and step not in best:
                # Out of the way first: a kill while its files go must not leave half of one.
                place = self.directory / f"{step}{_REMOVED}"
                (self.directory / str(step)).rename(place)
                shutil.rmtree(place, ignore_errors=True)

    def _best(self, newest_first: list[int]) -> set[int]:
        """The best step that is whole, the newest of equal ones; and any that would be better."""
        sign = 1 if self._config.best_is_highest else -1
        values = {step: self._metric(step) for step in newest_first}
        known = [step for step in newest_first if values[step] is not None]
        best: set[int] = set()
        for step in sorted(known, key=lambda step: -sign * values[step]):  # it is stable
            best.add(step)
            if self._is_whole(step):
                break
        return best

    def _is_whole(self, step: int) -> bool:
        """Reads the content of each checkpoint once; later only whether its files are there."""
        reason = fault(self.directory / str(step), read=step not in self._whole)
        if reason is None:
            self._whole.add(step)
        elif step not in self._damaged:
            self._damaged.add(step)
            self._say(f"Checkpoint {step} is damaged: {reason}. It does not count as one.")
        return reason is None

    def _metric(self, step: int) -> float | None:
        """`best_metric` of a checkpoint; infinitely bad where another one was measured then."""
        try:
            metrics = _read_item(self.directory / str(step), "metrics")
        except CheckpointError:
            return None
        unknown = -math.inf if self._config.best_is_highest else math.inf
        return metrics.get(self._config.best_metric, unknown)

    def _not_written(self, step: int, before: int | None, error: Exception) -> CheckpointError:
        if not self.directory.parent.is_dir():
            return self._gone()
        on = "no whole checkpoint is there"
        if before is not None and (self.directory / str(before)).is_dir():
            on = f"the same command then goes on from step {before}, whose checkpoint is whole"
        reason = why(error)
        return CheckpointError(
            f"The checkpoint of step {step} could not be written to {self.directory}: {reason}. "
            f"{remedy(reason)}; {on}."
        )

    def _gone(self) -> CheckpointError:
        return CheckpointError(
            f"{self.directory.parent} is gone: it was deleted or moved, or its disk is no longer "
            "there. Nothing can be saved. Bring it back, and the same command goes on from its "
            "newest checkpoint."
        )

    def restore(self, abstract_state: TrainState, config: Config) -> Restored:
        """The newest checkpoint.

        abstract_state: ShapeDtypeStructs with the shardings that the state is to have; the mesh may
        be another one than the state was written from.
        Raises CheckpointError where the architecture or the optimizer changed.
        """
        self.wait()
        step = self.latest_step
        if step is None:
            raise CheckpointError(f"There is no checkpoint in {self.directory}.")
        before = self.saved_config()
        changed = differences(before, config)
        if fatal := [line for line in changed if decides_arrays(line, before, config)]:
            raise CheckpointError(
                f"{self.directory}/{step} holds another model, tokenizer or optimizer than this "
                "config:\n  "
                + "\n  ".join(fatal)
                + "\nUse the old values, or another --name or --output for a new run."
            )
        folder = self.directory / str(step)
        # Read one by one, so that nothing depends on a file that the manifest does not cover.
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            try:
                state = checkpointer.restore(
                    (folder / "state").absolute(), args=ocp.args.StandardRestore(abstract_state)
                )
            except (OSError, ValueError) as error:  # one without a manifest, or a failing disk
                raise CheckpointError(
                    f"{folder}/state cannot be read: {why(error)}. Move {folder} away, and "
                    "the run goes on from the checkpoint before it."
                ) from error
        unlogged = _read_item(folder, "unlogged")
        if (folder / "metrics" / "metadata").is_file():
            unlogged.pop(OWED, None)  # it was made up for since
        return Restored(state, _read_item(folder, "data"), unlogged, changed)

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Gives the newest checkpoint, which was saved without, those of its evaluation.

        Raises CheckpointError as `save` does, and OSError.
        """
        self._check_measured(metrics)
        self.wait()
        folder = self.directory / str(self.latest_step)
        if self._is_primary and folder.is_dir():
            content = json.dumps({name: float(value) for name, value in metrics.items()})
            (folder / "metrics").mkdir(exist_ok=True)
            write_whole(folder / "metrics" / "metadata", content)
            add_to_manifest(folder, "metrics/metadata")
            self._remove_old()

    def check(self) -> None:
        """Raises CheckpointError if what was begun has failed by now."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Returns once all that was begun is on disk. Raises CheckpointError if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Checkpoints:
        self._quiet.enter_context(_quiet_orbax())
        return self

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        try:
            self.wait()
        except CheckpointError:
            if error is None:  # else the first cause is what people should read
                raise
        finally:
            self._thread.shutdown()
            with self._quiet, contextlib.suppress(Exception):  # it repeats what `wait` raised
                self._checkpointer.close()
            if self._is_primary and self.directory.is_dir():
                self._remove_unfinished()  # so that a full disk has room for a message


def _saved_config(folder: pathlib.Path) -> Config:
    """The config in a checkpoint. Raises CheckpointError."""
    try:
        return from_json(json.dumps(_read_item(folder, "config")), where=f"{folder}/config")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _read_item(folder: pathlib.Path, name: str) -> dict[str, Any]:
    """A JSON item of a checkpoint. Raises CheckpointError."""
    try:
        found = json.loads(read_bytes(folder / name / "metadata"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder}/{name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{folder}/{name} is not a JSON object.")
    return found


def load_parameters(path: str | pathlib.Path) -> tuple[Config, dict[str, Any]]:
    """(config, parameters as nested dicts of numpy arrays) of a run, for inference or export.

    path: a run directory (its newest checkpoint) or one `RUN/checkpoints/STEP` of it. Where the run
    keeps a moving average, that is what is returned. Raises CheckpointError.
    """
    path = pathlib.Path(path)
    folder = path
    if not (folder / "state").is_dir():
        steps = (path / "checkpoints").glob("*") if (path / "checkpoints").is_dir() else ()
        there = [step for step in steps if step.name.isdecimal()]
        if not there:
            raise CheckpointError(
                f"{path} is neither a run directory with checkpoints nor a checkpoint of one."
            )
        folder = max(there, key=lambda step: int(step.name))
    if reason := fault(folder):
        # Another one would give other numbers: that is for people to choose.
        raise CheckpointError(
            f"{folder} is damaged: {reason}. Name another checkpoint of the run, or go on training "
            "it: it starts from the newest whole one."
        )
    config = _saved_config(folder)
    try:
        with _quiet_orbax():
            return config, _parameters((folder / "state").absolute())
    except CheckpointError:
        raise
    except Exception as error:  # whatever Orbax and TensorStore make of files that are not theirs
        raise CheckpointError(f"{folder}/state cannot be read: {why(error)}") from error


def _parameters(folder: pathlib.Path) -> dict[str, Any]:
    """The average of the parameters, or themselves. Raises CheckpointError, and what Orbax does."""
    checkpointer = ocp.PyTreeCheckpointer()
    tree = checkpointer.metadata(folder).item_metadata.tree
    part = "ema" if tree.get("ema") else "params"
    claimed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if claimed > max(EXPANSION_FROM, EXPANSION * there):
        raise CheckpointError(
            f"{folder} says that it holds {claimed:,} bytes of arrays in files of {there:,}."
        )
    wanted = {part: jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree[part])}
    restored = checkpointer.restore(
        folder,
        args=ocp.args.PyTreeRestore(
            item=wanted,
            restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted),
            partial_restore=True,
        ),
    )
    return restored[part]


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Without its log: what it cannot do it raises as well, and that is told in fewer words."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
