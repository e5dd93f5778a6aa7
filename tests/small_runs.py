"""Runs of the real training loop on a model and data of a few numbers, and ways to end them."""

import dataclasses
import os
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from coin_jax.config import CheckpointConfig, Config, EvaluationConfig, TrainingConfig
from coin_jax.training.checkpoint import Checkpoints
from coin_jax.training.logging import MetricLog
from coin_jax.training.loop import train
from coin_jax.training.manifest import NAME
from coin_jax.training.state import TrainState
from coin_jax.training.throughput import Throughput

CONFIG = Config(
    name="run",
    checkpoint=CheckpointConfig(every=2, keep_last=2),
    evaluation=EvaluationConfig(every=3),
    training=TrainingConfig(steps=8, log_every=3, tensorboard=False),
)


def with_checkpoint(**values):
    return dataclasses.replace(CONFIG, checkpoint=dataclasses.replace(CONFIG.checkpoint, **values))


def new_state(everywhere, size=64):
    start = {"weight": np.linspace(1, 2, size, dtype=np.float32)}
    made = TrainState(np.zeros((), np.int32), start, {"moment": np.zeros(size, np.float32)}, None)
    return jax.device_put(made, everywhere)


@jax.jit
def train_step(state, batch):
    """Its result depends on every batch and on their order."""
    gradient = state.params["weight"] * batch["x"].mean()
    moment = 0.9 * state.optimizer_state["moment"] + gradient
    weight = state.params["weight"] - 0.01 * moment
    loss = (weight**2).mean()
    zero = jnp.zeros(())
    metrics = {
        **{"loss": loss, "generation_loss": loss, "gradient_norm": jnp.abs(gradient).max()},
        **{"token_accuracy": zero, "learning_rate": zero + 0.01, "input_tokens": zero + 4},
        **{"target_tokens": zero, "model_flops": zero + 1},
    }
    return TrainState(state.step + 1, {"weight": weight}, {"moment": moment}, None), metrics


class Numbers:
    """Batch N is a function of N. `before` is called with N before it is handed out."""

    def __init__(self, position, before=lambda number: None):
        self._position, self._before = dict(position or {"number": 0}), before

    def __next__(self):
        number = self._position["number"] + 1
        self._before(number)
        self._position["number"] = number
        return {"x": np.full(4, np.sin(number), np.float32)}

    def state(self):
        return dict(self._position)


class Job:
    """What coin_jax.train does around the loop. What it said is in `said`."""

    def __init__(self, output, everywhere, config=CONFIG):
        self.config = dataclasses.replace(config, output=str(output))
        self.directory = self.config.run_directory
        self._everywhere, self.said = everywhere, []

    def __call__(self, before=lambda number: None, evaluate=None, step=train_step):
        self.directory.mkdir(parents=True, exist_ok=True)
        state, position, sums = new_state(self._everywhere), None, None
        with Checkpoints(self.directory, self.config.checkpoint, self.said.append) as checkpoints:
            self.wait_for_saves = checkpoints.wait
            if checkpoints.latest_step is not None:
                described = jax.tree.map(
                    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
                )
                restored = checkpoints.restore(described, self.config)
                state, position = restored.state, restored.data_position
                sums = restored.unlogged
            place = lambda batch: jax.device_put(batch, self._everywhere)  # noqa: E731
            measure = evaluate or (lambda params: {"mean": float(params["weight"].mean())})
            with (
                (self.directory / "printed").open("w") as printed,
                MetricLog(self.directory, self.config, int(state.step)) as log,
            ):
                return train(
                    self.config,
                    state,
                    step,
                    Numbers(position, before),
                    place,
                    measure,
                    checkpoints,
                    log,
                    Throughput(1.0),
                    Console(file=printed, width=200),
                    sums,
                )

    @property
    def printed(self):
        return (self.directory / "printed").read_text()

    def steps(self):
        """Of the checkpoints that have their name; any other file is a checkpoint being written."""
        names = [path.name for path in (self.directory / "checkpoints").iterdir()]
        return sorted(int(name) for name in names if name.isdigit())

    def items(self, step=8):
        folder = self.directory / "checkpoints" / str(step)
        return [(folder / n / "metadata").read_text() for n in ("data", "unlogged")]


class KilledError(BaseException):
    """As if the process ended here: nothing in the loop catches it."""


def kill_at(number):
    def before(n):
        if n == number:
            raise KilledError

    return before


def send_soon(number):
    threading.Timer(0.2, os.kill, (os.getpid(), number)).start()


def hang():
    """Does not return for longer than any test waits; signals are answered meanwhile."""
    for _ in range(2000):
        time.sleep(0.1)


def broken_at(number, where):
    """A train step whose `where` is not finite at step `number`."""

    @jax.jit
    def step(state, batch):
        state, metrics = train_step(state, batch)
        bad = jnp.where(state.step == number, jnp.nan, 1.0)
        if where == "parameters":
            return dataclasses.replace(
                state, params={"weight": state.params["weight"] * bad}
            ), metrics
        return state, metrics | {where: metrics[where] * bad}

    return step


# Each of these damages a checkpoint and returns how the report of it begins.


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut(folder):
    path = largest(folder / "state")
    path.write_bytes(path.read_bytes()[:-7])
    return r"state/\S+ has [\d,]+ of [\d,]+ bytes"


def flip(folder):
    path = largest(folder / "state")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    return r"the content of state/\S+ is not what was written"


def remove(folder):
    (folder / "data" / "metadata").unlink()
    return "data/metadata is missing"


def garble_manifest(folder):
    (folder / NAME).write_bytes(b"\xff\x00{")
    return "manifest.json is not one"


def empty_manifest(folder):
    (folder / NAME).write_text('{"sha256": {"state/x": 3}}')
    return "manifest.json is not one"


def remove_state(folder):
    shutil.rmtree(folder / "state")
    return r"state/\S+ is missing"
