"""Tiny runs of the main job: their config, how to stop them, what they left."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental.compilation_cache import compilation_cache

from coin_jax import train
from coin_jax.training.logging import read_metrics

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = """
from coin_jax.config import *

def get_config(arg=""):
    return Config(
        name="run",
        model=ModelConfig(
            vocabulary_size=384, d_model=16, d_kv=4, d_ff=32, num_heads=4, num_layers=1,
            num_decoder_layers=1, dropout_rate=0.1,
        ),
        tokenizer=TokenizerConfig(kind="bytes"),
        data=DataConfig(source="builtin", builtin_rows=64),
        batch=BatchConfig(rows=4, encoder_length=224, decoder_length=20, segments_per_row=2),
        optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=2, ema_decay=0.9),
        evaluation=EvaluationConfig(every=5, instances_per_task=1),
        checkpoint=CheckpointConfig(every=4),
        training=TrainingConfig(steps=8, log_every=3, tensorboard=False),
    )
"""
# Some time for each step, so that signals arrive between two of them.
SLOW = """
import time
from coin_jax.data.pipeline import BatchPipeline

next_batch = BatchPipeline.__next__
BatchPipeline.__next__ = lambda self: (time.sleep(0.3), next_batch(self))[1]
"""


@contextlib.contextmanager
def compiled_once(folder):
    """The runs within share what XLA compiled."""
    names = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def at_step(monkeypatch, number, action):
    """Makes the train step call `action` when it has computed step `number` of the run."""
    make = train.make_train_step

    def wrapped_make(*parts):
        step = make(*parts)

        def wrapped(state, batch):
            here = int(state.step) + 1
            result = step(state, batch)
            if here == number:
                action()
            return result

        return wrapped

    monkeypatch.setattr(train, "make_train_step", wrapped_make)


def checkpoint(directory, step):
    """All arrays of a checkpoint and its data position."""
    folder = directory / "checkpoints" / str(step)
    state = ocp.PyTreeCheckpointer().restore((folder / "state").absolute())
    arrays = jax.tree_util.tree_leaves_with_path(state)
    return (
        {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in arrays},
        json.loads((folder / "data" / "metadata").read_text()),
    )


def records(directory):
    """metrics.jsonl without what depends on the clock."""
    return [
        {
            name: value
            for name, value in record.items()
            if not name.endswith(("_per_second", "utilization"))
        }
        for record in read_metrics(directory / "metrics.jsonl")
    ]


def steps_on_disk(directory):
    return sorted(int(path.name) for path in (directory / "checkpoints").iterdir())


def assert_same_run(directory, other, step=8):
    arrays, position = checkpoint(directory, step)
    expected, expected_position = checkpoint(other, step)
    assert arrays.keys() == expected.keys()
    different = [name for name in arrays if not np.array_equal(arrays[name], expected[name])]
    assert not different
    assert any("optimizer_state" in name for name in arrays)
    assert position == expected_position
    assert records(directory) == records(other)


def process(config_file, output, *options):
    """The main job as a user starts it: a process of its own, with one device."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiles in half the time
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "coin_jax.train", "--config", str(config_file)]
    return subprocess.Popen(
        [*command, "--output", str(output), *map(str, options)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
