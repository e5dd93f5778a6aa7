"""The contrastive term against a float64 loop over pairs, and where it must be exactly nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coin_jax.objective.contrastive import contrastive_loss

TEMPERATURE = 0.3
# Sets of two and of one, empty slots between them; pairs 0 and 4 ask the same of the same instance.
SETS = np.array([0, 0, -1, 1, 1, 2, -1, 3, 3], np.int32)
CONTENTS = np.array([7, 8, -1, 9, 7, 10, -1, 11, 12], np.int32)
D = 6


def make_vectors(seed=0, pairs=SETS.size):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(2, pairs, D)).astype(np.float32))


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


def reference(anchors, positives, sets, contents, negatives, temperature=TEMPERATURE):
    """(loss, aux), pair by pair in float64."""
    anchors, positives = anchors.astype(np.float64), positives.astype(np.float64)
    losses, own, others, found = [], [], [], []
    for i in range(len(sets)):
        rivals = [
            j
            for j in range(len(sets))
            if min(sets[i], sets[j]) >= 0
            and contents[i] != contents[j]
            and (negatives == "batch" or sets[i] == sets[j])
        ]
        if not rivals:
            continue
        own.append(cosine(anchors[i], positives[i]))
        to_positives = [cosine(anchors[i], positives[j]) for j in rivals]
        to_anchors = [cosine(anchors[j], positives[i]) for j in rivals]
        others += to_positives
        found.append(own[-1] > max(to_positives))
        for candidates in (to_positives, to_anchors):
            scores = np.exp(np.array([own[-1], *candidates]) / temperature)
            losses.append(-np.log(scores[0] / scores.sum()))
    positive, negative = np.mean(own), np.mean(others)
    return np.mean(losses), {
        "cosine_positive": positive,
        "cosine_negative": negative,
        "cosine_gap": positive - negative,
        "retrieval_accuracy": np.mean(found),
        "contrasted_pairs": len(own),
    }


def ours(anchors, positives, sets=SETS, contents=CONTENTS, negatives="batch", **more):
    """(loss, aux), (d anchors, d positives)"""

    def loss(a, b):
        options = {"temperature": TEMPERATURE, "negatives": negatives} | more
        return contrastive_loss(a, b, jnp.asarray(sets), jnp.asarray(contents), **options)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(anchors, positives)


@pytest.mark.parametrize("negatives", ["hard", "batch"])
def test_loss_and_reports_equal_the_float64_definition(negatives):
    vectors = make_vectors()
    (loss, aux), _ = ours(*vectors, negatives=negatives)
    expected, expected_aux = reference(*vectors, SETS, CONTENTS, negatives)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert aux.keys() == expected_aux.keys()
    for name, value in expected_aux.items():
        np.testing.assert_allclose(aux[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("negatives", ["hard", "batch"])
def test_gradients_equal_finite_differences(negatives):
    vectors, step = make_vectors(1), 1e-5
    _, gradients = ours(*vectors, negatives=negatives)
    for side in (0, 1):
        expected = np.zeros(vectors[side].shape)
        for place in np.ndindex(*expected.shape):
            values = []
            for sign in (1, -1):
                moved = [v.astype(np.float64) for v in vectors]
                moved[side][place] += sign * step
                values.append(reference(*moved, SETS, CONTENTS, negatives)[0])
            expected[place] = (values[0] - values[1]) / (2 * step)
        np.testing.assert_allclose(gradients[side], expected, rtol=1e-3, atol=1e-5)


def test_hard_is_the_micro_batch_of_two_of_the_paper():
    """One pair and its hard negative: a 2 x 2 softmax each way, by hand."""
    anchors = np.array([[1, 0], [0, 1]], np.float32)
    positives = np.array([[3, 4], [-4, 3]], np.float32)  # cosines [[.6, -.8], [.8, .6]]
    (loss, aux), _ = ours(
        anchors, positives, np.array([5, 5]), np.array([1, 2]), "hard", temperature=1.0
    )
    rows = np.log1p(np.exp(-0.8 - 0.6)) + np.log1p(np.exp(0.8 - 0.6))
    columns = np.log1p(np.exp(0.8 - 0.6)) + np.log1p(np.exp(-0.8 - 0.6))
    np.testing.assert_allclose(loss, (rows / 2 + columns / 2) / 2, rtol=1e-6)
    np.testing.assert_allclose(aux["cosine_gap"], 0.6 - 0.0, atol=1e-6)
    np.testing.assert_allclose(aux["retrieval_accuracy"], 0.5)


@pytest.mark.parametrize("negatives", ["hard", "batch"])
@pytest.mark.parametrize(
    ("sets", "contents"),
    [
        ([4, -1, -1], [1, -1, -1]),  # one pair
        ([-1, -1, -1], [-1, -1, -1]),  # none
        ([0, 0, -1], [6, 6, -1]),  # two that ask and answer the same
    ],
)
def test_pairs_with_nothing_to_be_told_from_give_exactly_zero(negatives, sets, contents):
    vectors = make_vectors(2, pairs=3)
    (loss, aux), gradients = ours(*vectors, np.array(sets), np.array(contents), negatives)
    assert loss == 0
    for part in (*aux.values(), *gradients):
        np.testing.assert_array_equal(part, np.zeros(part.shape))


def test_a_set_of_one_does_not_dilute_the_mean_of_hard_negatives():
    vectors = make_vectors(3, pairs=3)
    (with_it, aux), _ = ours(*vectors, np.array([0, 0, 1]), np.array([1, 2, 3]), "hard")
    (without, _), _ = ours(*vectors, np.array([0, 0, -1]), np.array([1, 2, -1]), "hard")
    np.testing.assert_allclose(with_it, without, rtol=1e-6)
    assert aux["contrasted_pairs"] == 2


@pytest.mark.parametrize("negatives", ["hard", "batch"])
def test_empty_slots_do_not_matter_whatever_stands_there(negatives):
    anchors, positives = make_vectors(4)
    (expected, _), _ = ours(anchors, positives, negatives=negatives)
    empty = SETS < 0
    anchors[empty], positives[empty] = 1e3, 0
    (loss, _), gradients = ours(anchors, positives, negatives=negatives)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[empty], 0)


@pytest.mark.parametrize("negatives", ["hard", "batch"])
def test_equal_vectors_give_the_loss_of_guessing_and_no_gradient(negatives):
    same = np.ones((4, D), np.float32)
    (loss, aux), gradients = ours(
        same, same, np.array([0, 0, 1, 1]), np.array([1, 2, 3, 4]), negatives, temperature=0.05
    )
    np.testing.assert_allclose(loss, np.log(2 if negatives == "hard" else 4), rtol=1e-5)
    assert aux["retrieval_accuracy"] == 0  # a tie is not found
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_vectors_without_length_are_similar_to_nothing_and_take_no_gradient():
    anchors, positives = make_vectors(5, pairs=2)
    anchors[0] = 0
    (loss, aux), gradients = ours(anchors, positives, np.array([0, 0]), np.array([1, 2]))
    similar = cosine(anchors[1].astype(float), positives[1].astype(float))
    np.testing.assert_allclose(aux["cosine_positive"], similar / 2, rtol=1e-5)
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in gradients)
    np.testing.assert_array_equal(gradients[0][0], 0)


def test_far_apart_pairs_at_a_tiny_temperature_stay_finite():
    axes = np.eye(4, dtype=np.float32)
    right, gradients = ours(
        axes, axes, np.arange(4), np.arange(4), temperature=1e-3
    )  # solved: loss 0
    wrong, more = ours(axes, -axes, np.arange(4), np.arange(4), temperature=1e-3)
    assert right[0] == 0
    np.testing.assert_allclose(wrong[0], 1000 + np.log(3), rtol=1e-5)
    assert all(np.isfinite(g).all() for g in (*gradients, *more))


def test_the_length_of_a_vector_does_not_matter():
    anchors, positives = make_vectors(6)
    (expected, _), _ = ours(anchors, positives)
    (loss, _), _ = ours(anchors * 1e4, positives * 1e-3)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_bfloat16_states_are_compared_in_float32():
    rounded = tuple(jnp.asarray(v, jnp.bfloat16) for v in make_vectors(7))
    (loss, aux), gradients = ours(*rounded)
    exact = tuple(np.asarray(v, np.float64) for v in rounded)
    assert (loss.dtype, aux["cosine_gap"].dtype) == (jnp.float32, jnp.float32)
    assert {g.dtype for g in gradients} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(loss, reference(*exact, SETS, CONTENTS, "batch")[0], rtol=1e-5)


def test_unknown_negatives_are_refused():
    with pytest.raises(ValueError, match="'easy'"):
        ours(*make_vectors(), negatives="easy")
