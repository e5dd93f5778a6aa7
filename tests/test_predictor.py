"""The predictor: what it answers depends on the prompt alone, and few programs are compiled."""

import dataclasses

import generation_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coin_jax.config import MeshConfig
from coin_jax.data.templates import Piece, Prompt
from coin_jax.data.tokenizer import ByteTokenizer
from coin_jax.model.generation import generate, score_answers
from coin_jax.model.t5 import T5
from coin_jax.objective.pooling import pool
from coin_jax.parallel.mesh import make_mesh
from coin_jax.parallel.sharding import parameter_shardings
from coin_jax.predictor import Predictor, bucket

CONFIG = dataclasses.replace(generation_cases.CONFIGS["t5_v1_1"], vocabulary_size=384)
MODEL = T5(CONFIG)
PARAMS = jax.tree.map(jnp.asarray, generation_cases.parameters(CONFIG))
PROMPTS = ["a long prompt, by some way", "b", "", "what?", "c" * 28, "dd", "e e e", "a longer one"]
ANSWERS = ["yes", "no", "perhaps so"]


def predictor(**settings) -> Predictor:
    return Predictor(MODEL, PARAMS, ByteTokenizer(), **({"batch_size": 4} | settings))


def test_buckets_are_few_and_hold_what_they_must():
    sizes = [bucket(length) for length in range(1, 513)]
    assert all(size >= length for length, size in enumerate(sizes, 1))
    assert sorted(set(sizes)) == [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]


def test_scores_come_in_the_order_of_prompts_and_answers_whatever_the_batch():
    together = predictor().score(PROMPTS, ANSWERS)
    assert together.shape == (len(PROMPTS), len(ANSWERS))
    assert together.dtype == np.float32
    alone = predictor(batch_size=1).score(PROMPTS, ANSWERS)
    np.testing.assert_allclose(alone, together, rtol=1e-5)
    backwards = predictor(batch_size=3).score(PROMPTS[::-1], ANSWERS[::-1])
    np.testing.assert_allclose(backwards[::-1, ::-1], together, rtol=1e-5)


def test_scores_are_the_log_likelihood_of_the_tokens_of_the_answer_and_its_end():
    prompt, answer = [*b"what?", 1], [*b"no", 1]
    prompt, answer = ([t + 3 if t > 1 else t for t in ids] for ids in (prompt, answer))
    encoded = MODEL.encode(PARAMS, np.array([prompt]), np.ones((1, 6), np.int32))
    segments = np.ones((1, 3), np.int32)
    hidden = MODEL.decode(
        PARAMS, np.array([[0, *answer[:-1]]]), segments, encoded, np.ones((1, 6), np.int32)
    )
    logits = np.asarray(MODEL.logits(PARAMS, hidden), np.float64)[0]
    expected = sum(
        row[t] - np.log(np.exp(row).sum()) for row, t in zip(logits, answer, strict=True)
    )
    scores = predictor().score(["what?", prompt], ["no"])
    np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-5)
    normalized = predictor().score(["what?"], ["no"], length_normalized=True)
    np.testing.assert_allclose(normalized[0, 0], expected / 3, rtol=1e-5)


def test_answers_of_their_own_score_as_common_ones_and_missing_ones_cannot_win():
    common = predictor().score(PROMPTS, ANSWERS)
    own = [ANSWERS[: 1 + index % 3] for index in range(len(PROMPTS))]
    scores = predictor().score(PROMPTS, own)
    for row, (entry, expected) in enumerate(zip(own, common, strict=True)):
        np.testing.assert_allclose(scores[row, : len(entry)], expected[: len(entry)], rtol=1e-5)
        assert (scores[row, len(entry) :] == -np.inf).all()


def test_many_long_answers_are_spread_over_decoder_rows():
    answers = [letter * (10 + number) for number, letter in enumerate("abcdefghij")]
    together = predictor().score(PROMPTS[:3], answers)
    apart = [predictor().score(PROMPTS[:3], [answer])[:, 0] for answer in answers[::4]]
    np.testing.assert_allclose(together[:, ::4], np.stack(apart, axis=1), rtol=1e-5)


def test_generation_comes_in_order_whatever_the_batch():
    settings = {"max_new_tokens": 6}
    together = predictor().generate(PROMPTS, **settings)
    assert predictor(batch_size=1).generate(PROMPTS, **settings) == together
    assert predictor().generate(PROMPTS[::-1], **settings) == together[::-1]
    assert len(set(together)) > 1


def test_drawn_answers_are_the_same_whole_and_in_parts():
    settings = {"max_new_tokens": 6, "temperature": 1.0, "seed": 5}
    whole = predictor().generate(PROMPTS, **settings)
    parts = [
        *predictor().generate(PROMPTS[:3], **settings),
        *predictor().generate(PROMPTS[3:], first=3, **settings),
    ]
    assert parts == whole
    assert predictor().generate(PROMPTS, **(settings | {"seed": 6})) != whole


def test_several_candidates_are_drawn_for_each_prompt():
    several = predictor().candidates(
        PROMPTS[1:4], candidates=3, max_new_tokens=6, temperature=1.0, seed=5
    )
    assert [len(answers) for answers in several] == [3, 3, 3]
    assert all(len(set(answers)) > 1 for answers in several)


def test_a_last_batch_that_is_not_full_compiles_nothing():
    prompts = ["x" * 20] * 10
    asking = predictor()
    asking.score(prompts[:8], ANSWERS)
    asking.generate(prompts[:8], max_new_tokens=4)
    compiled = score_answers._cache_size(), generate._cache_size()
    asking.score(prompts, ANSWERS)
    asking.generate(prompts, max_new_tokens=4)
    assert (score_answers._cache_size(), generate._cache_size()) == compiled


def test_few_prompts_are_not_filled_up_to_the_whole_batch(monkeypatch):
    rows = []
    run = Predictor._put
    monkeypatch.setattr(Predictor, "_put", lambda self, a: rows.append(len(a)) or run(self, a))
    predictor(batch_size=64).score(PROMPTS[:3], ANSWERS)
    assert set(rows) == {4}


def test_too_long_prompts_lose_the_end_of_their_field_and_keep_the_instruction():
    prompt = Prompt((Piece("Is it? ", False), Piece("x" * 99, True), Piece(" Say.", False)), "yes")
    asking = predictor(max_input_length=32)
    (ids,) = asking._encode([prompt])
    assert ByteTokenizer().decode(ids) == "Is it? " + "x" * 19 + " Say."
    assert ids[-1] == 1
    (ids,) = asking._encode([prompt.text])  # plain text has no parts: its end is lost
    assert ByteTokenizer().decode(ids) == prompt.text[:31]
    assert len(ids) == 32


GIVEN = [ANSWERS[index % 3] for index in range(len(PROMPTS))]
KINDS = ["decoder_last", "decoder_first", "decoder_mean", "encoder_mean", "encoder_last"]


@jax.jit
def encoder_and_decoder_states(tokens, of_tokens, inputs, of_inputs):
    encoded = MODEL.encode(PARAMS, tokens, of_tokens)
    return encoded, MODEL.decode(PARAMS, inputs, of_inputs, encoded, of_tokens)


@pytest.fixture(scope="module")
def pooled():
    return predictor().pooled_states(PROMPTS, GIVEN)


def test_pooled_states_are_those_of_each_prompt_and_answer_alone(pooled):
    assert set(pooled) == set(KINDS)
    for row in (2, 3):
        tokens = np.array([[*(byte + 3 for byte in PROMPTS[row].encode()), 1]])
        inputs = np.array([[0, *(byte + 3 for byte in GIVEN[row].encode())]])
        both = encoder_and_decoder_states(
            tokens, np.ones_like(tokens), inputs, np.ones_like(inputs)
        )
        encoded_SxD, hidden_TxD = (np.asarray(states)[0] for states in both)
        expected = {
            "decoder_last": hidden_TxD[-1],  # has seen the whole answer, and foresees its end
            "decoder_first": hidden_TxD[0],
            "decoder_mean": hidden_TxD.mean(axis=0),
            "encoder_mean": encoded_SxD.mean(axis=0),
            "encoder_last": encoded_SxD[-1],
        }
        for kind in KINDS:
            assert pooled[kind].dtype == np.float32
            np.testing.assert_allclose(pooled[kind][row], expected[kind], rtol=1e-4, atol=1e-5)


def test_pooled_states_are_those_that_training_pools_out_of_packed_rows(pooled):
    rows = [0, 3]
    texts = [PROMPTS[row] for row in rows] + [GIVEN[row] for row in rows]
    one, two, answer, other = ([byte + 3 for byte in text.encode()] for text in texts)
    tokens = np.array([[*one, 1, *two, 1, 0, 0]])
    inputs = np.array([[0, *answer, 0, *other, 0]])
    of_tokens = np.repeat([1, 2, 0], [len(one) + 1, len(two) + 1, 2])[None]
    of_inputs = np.repeat([1, 2, 0], [len(answer) + 1, len(other) + 1, 1])[None]
    encoded, hidden = encoder_and_decoder_states(tokens, of_tokens, inputs, of_inputs)
    for kind in KINDS:
        packed = (hidden, of_inputs) if kind.startswith("decoder") else (encoded, of_tokens)
        np.testing.assert_allclose(pooled[kind][rows], pool(*packed, 2, kind), rtol=1e-4, atol=1e-5)


def test_pooled_states_come_in_the_order_of_prompts_whatever_the_batch(pooled):
    asking = predictor(batch_size=64)
    together = asking.pooled_states(PROMPTS[::-1], GIVEN[::-1], ["decoder_last", "encoder_mean"])
    assert list(together) == ["decoder_last", "encoder_mean"]
    for kind, states in together.items():
        np.testing.assert_allclose(states[::-1], pooled[kind], rtol=1e-4, atol=1e-5)


def test_the_length_of_an_answer_is_what_length_normalization_divides_by():
    lengths = predictor().answer_lengths(ANSWERS)
    assert lengths == [4, 3, 11]  # bytes, and the end
    whole, normalized = (
        predictor().score(PROMPTS, ANSWERS, length_normalized=kind) for kind in (False, True)
    )
    np.testing.assert_allclose(whole / lengths, normalized, rtol=1e-6)


def test_nothing_asked_is_nothing_answered():
    assert predictor().score([], ANSWERS).shape == (0, 3)
    assert predictor().pooled_states([], [])["decoder_last"].shape == (0, CONFIG.d_model)
    assert predictor().answer_lengths([]) == []
    assert predictor().generate([]) == []


def test_bad_questions_are_refused():
    with pytest.raises(ValueError, match="at least one answer"):
        predictor().score(PROMPTS, [])
    with pytest.raises(ValueError, match="none of them empty"):
        predictor().score(PROMPTS[:2], [["a"], []])
    with pytest.raises(ValueError, match="8 prompts, but 2 lists"):
        predictor().score(PROMPTS, [["a"], ["b"]])
    with pytest.raises(ValueError, match="8 prompts, but 3 answers"):
        predictor().pooled_states(PROMPTS, ANSWERS)
    with pytest.raises(ValueError, match="do not belong together"):
        Predictor(T5(generation_cases.CONFIGS["t5_v1_1"]), PARAMS, ByteTokenizer())
    with pytest.raises(ValueError, match="batch_size is 0"):
        predictor(batch_size=0)


def test_a_mesh_gives_the_same_answers(pooled):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = parameter_shardings(mesh, MODEL.logical_axes(), MODEL.abstract_parameters())
    sharded = Predictor(
        MODEL, jax.device_put(PARAMS, shardings), ByteTokenizer(), batch_size=3, mesh=mesh
    )
    assert sharded.batch_size == 4  # rows for each of the four parts of the batch
    own = [ANSWERS[: 1 + index % 3] for index in range(len(PROMPTS))]
    expected = predictor().score(PROMPTS, own)
    np.testing.assert_allclose(sharded.score(PROMPTS, own), expected, rtol=1e-5)
    states = sharded.pooled_states(PROMPTS[:4], GIVEN[:4])
    for kind in KINDS:
        np.testing.assert_allclose(states[kind], pooled[kind][:4], rtol=1e-4, atol=1e-5)
    settings = {"max_new_tokens": 6}
    assert sharded.generate(PROMPTS, **settings) == predictor().generate(PROMPTS, **settings)
