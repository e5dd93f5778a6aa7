"""Checkpoints: what they keep, what they restore, and what they refuse by name."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coin_jax.config import (
    CheckpointConfig,
    Config,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TokenizerConfig,
)
from coin_jax.model.t5 import T5
from coin_jax.parallel.mesh import make_mesh
from coin_jax.train import described_state
from coin_jax.training.checkpoint import (
    CheckpointError,
    Checkpoints,
    differences,
    load_parameters,
)
from coin_jax.training.optimizer import make_optimizer
from coin_jax.training.state import create_state, state_shardings

CONFIG = Config(
    seed=3,
    model=ModelConfig(
        vocabulary_size=64,
        d_model=16,
        d_kv=4,
        d_ff=32,
        num_heads=4,
        num_layers=1,
        num_decoder_layers=1,
    ),
    tokenizer=TokenizerConfig(kind="bytes"),
    optimizer=OptimizerConfig(ema_decay=0.9),
)
POSITION = {"seed": 3, "sets": 100, "shards": 1, "position_0": 17, "taken_0": 5}


def change(config, part, **values):
    return dataclasses.replace(
        config, **{part: dataclasses.replace(getattr(config, part), **values)}
    )


def parts(config, mesh):
    model = T5(config.model)
    return model, make_optimizer(config.optimizer, 10, model.logical_axes()), config, mesh


@pytest.fixture(scope="module")
def one():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def state(one):
    """A state whose every array differs from every other and from zero."""
    made = create_state(*parts(CONFIG, one))
    leaves, tree = jax.tree.flatten(made)
    random = np.random.default_rng(0)
    filled = [
        jax.device_put(np.asarray(random.standard_normal(leaf.shape), leaf.dtype), leaf.sharding)
        if leaf.dtype == jnp.float32
        else leaf
        for leaf in leaves
    ]
    return jax.tree.unflatten(tree, filled)


def at(state, step):
    return dataclasses.replace(state, step=jnp.full_like(state.step, step))


def assert_same(left, right):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), left, right
    )


def steps_on_disk(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_state_data_position_sums_and_config_come_back(tmp_path, state, one):
    sums = {"steps": 2, "loss": 0.1 + 0.2, "tiny": 1e-300}
    with Checkpoints(tmp_path, CONFIG.checkpoint) as checkpoints:
        assert checkpoints.latest_step is None
        assert checkpoints.saved_config() is None
        checkpoints.save(at(state, 4), POSITION, CONFIG, unlogged=sums)
    with Checkpoints(tmp_path, CONFIG.checkpoint) as checkpoints:
        assert checkpoints.latest_step == 4
        assert checkpoints.saved_config() == CONFIG
        restored = checkpoints.restore(described_state(*parts(CONFIG, one)), CONFIG)
    assert_same(restored.state, at(state, 4))
    assert restored.data_position == POSITION
    assert restored.unlogged == sums
    assert restored.changed == []


def test_saving_does_not_wait_and_the_saved_state_may_be_donated(tmp_path, state, one):
    """What is on disk is the state at the call, whatever happens to its buffers afterwards."""
    double = jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)
    mine = jax.tree.map(jnp.copy, at(state, 2))
    expected = jax.tree.map(np.asarray, mine)
    with Checkpoints(tmp_path, CONFIG.checkpoint) as checkpoints:
        checkpoints.save(mine, POSITION, CONFIG)
        double(mine)
        checkpoints.wait()
        restored = checkpoints.restore(described_state(*parts(CONFIG, one)), CONFIG)
    assert_same(restored.state, expected)


def test_an_unfinished_checkpoint_is_not_taken_for_one(tmp_path, state):
    with Checkpoints(tmp_path, CONFIG.checkpoint) as checkpoints:
        checkpoints.save(at(state, 1), POSITION, CONFIG)
    # As a killed write leaves it: Orbax renames a folder when all of it is there.
    left = tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp-123"
    (left / "state").mkdir(parents=True)
    with Checkpoints(tmp_path, CONFIG.checkpoint) as checkpoints:
        assert checkpoints.latest_step == 1
    assert load_parameters(tmp_path)[0] == CONFIG


def test_the_last_ones_are_kept(tmp_path, state):
    with Checkpoints(tmp_path, CheckpointConfig(keep_last=2)) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(at(state, step), POSITION, CONFIG)
    assert steps_on_disk(tmp_path) == [3, 4]


@pytest.mark.parametrize(("highest", "kept"), [(True, [2, 5]), (False, [3, 5])])
def test_the_best_one_is_kept_beside_the_last(tmp_path, state, highest, kept):
    values = {1: 0.5, 2: 0.9, 3: 0.1, 4: 0.4}
    config = CheckpointConfig(
        keep_last=1, keep_best=True, best_metric="evaluation/x", best_is_highest=highest
    )
    for starts in ((1, 2, 3), (4,), (5,)):  # in three runs: what is best is known from the disk
        with Checkpoints(tmp_path, config) as checkpoints:
            for step in starts:
                # The last one is a stop between evaluations.
                metrics = {"evaluation/x": values[step]} if step in values else None
                checkpoints.save(at(state, step), POSITION, CONFIG, metrics)
    assert steps_on_disk(tmp_path) == kept


def test_a_best_metric_that_is_not_measured_is_refused_with_those_that_are(tmp_path, state):
    config = CheckpointConfig(keep_best=True, best_metric="evaluation/unseen/men")
    with (
        Checkpoints(tmp_path, config) as checkpoints,
        pytest.raises(CheckpointError, match=r"'evaluation/unseen/men'.*evaluation/unseen/mean"),
    ):
        checkpoints.save(at(state, 1), POSITION, CONFIG, {"evaluation/unseen/mean": 0.5})


def test_a_state_is_restored_onto_another_mesh(tmp_path, state):
    with Checkpoints(tmp_path, CONFIG.checkpoint) as checkpoints:
        checkpoints.save(at(state, 4), POSITION, CONFIG)
        for shape in (MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=1, fsdp=8, tensor=1)):
            there = parts(CONFIG, make_mesh(shape))
            restored = checkpoints.restore(described_state(*there), CONFIG)
            assert_same(restored.state, at(state, 4))
            shardings = state_shardings(*there)
            assert jax.tree.map(lambda x: x.sharding, restored.state) == shardings
            pieces = {
                len({str(shard.index) for shard in leaf.addressable_shards})
                for leaf in jax.tree.leaves(restored.state.params)
            }
            assert max(pieces) >= 4  # it is really cut


REFUSED = [
    ("model", {"d_model": 32}, "model.d_model: 16 -> 32"),
    ("model", {"num_layers": 2}, "model.num_layers: 1 -> 2"),
    ("model", {"vocabulary_size": 72}, "model.vocabulary_size: 64 -> 72"),
    ("model", {"feed_forward": "relu"}, "model.feed_forward: 'gated-gelu' -> 'relu'"),
    ("model", {"tie_word_embeddings": True}, "model.tie_word_embeddings: False -> True"),
    ("optimizer", {"name": "adafactor"}, "optimizer.name: 'adamw' -> 'adafactor'"),
    ("optimizer", {"ema_decay": 0.0}, "optimizer.ema_decay: 0.9 -> 0.0"),
    ("optimizer", {"clip_norm": 0.0}, "optimizer.clip_norm: 1.0 -> 0.0"),
    ("optimizer", {"weight_decay": 0.1}, "optimizer.weight_decay: 0.0 -> 0.1"),
    ("tokenizer", {"kind": "sentencepiece"}, "tokenizer.kind: 'bytes' -> 'sentencepiece'"),
]


@pytest.fixture(scope="module")
def saved_folder(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, CONFIG.checkpoint) as checkpoints:
        checkpoints.save(at(state, 4), POSITION, CONFIG)
    return folder


@pytest.mark.parametrize(("part", "values", "line"), REFUSED)
def test_what_does_not_fit_is_refused_by_name(saved_folder, one, part, values, line):
    other = change(CONFIG, part, **values)
    with (
        Checkpoints(saved_folder, CONFIG.checkpoint) as checkpoints,
        pytest.raises(CheckpointError) as caught,
    ):
        checkpoints.restore(described_state(*parts(other, one)), other)
    assert line in str(caught.value)
    assert "another --name or --output" in str(caught.value)


def test_what_may_change_is_reported(saved_folder, one):
    other = change(CONFIG, "optimizer", learning_rate=0.5, ema_decay=0.8)
    other = dataclasses.replace(change(other, "mesh", fsdp=2), name="other")
    with Checkpoints(saved_folder, CONFIG.checkpoint) as checkpoints:
        restored = checkpoints.restore(described_state(*parts(other, one)), other)
    assert restored.changed == [
        "name: 'coin' -> 'other'",
        "optimizer.learning_rate: 0.001 -> 0.5",
        "optimizer.ema_decay: 0.9 -> 0.8",
        "mesh.fsdp: 1 -> 2",
    ]
    assert differences(CONFIG, CONFIG) == []


def test_nothing_to_restore_is_an_error_that_names_the_folder(tmp_path, one):
    with (
        Checkpoints(tmp_path, CONFIG.checkpoint) as checkpoints,
        pytest.raises(CheckpointError, match=f"no checkpoint in {tmp_path}"),
    ):
        checkpoints.restore(described_state(*parts(CONFIG, one)), CONFIG)


def test_parameters_are_the_moving_average_where_there_is_one(saved_folder, state, tmp_path):
    for path in (saved_folder, saved_folder / "checkpoints" / "4"):
        config, params = load_parameters(path)
        assert config == CONFIG
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
        assert_same(params, state.ema)
    without = dataclasses.replace(at(state, 9), ema=None)
    with Checkpoints(tmp_path, CONFIG.checkpoint) as checkpoints:
        checkpoints.save(without, POSITION, change(CONFIG, "optimizer", ema_decay=0.0))
    assert_same(load_parameters(tmp_path)[1], state.params)


def test_parameters_come_from_the_newest_checkpoint(tmp_path, state):
    with Checkpoints(tmp_path, CONFIG.checkpoint) as checkpoints:
        checkpoints.save(at(state, 9), POSITION, CONFIG)
        newer = dataclasses.replace(at(state, 10), ema=jax.tree.map(lambda x: x + 1, state.ema))
        checkpoints.save(newer, POSITION, CONFIG)
    assert_same(load_parameters(tmp_path)[1], newer.ema)


def test_a_folder_without_a_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=f"{tmp_path} is neither a run directory"):
        load_parameters(tmp_path)
    with pytest.raises(CheckpointError, match="neither"):
        load_parameters(tmp_path / "nowhere")


def test_a_checkpoint_of_another_version_names_the_field_it_does_not_know(tmp_path, state):
    with Checkpoints(tmp_path, CONFIG.checkpoint) as checkpoints:
        checkpoints.save(at(state, 1), POSITION, CONFIG)
    file = tmp_path / "checkpoints" / "1" / "config" / "metadata"
    tree = json.loads(file.read_text())
    tree["model"]["num_experts"] = 8
    file.write_text(json.dumps(tree))
    (tmp_path / "checkpoints" / "1" / "manifest.json").unlink()  # it knows the old file
    with pytest.raises(CheckpointError, match=r"unknown field 'model\.num_experts'"):
        load_parameters(tmp_path)
    with (
        Checkpoints(tmp_path, CONFIG.checkpoint) as checkpoints,
        pytest.raises(CheckpointError, match=r"unknown field 'model\.num_experts'"),
    ):
        checkpoints.saved_config()
