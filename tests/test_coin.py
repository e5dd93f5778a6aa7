"""Methods: how they weigh tokens and combine the parts of a loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coin_jax.config import MeshConfig, ObjectiveConfig
from coin_jax.objective import METHODS, PlainCrossEntropy, head_cross_entropy, make_method, pool
from coin_jax.objective.coin import contrastive_factor
from coin_jax.parallel.mesh import make_mesh

B, T, G, D, V = 2, 8, 4, 6, 20
# Two sets of pairs: slots (0, 1) and (2, 4) are a pair and its hard negative, (5, 6) stands alone.
SEGMENT_IDS = np.array([[1, 1, 2, 2, 2, 3, 0, 0], [1, 2, 2, 2, 3, 3, 0, 0]], np.int32)
BATCH = {
    "decoder_targets": np.where(SEGMENT_IDS > 0, 1 + np.arange(B * T).reshape(B, T), 0),
    "decoder_segment_ids": SEGMENT_IDS,
    "pair_members": np.array([[0, 1], [2, 4], [5, 6], [-1, -1]], np.int32),
    "pair_sets": np.array([0, 0, 1, -1], np.int32),
    "pair_contents": np.array([3, 4, 5, -1], np.int32),
}
ANCHOR = np.array([[1, 1, 0, 0, 0, 1, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0]], bool)  # slots 0, 2, 5
POSITIVE = np.array([[0, 0, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 1, 1, 0, 0]], bool)  # slots 1, 4, 6
NO_PAIRS = {name: np.full_like(BATCH[name], -1) for name in BATCH if name.startswith("pair_")}


def make_states(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(B, T, D)).astype(np.float32), rng.normal(size=(D, V)).astype(np.float32)


def run(method, hidden, kernel, config, batch=BATCH):
    """What the train step does between the model and the optimizer."""
    batch = jax.tree.map(jnp.asarray, batch)
    generation, _ = head_cross_entropy(
        hidden,
        kernel,
        batch["decoder_targets"],
        method.token_weights(batch),
        label_smoothing=config.label_smoothing,
        z_loss=config.z_loss,
        chunk=4,
    )
    pooled = None
    if method.needs:
        pooled = pool(hidden, batch["decoder_segment_ids"], G, method.pooling)
    return method.combine(generation, pooled, batch)


def evaluate(config, hidden, kernel, batch=BATCH):
    """(total, metrics), (d hidden, d kernel)"""
    method = make_method(config)
    loss = lambda h, k: run(method, h, k, config, batch)  # noqa: E731
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(hidden, kernel)


def reference_parts(hidden, kernel, negatives="hard", temperature=0.05):
    """Float64 (L_gen, L_ctr) of BATCH with pooling decoder_last, slot by slot."""
    hidden, kernel = hidden.astype(np.float64), kernel.astype(np.float64)
    logits = hidden @ kernel
    log_z = np.log(np.exp(logits).sum(axis=-1))
    nll = log_z - np.take_along_axis(logits, BATCH["decoder_targets"][..., None], -1)[..., 0]
    generation = nll[ANCHOR].mean() + nll[POSITIVE].mean()

    def state(slot):
        row, segment = divmod(slot, G)
        last = hidden[row][SEGMENT_IDS[row] == segment + 1][-1]
        return last / np.linalg.norm(last)

    groups = [[(0, 1), (2, 4)]] if negatives == "hard" else [[(0, 1), (2, 4), (5, 6)]]
    losses = []
    for group in groups:
        scores = np.array([[state(a) @ state(p) / temperature for _, p in group] for a, _ in group])
        for matrix in (scores, scores.T):
            losses += list(np.log(np.exp(matrix).sum(axis=1)) - np.diagonal(matrix))
    return generation, np.mean(losses)


@pytest.mark.parametrize("negatives", ["hard", "batch"])
@pytest.mark.parametrize("weight", [0.0, 0.01, 1.0, 1000.0])
def test_the_total_is_the_formula_of_the_paper(negatives, weight):
    hidden, kernel = make_states()
    config = ObjectiveConfig(contrastive_weight=weight, negatives=negatives)
    (total, metrics), _ = evaluate(config, hidden, kernel)
    generation, contrastive = reference_parts(hidden, kernel, negatives)
    factor = min(weight, generation / contrastive)
    np.testing.assert_allclose(metrics["generation_loss"], generation, rtol=1e-5)
    np.testing.assert_allclose(metrics["contrastive_loss"], contrastive, rtol=1e-5)
    np.testing.assert_allclose(metrics["contrastive_factor"], factor, rtol=1e-5)
    np.testing.assert_allclose(total, generation + factor * contrastive, rtol=1e-5)
    assert (metrics["pairs"], metrics["contrasted_pairs"]) == (3, 2 if negatives == "hard" else 3)
    assert all(m.dtype == jnp.float32 and m.shape == () for m in metrics.values())


@pytest.mark.parametrize("weight", [0.0, 0.01, 1000.0])
def test_gradients_equal_finite_differences_with_the_factor_held_fixed(weight):
    hidden, kernel = make_states(1)
    _, gradients = evaluate(ObjectiveConfig(contrastive_weight=weight), hidden, kernel)
    generation, contrastive = reference_parts(hidden, kernel)
    factor, step = min(weight, generation / contrastive), 1e-5
    for which, gradient in enumerate(gradients):
        expected = np.zeros(gradient.shape)
        for place in np.ndindex(*expected.shape):
            values = []
            for sign in (1, -1):
                moved = [hidden.astype(np.float64), kernel.astype(np.float64)]
                moved[which][place] += sign * step
                parts = reference_parts(*moved)
                values.append(parts[0] + factor * parts[1])
            expected[place] = (values[0] - values[1]) / (2 * step)
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


def test_lambda_zero_reports_the_contrastive_metrics_and_trains_on_cross_entropy_alone():
    method = make_method(ObjectiveConfig(contrastive_weight=0.0))
    pooled = np.random.default_rng(2).normal(size=(B * G, D)).astype(np.float32)
    combine = lambda pooled: method.combine(jnp.float32(3), pooled, BATCH)  # noqa: E731
    (total, metrics), gradient = jax.value_and_grad(combine, has_aux=True)(jnp.asarray(pooled))
    assert (total, metrics["contrastive_factor"]) == (3, 0)
    assert metrics["contrastive_loss"] > 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    ("generation", "contrastive", "factor"),
    [
        (2.0, 0.5, 4.0),
        (2.0, 1e-3, 1000.0),  # the cap
        (2.0, 0.0, 1000.0),
        (2.0, 1e-45, 1000.0),  # the smallest float32
        (0.0, 0.5, 0.0),
        (0.0, 0.0, 1000.0),  # any factor of nothing is nothing
    ],
)
def test_the_factor_is_capped_and_always_finite(generation, contrastive, factor):
    ours = contrastive_factor(jnp.float32(generation), jnp.float32(contrastive), 1000.0)
    np.testing.assert_allclose(ours, factor, rtol=1e-6)


def test_solved_contrast_gives_a_finite_total_and_gradients():
    method = make_method(ObjectiveConfig(temperature=1e-3))
    pooled = np.zeros((B * G, D), np.float32)
    for pair, (anchor, positive) in enumerate(BATCH["pair_members"][:3]):
        pooled[[anchor, positive], pair] = 1  # equal inside a pair, at right angles to the rest
    combine = lambda pooled: method.combine(jnp.float32(2), pooled, BATCH)  # noqa: E731
    (total, metrics), gradient = jax.value_and_grad(combine, has_aux=True)(jnp.asarray(pooled))
    assert (total, metrics["contrastive_loss"]) == (2, 0)
    assert np.isfinite(gradient).all()


def test_anchors_and_positives_each_weigh_one_in_total_whatever_their_lengths():
    weights = make_method(ObjectiveConfig()).token_weights(jax.tree.map(jnp.asarray, BATCH))
    expected = ANCHOR / ANCHOR.sum() + POSITIVE / POSITIVE.sum()
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_sequences_outside_pairs_are_not_coins_to_train():
    batch = BATCH | {"pair_members": np.array([[0, 1], [-1, -1], [-1, -1], [-1, -1]])}
    weights = make_method(ObjectiveConfig()).token_weights(jax.tree.map(jnp.asarray, batch))
    np.testing.assert_allclose(weights[0], [0.5, 0.5, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(weights[1], 0)


def test_a_batch_without_pairs_gives_coin_zero_loss_and_zero_gradients():
    (total, metrics), gradients = evaluate(ObjectiveConfig(), *make_states(3), BATCH | NO_PAIRS)
    assert (total, metrics["contrastive_loss"], metrics["pairs"]) == (0, 0, 0)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


def test_plain_cross_entropy_is_the_mean_over_all_target_tokens():
    hidden, kernel = make_states(4)
    config = ObjectiveConfig(method="cross_entropy")
    (total, metrics), _ = evaluate(config, hidden, kernel, BATCH | NO_PAIRS)
    logits = hidden.astype(np.float64) @ kernel.astype(np.float64)
    losses = [
        np.log(np.exp(logits[place]).sum()) - logits[place][target]
        for place, target in np.ndenumerate(BATCH["decoder_targets"])
        if target
    ]
    np.testing.assert_allclose(total, np.mean(losses), rtol=1e-5)
    assert metrics["generation_loss"] == total


@pytest.mark.parametrize(("rows", "segments"), [(1, 4), (1, 5), (3, 5), (2, 1), (4, 8)])
def test_every_slot_of_every_shape_is_found(rows, segments):
    """Also where rows x segments is odd and a slot is left without a pair."""
    segment_ids = np.tile(np.arange(1, segments + 1), (rows, 1))
    slots = np.arange(rows * segments)
    pairs = len(slots) // 2
    members = slots[: 2 * pairs].reshape(pairs, 2)
    batch = {
        "decoder_targets": jnp.ones((rows, segments), int),
        "decoder_segment_ids": jnp.asarray(segment_ids),
        "pair_members": jnp.asarray(members),
    }
    weights = make_method(ObjectiveConfig()).token_weights(batch)
    np.testing.assert_allclose(weights.reshape(-1)[: 2 * pairs], 1 / pairs, rtol=1e-6)
    np.testing.assert_array_equal(weights.reshape(-1)[2 * pairs :], 0)


def test_pair_slots_that_do_not_fit_the_rows_are_refused():
    batch = {
        "decoder_targets": jnp.ones((4, 3), int),
        "decoder_segment_ids": jnp.ones((4, 3), int),
        "pair_members": jnp.zeros((5, 2), int),
    }
    with pytest.raises(ValueError, match="5 pair slots for 4 rows"):
        make_method(ObjectiveConfig()).token_weights(batch)


@pytest.mark.parametrize("negatives", ["hard", "batch"])
def test_a_mesh_gives_what_one_device_gives(negatives):
    hidden, kernel = make_states(5)
    config = ObjectiveConfig(negatives=negatives, label_smoothing=0.1, z_loss=1e-3)
    alone = evaluate(config, hidden, kernel)
    with jax.set_mesh(make_mesh(MeshConfig(2, 1, 4))):
        together = evaluate(config, hidden, kernel)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), together, alone
    )


def test_a_new_method_is_one_class_and_one_line_of_the_registry(monkeypatch):
    class Toy(PlainCrossEntropy):
        """Cross-entropy, and short first states."""

        needs, pooling = "decoder", "decoder_first"

        def combine(self, generation_loss, pooled_SxD, batch):
            length = jnp.square(pooled_SxD).sum()
            return generation_loss + length, {"length": length}

    monkeypatch.setitem(METHODS, "toy", Toy)
    hidden, kernel = make_states(6)
    (total, metrics), _ = evaluate(ObjectiveConfig(method="toy"), hidden, kernel)
    (plain, _), _ = evaluate(ObjectiveConfig(method="cross_entropy"), hidden, kernel)
    firsts = [hidden[0, 0], hidden[0, 2], hidden[0, 5], hidden[1, 0], hidden[1, 1], hidden[1, 4]]
    length = np.square(np.array(firsts, np.float64)).sum()
    np.testing.assert_allclose(metrics["length"], length, rtol=1e-5)
    np.testing.assert_allclose(total, plain + length, rtol=1e-5)


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'dpo'.*coin, cross_entropy"):
        make_method(ObjectiveConfig(method="dpo"))
