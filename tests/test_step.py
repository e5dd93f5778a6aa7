"""The train step: one program, the same numbers on every mesh and in every number of parts."""

import collections
import dataclasses
import functools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from coin_jax.config import (
    BatchConfig,
    Config,
    ConfigError,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainingConfig,
)
from coin_jax.model.t5 import T5
from coin_jax.objective import make_method
from coin_jax.parallel.mesh import make_mesh
from coin_jax.parallel.sharding import PAIR_FIELDS, ROW_FIELDS
from coin_jax.training.flops import model_flops
from coin_jax.training.optimizer import make_optimizer
from coin_jax.training.state import create_state
from coin_jax.training.step import (
    make_loss_and_gradient,
    make_loss_step,
    make_train_step,
)

MODEL = ModelConfig(
    vocabulary_size=64,
    d_model=16,
    d_kv=4,
    d_ff=32,
    num_heads=8,
    num_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.0,
    scan_unroll=1,
)
CONFIG = Config(
    model=MODEL,
    batch=BatchConfig(rows=16, encoder_length=24, decoder_length=12, segments_per_row=4),
    objective=ObjectiveConfig(negatives="batch", head_chunk=8),
    # The epsilon keeps the update from turning around with the last digit of a tiny gradient.
    optimizer=OptimizerConfig(
        learning_rate=0.02, schedule="constant", weight_decay=0.01, epsilon=0.01
    ),
    training=TrainingConfig(steps=10),
)


def change(config=CONFIG, **parts):
    """The config with fields of its parts replaced: change(optimizer={"clip_norm": 0})."""
    changed = {
        part: dataclasses.replace(getattr(config, part), **fields) for part, fields in parts.items()
    }
    return dataclasses.replace(config, **changed)


def packed_batch(config=CONFIG, seed=0):
    """Sequences of random lengths in random slots; every fifth slot empty; sets of two pairs."""
    random = np.random.default_rng(seed)
    rows, segments = config.batch.rows, config.batch.segments_per_row
    length = {"encoder": config.batch.encoder_length, "decoder": config.batch.decoder_length}
    batch = {name: np.zeros((rows, length[name[:7]]), np.int32) for name in ROW_FIELDS}
    slots = []
    for row in range(rows):
        held = int(random.integers(segments - 1, segments + 1))
        starts = {"encoder": 0, "decoder": 0}
        for segment in range(1, held + 1):
            slots.append(row * segments + segment - 1)
            for side in starts:
                most = length[side] // segments
                size = int(random.integers(most // 2, most + 1))
                place = slice(starts[side], starts[side] + size)
                starts[side] += size
                tokens = random.integers(2, config.model.vocabulary_size, size)
                batch[f"{side}_segment_ids"][row, place] = segment
                if side == "encoder":
                    batch["encoder_tokens"][row, place] = tokens
                else:
                    tokens[-1] = 1
                    batch["decoder_targets"][row, place] = tokens
                    batch["decoder_inputs"][row, place] = [0, *tokens[:-1]]
    random.shuffle(slots)
    count = len(slots) // 4 * 2
    capacity = rows * segments // 2
    batch |= {name: np.full(capacity, -1, np.int32) for name in PAIR_FIELDS[1:]}
    batch["pair_members"] = np.full((capacity, 2), -1, np.int32)
    batch["pair_members"][:count] = np.reshape(slots[: 2 * count], (count, 2))
    batch["pair_sets"][:count] = np.arange(count) // 2
    batch["pair_contents"][:count] = np.arange(count) + 100
    for slot in slots[2 * count :]:  # in no pair: as if it were not there
        row, segment = divmod(slot, segments)
        for side, names in (("encoder", ROW_FIELDS[:2]), ("decoder", ROW_FIELDS[2:])):
            gone = batch[f"{side}_segment_ids"][row] == segment + 1
            for name in names:
                batch[name][row, gone] = 0
    return batch


ONE = (1, 1, 1)
CUBE = (2, 2, 2)
QUICK = {"xla_backend_optimization_level": 0}
"""LLVM's optimizations cost more time here than they save."""

Program = collections.namedtuple("Program", "step new_state text memory")


@functools.cache
def start(model_config):
    """Parameters drawn once for all meshes, on the host."""
    return jax.device_get(T5(model_config).init(jax.random.key(0)))


@functools.cache
def program(config, shape=ONE):
    """The compiled step of a config on a mesh."""
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: np.prod(shape)])
    model, method = T5(config.model), make_method(config.objective)
    optimizer = make_optimizer(config.optimizer, config.training.steps, model.logical_axes())

    def new_state():
        return create_state(model, optimizer, config, mesh, params=start(config.model))

    step = make_train_step(model, method, optimizer, config, mesh)
    compiled = step.lower(new_state(), packed_batch(config)).compile(compiler_options=QUICK)
    return Program(compiled, new_state, compiled.as_text(), compiled.memory_analysis())


def train(config, shape=ONE, steps=3, batches=packed_batch):
    """The state after some steps from the common start, and the metrics of each."""
    step, new_state, *_ = program(config, shape)
    state, history = new_state(), []
    for number in range(steps):
        state, metrics = step(state, batches(config, number))
        history.append(jax.device_get(metrics))
    return state, history


def losses(history):
    names = ("loss", "generation_loss", "gradient_norm", "token_loss", "target_tokens")
    return np.array([[metrics[name] for name in names] for metrics in history])


HARD = change(objective={"negatives": "hard"})


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (CONFIG, (8, 1, 1)),
        (CONFIG, (1, 8, 1)),
        (CONFIG, (1, 1, 8)),
        (CONFIG, (4, 2, 1)),
        (CONFIG, (2, 1, 4)),
        (CONFIG, CUBE),
        (HARD, CUBE),
    ],
    ids=lambda value: (
        "x".join(map(str, value)) if isinstance(value, tuple) else value.objective.negatives
    ),
)
def test_every_mesh_gives_the_losses_of_one_device(config, shape):
    _, alone = train(config)
    _, spread = train(config, shape)
    np.testing.assert_allclose(losses(spread), losses(alone), rtol=1e-5)
    contrastive = [[metrics["contrastive_loss"] for metrics in run] for run in (alone, spread)]
    np.testing.assert_allclose(*contrastive, rtol=1e-5)


def test_parameters_and_moments_stay_in_pieces_after_a_step():
    """On 2 x 2 x 2 the moments take a quarter of their memory on each device, norms and biases
    aside; so do parameters."""
    state, _ = train(CONFIG, CUBE, steps=1)
    adam = state.optimizer_state[1]
    for tree in (state.params, adam.mu, adam.nu):
        for path, names, piece in (
            (("embedding",), "[V, D]", (32, 8)),
            (("encoder", "layers", "feed_forward", "wi"), "[L, D, F]", (2, 8, 16)),
            (
                ("decoder", "layers", "cross_attention", "attention", "out"),
                "[L, N*H, D]",
                (2, 16, 8),
            ),
        ):
            array = functools.reduce(lambda node, key: node[key], path, tree)
            assert {shard.data.shape for shard in array.addressable_shards} == {piece}, (
                path,
                names,
            )
    everything = sum(x.nbytes for x in jax.tree.leaves(state))
    first = jax.devices()[0]
    held = sum(
        shard.data.nbytes
        for x in jax.tree.leaves(state)
        for shard in x.addressable_shards
        if shard.device == first
    )
    assert held < 0.3 * everything


def collectives(text):
    """How often each kind of communication stands in a compiled program."""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    return collections.Counter(re.findall(rf" ({kinds})(?:-start)?\(", text))


def test_the_contrastive_term_costs_one_gather_of_pooled_states():
    """Of the whole program's communication on 2 x 2 x 2, what pooling and the term add."""
    with_term = collectives(program(CONFIG, CUBE).text)
    without = collectives(program(change(objective={"method": "cross_entropy"}), CUBE).text)
    added = with_term - without
    assert added["all-gather"] <= 1
    assert added["all-reduce"] <= 2
    assert set(added) <= {"all-gather", "all-reduce"}
    assert with_term["all-to-all"] == 0


ENCODER_MEAN = change(objective={"pooling": "encoder_mean"})
PLAIN = change(objective={"method": "cross_entropy", "label_smoothing": 0.1, "z_loss": 1e-3})


@pytest.mark.parametrize(
    ("config", "steps", "shape"),
    [
        (ENCODER_MEAN, 2, ONE),
        (ENCODER_MEAN, 4, ONE),
        (CONFIG, 2, CUBE),
        (PLAIN, 4, ONE),
    ],
    ids=["coin-2", "coin-4", "coin-2-on-a-mesh", "plain-4"],
)
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(config, steps, shape):
    state, whole = train(config)
    parts_state, parts = train(change(config, optimizer={"accumulation_steps": steps}), shape)
    tolerance = 1e-6 if shape == ONE else 1e-5
    np.testing.assert_allclose(losses(parts), losses(whole), rtol=tolerance)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=tolerance),
        parts_state.params,
        state.params,
    )


def test_dropout_is_the_same_in_both_passes_of_a_part():
    """The gradient of a batch in parts is the slope of the very loss it came with."""
    config = change(
        model={"dropout_rate": 0.3},
        optimizer={"accumulation_steps": 2},
        objective={"contrastive_weight": 0.1},  # below the cap's bend the factor is a constant
    )
    compute = make_loss_and_gradient(T5(config.model), make_method(config.objective), config)
    compute = jax.jit(compute, compiler_options=QUICK)
    params, batch = start(MODEL), packed_batch(config)
    key = jax.random.key(3, impl="rbg")
    _, gradient = compute(params, batch, key)
    length = float(optax.global_norm(gradient))
    ends = [
        jax.tree.map(lambda p, g, sign=sign: p + sign * 1e-3 * g / length, params, gradient)
        for sign in (-1, 1)
    ]
    (before, _), (after, _) = (compute(end, batch, key)[0] for end in ends)
    assert (after - before) / 2e-3 == pytest.approx(length, rel=1e-2)


def naive_parts(logits_BxTxV, hidden_BxTxD, batch, temperature, np=np):
    """(L_gen, L_ctr) as design.md defines them for negatives = "batch" and pairs that all differ.

    Every logit at once, and no code of the objective's; in the dtype of its arguments.
    """
    ids_BxT = batch["decoder_segment_ids"]
    highest = logits_BxTxV.max(-1, keepdims=True)
    log_z_BxTx1 = highest + np.log(np.exp(logits_BxTxV - highest).sum(-1, keepdims=True))
    targets_BxTx1 = batch["decoder_targets"][..., None]
    nll_BxT = (log_z_BxTx1 - np.take_along_axis(logits_BxTxV, targets_BxTx1, -1))[..., 0]
    generation, states = 0, []
    for side in batch["pair_members"][batch["pair_sets"] >= 0].T:
        tokens, last = [], []
        for row, index in zip(*divmod(side, CONFIG.batch.segments_per_row), strict=True):
            places = (ids_BxT[row] == index + 1).nonzero()[0]
            tokens += [(row, place) for place in places]
            last.append((row, places[-1]))
        generation += nll_BxT[tuple(zip(*tokens, strict=True))].mean()
        vectors_PxD = hidden_BxTxD[tuple(zip(*last, strict=True))]
        states.append(vectors_PxD / np.sqrt((vectors_PxD**2).sum(-1, keepdims=True)))
    scores_PxP = states[0] @ states[1].T / temperature
    sums = (np.log(np.exp(scores_PxP).sum(axis)) for axis in (0, 1))
    return generation, (sum(sums) / 2 - np.diagonal(scores_PxP)).mean()


def test_one_step_is_the_definition_worked_out_in_float64():
    """Losses from the model's logits in numpy; then AdamW in numpy on the naive loss's gradient."""
    batch, params, model = packed_batch(), start(MODEL), T5(MODEL)
    state, (metrics,) = train(CONFIG, steps=1)

    def outputs(params):
        encoded = model.encode(params, batch["encoder_tokens"], batch["encoder_segment_ids"])
        inputs = batch["decoder_inputs"], batch["decoder_segment_ids"]
        hidden = model.decode(params, *inputs, encoded, batch["encoder_segment_ids"])
        return model.logits(params, hidden), hidden

    def total(params):
        generation, contrastive = naive_parts(*outputs(params), batch, 0.05, np=jnp)
        return generation + jax.lax.stop_gradient(generation / contrastive) * contrastive

    wide = [np.asarray(x, np.float64) for x in outputs(params)]
    generation, contrastive = naive_parts(*wide, batch, 0.05)
    assert metrics["generation_loss"] == pytest.approx(generation, rel=1e-5)
    assert metrics["contrastive_loss"] == pytest.approx(contrastive, rel=1e-5)
    assert metrics["loss"] == pytest.approx(2 * generation, rel=1e-5)

    gradient = jax.jit(jax.grad(total), compiler_options=QUICK)(params)
    norm = np.sqrt(sum((np.float64(g) ** 2).sum() for g in jax.tree.leaves(gradient)))
    assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    assert norm > 1  # so it is clipped

    def adamw(path, old, gradient, new):
        name = jax.tree_util.keystr(path)
        old, g = np.float64(old), np.float64(gradient) / norm
        decay = 0.0 if "norm" in name or "relative_bias" in name else 0.01
        expected = old - 0.02 * (g / (np.abs(g) + 0.01) + decay * old)  # no history: m = g, v = g^2
        np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-6, err_msg=name)

    jax.tree_util.tree_map_with_path(adamw, params, gradient, state.params)


def test_the_old_state_is_given_up_to_the_new_one():
    step, new_state, _, memory = program(CONFIG)
    state = new_state()
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(state, packed_batch())
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes >= size


def the_same(config, number):
    return packed_batch(config)


def test_adamw_learns_a_batch_by_heart():
    _, history = train(CONFIG, steps=30, batches=the_same)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


def test_adafactor_learns_a_batch_in_bfloat16_with_dropout():
    config = change(
        model={"compute_dtype": "bfloat16", "dropout_rate": 0.1},
        optimizer={"name": "adafactor", "learning_rate": 0.05, "ema_decay": 0.9},
    )
    state, history = train(config, steps=30, batches=the_same)
    assert history[-1]["token_loss"] < 0.7 * history[0]["token_loss"]
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    distance = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.ema, state.params)
    assert max(jax.tree.leaves(distance)) > 0


def test_a_step_that_went_wrong_shows_it():
    step, new_state, *_ = program(CONFIG)
    state = new_state()
    broken = jax.tree.map(lambda x: x.at[0].set(jnp.nan), state.params["head"])
    state = dataclasses.replace(state, params=state.params | {"head": broken})
    _, metrics = step(state, packed_batch())
    assert np.isnan(metrics["loss"])
    assert np.isnan(metrics["gradient_norm"])


def test_metrics_are_float32_scalars_with_the_promised_names():
    _, (metrics, *_) = train(CONFIG, CUBE, steps=1)
    assert {(x.shape, x.dtype) for x in metrics.values()} == {((), np.dtype("float32"))}
    assert metrics.keys() >= {
        *("loss", "generation_loss", "contrastive_loss", "contrastive_factor", "token_loss"),
        *("token_accuracy", "z_loss", "gradient_norm", "learning_rate", "target_tokens"),
        *("input_tokens", "pairs", "model_flops"),
    }
    batch = packed_batch()
    assert metrics["target_tokens"] == (batch["decoder_targets"] > 0).sum()
    assert metrics["input_tokens"] == (batch["encoder_tokens"] > 0).sum()
    assert metrics["learning_rate"] == np.float32(0.02)


def test_held_out_loss_is_the_steps_loss_without_dropout():
    config = change(model={"dropout_rate": 0.5})
    mesh = make_mesh(MeshConfig(*CUBE))
    evaluate = make_loss_step(T5(config.model), make_method(config.objective), config, mesh)
    _, (metrics,) = train(CONFIG, steps=1)
    assert evaluate(start(MODEL), packed_batch())["loss"] == pytest.approx(
        metrics["loss"], rel=1e-5
    )


def test_rows_that_do_not_divide_are_refused_with_the_numbers():
    config = change(batch={"rows": 12}, optimizer={"accumulation_steps": 2})
    mesh = make_mesh(MeshConfig(*CUBE))
    with pytest.raises(ConfigError, match=r"batch.rows = 12 .* 2 x 4 = 8"):
        make_loss_step(T5(config.model), make_method(config.objective), config, mesh)


def test_flops_are_six_per_parameter_and_token_plus_attention():
    """One segment a row, as long as the row: N counts every matrix but the input embedding."""
    config = dataclasses.replace(MODEL, num_decoder_layers=3)
    rows, length = 2, 10
    ids = np.ones((rows, length), np.int32)
    sizes = jax.tree.map(lambda x: x.size, T5(config).abstract_parameters())
    matrices = sum(
        size
        for path, size in jax.tree_util.tree_leaves_with_path(sizes)
        if not re.search("norm|relative_bias|embedding", jax.tree_util.keystr(path))
    )
    inner = 8 * 4
    full, causal = length * length, length * (length + 1) / 2
    scores = 2 * full + 3 * full + 3 * causal  # encoder, cross- and causal self-attention
    expected = 6 * (rows * length * matrices + rows * scores * 2 * inner)
    assert float(model_flops(config, ids, ids, 4)) == pytest.approx(expected, rel=1e-6)


def test_flops_of_packed_rows_are_those_of_their_segments():
    packed = np.array([[1, 1, 1, 2, 2, 0], [1, 0, 0, 0, 0, 0]])
    alone = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    results = [float(model_flops(MODEL, ids, ids, 4)) for ids in (packed, alone)]
    assert results[0] == pytest.approx(results[1])
