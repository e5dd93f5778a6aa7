"""Generation against transformers and exhaustive search; scoring against float64 log-softmax."""

import dataclasses
import functools
import itertools
import json

import generation_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coin_jax.config import ModelConfig
from coin_jax.model import generation
from coin_jax.model.generation import Ends, GenerationSettings, generate, score_answers
from coin_jax.model.t5 import T5

CASES = json.loads(generation_cases.GOLDEN.read_text())


@functools.cache
def seeded(name: str):
    config = generation_cases.CONFIGS[name]
    return T5(config), jax.tree.map(jnp.asarray, generation_cases.parameters(config))


def keys(rows: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), rows)


def search(name: str, tokens, segments, **fields):
    model, params = seeded(name)
    fields = {"max_new_tokens": generation_cases.NEW_TOKENS} | fields
    settings = GenerationSettings(**fields)
    return generate(model, params, tokens, segments, keys(len(tokens)), settings=settings)


def answers(generated) -> list:
    return [
        [generation_cases.answer_tokens(row) for row in rows] for rows in np.array(generated.tokens)
    ]


# --- greedy and beam search ---


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case['model']}-{'-'.join(map(str, case['search'].values()))}"
)
def test_greedy_and_beam_search_agree_with_transformers_token_for_token(case):
    generated = search(case["model"], *generation_cases.prompts(), **case["search"])
    assert answers(generated) == case["tokens"]
    if case["scores"]:
        np.testing.assert_allclose(generated.scores, case["scores"], rtol=1e-5, atol=1e-5)


def test_the_goldens_hold_answers_that_end_early_and_answers_that_do_not():
    for name in generation_cases.CONFIGS:
        rows = [row for case in CASES if case["model"] == name for row in case["tokens"]]
        lengths = {len(answer) for row in rows for answer in row}
        assert min(lengths) <= 3
        assert max(lengths) == generation_cases.NEW_TOKENS
        assert len(lengths) >= 5


def test_the_goldens_are_what_transformers_gives_now():
    pytest.importorskip("torch", reason="live comparison needs torch")
    for case in (CASES[0], CASES[-1]):
        config = generation_cases.CONFIGS[case["model"]]
        tokens, _ = generation_cases.generate_with_transformers(config, case["search"])
        assert tokens == case["tokens"]


@pytest.mark.parametrize("fields", [{}, {"beams": 3, "candidates": 3, "early_stopping": True}])
def test_answers_depend_neither_on_the_batch_nor_on_padding(fields):
    tokens, segments = generation_cases.prompts()
    together = search("t5_v1_1", tokens, segments, **fields)
    wider = search("t5_v1_1", *generation_cases.prompts(extra=9), **fields)
    assert answers(wider) == answers(together)
    np.testing.assert_allclose(wider.scores, together.scores, rtol=1e-5, atol=1e-5)
    for row, length in list(enumerate(generation_cases.PROMPT_LENGTHS))[:2]:
        alone = search("t5_v1_1", tokens[[row], :length], segments[[row], :length], **fields)
        assert answers(alone) == answers(together)[row : row + 1]
        np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_a_beam_wider_than_the_tree_finds_the_best_answer_of_all(penalty):
    vocabulary, length, eos = 4, 3, 1
    rng = np.random.default_rng(3)
    # The log-probabilities of the next token after each (position, last token).
    table = rng.normal(0, 2, (length, vocabulary, vocabulary))
    table -= np.log(np.exp(table).sum(-1, keepdims=True))
    best = {}
    for tokens in itertools.product(range(vocabulary), repeat=length):
        tokens = tokens[: tokens.index(eos) + 1] if eos in tokens else tokens
        steps = zip(range(length), (0, *tokens), tokens, strict=False)
        best[tokens] = sum(table[step] for step in steps) / len(tokens) ** penalty
    expected = sorted(best.items(), key=lambda entry: -entry[1])[:2]

    def step(cache, tokens_BxK, position):
        return jnp.asarray(table, jnp.float32)[position][tokens_BxK], cache

    settings = GenerationSettings(
        max_new_tokens=length,
        beams=30,
        candidates=2,
        length_penalty=penalty,
        early_stopping="never",
    )
    ends = Ends(start=0, eos=eos, pad=0)
    found = generation.beam_search(step, lambda cache, _: cache, (), 1, ends, settings)
    np.testing.assert_allclose(found.scores[0], [score for _, score in expected], rtol=1e-5)
    for (tokens, _), row in zip(expected, np.array(found.tokens[0]), strict=True):
        assert tuple(row[: len(tokens)]) == tokens


def test_scores_of_greedy_answers_are_their_log_likelihood():
    tokens, segments = generation_cases.prompts()
    generated = search("t5_v1_1", tokens, segments)
    for row, (answer,) in enumerate(answers(generated)):
        expected = log_likelihood("t5_v1_1", tokens[row], segments[row], answer)
        np.testing.assert_allclose(generated.scores[row, 0], expected, rtol=1e-5, atol=1e-5)


# --- sampling ---


def test_top_k_and_top_p_keep_the_tokens_they_name():
    probability = np.array([0.05, 0.4, 0.1, 0.25, 0.2])
    logits = jnp.log(probability)[None]

    def kept(**fields) -> set[int]:
        fields = {"top_k": 0, "top_p": 1.0} | fields
        return set(np.flatnonzero(np.isfinite(generation.restrict(logits, **fields)[0])).tolist())

    assert kept() == {0, 1, 2, 3, 4}
    assert kept(top_k=2) == {1, 3}
    assert kept(top_k=9) == {0, 1, 2, 3, 4}
    assert kept(top_p=0.39) == {1}
    assert kept(top_p=0.6) == {1, 3}  # 0.4 does not reach it, 0.65 does
    assert kept(top_p=0.86) == {1, 2, 3, 4}
    # After top-k 3 the shares are 0.47, 0.29, 0.24: the first two hold 0.76.
    assert kept(top_k=3, top_p=0.75) == {1, 3}
    assert kept(top_p=1e-9) == {1}


@pytest.mark.parametrize(
    ("fields", "keep"),
    [
        ({"temperature": 1.0}, 6),
        ({"temperature": 0.5}, 6),
        ({"temperature": 2.0, "top_k": 3}, 3),
        ({"temperature": 1.0, "top_p": 0.8}, 3),
    ],
)
def test_drawn_tokens_have_the_frequencies_of_the_softmax(fields, keep):
    logits = np.array([1.0, 0.2, 2.0, -1.0, 1.5, -0.5])
    draws = 20_000
    settings = GenerationSettings(**fields)
    rows = jnp.tile(jnp.asarray(logits, jnp.float32), (draws, 1))
    drawn = generation.draw(rows, keys(draws), settings)
    counts = np.bincount(drawn, minlength=6)
    expected = np.exp(logits / fields["temperature"])
    expected[np.argsort(-logits)[keep:]] = 0
    expected *= draws / expected.sum()
    assert (counts[expected == 0] == 0).all()
    support = expected > 0
    statistic = ((counts - expected)[support] ** 2 / expected[support]).sum()
    # The 99.9% quantile of chi-squared with keep - 1 degrees of freedom.
    assert statistic < {5: 20.52, 2: 13.82}[keep - 1]


def test_the_likeliest_of_one_is_the_greedy_answer():
    tokens, segments = generation_cases.prompts()
    sampled = search("t5_v1_1", tokens, segments, temperature=1.0, top_k=1)
    assert answers(sampled) == answers(search("t5_v1_1", tokens, segments))


def test_what_is_drawn_for_a_prompt_depends_on_its_key_alone():
    tokens, segments = generation_cases.prompts()
    model, params = seeded("t5_v1_1")
    settings = GenerationSettings(max_new_tokens=6, temperature=1.0, candidates=3)
    all_keys = keys(len(tokens))
    together = answers(generate(model, params, tokens, segments, all_keys, settings=settings))
    order = np.array([4, 2, 0])
    some = generate(
        model, params, tokens[order], segments[order], all_keys[order], settings=settings
    )
    assert answers(some) == [together[row] for row in order]
    assert len({tuple(answer) for rows in together for answer in rows}) > len(tokens)
    other = generate(model, params, tokens, segments, keys(len(tokens), 1), settings=settings)
    assert answers(other) != together


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"beams": 0}, "beams is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0"),
        ({"temperature": 1.0, "top_k": -1}, "top_k is -1"),
        ({"beams": 2, "temperature": 1.0}, "beams and temperature"),
        ({"top_k": 5}, "top_k and top_p"),
        ({"beams": 2, "candidates": 3}, "candidates is 3"),
        ({"early_stopping": "soon"}, "early_stopping is 'soon'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(fields, named):
    with pytest.raises(ValueError, match=named):
        GenerationSettings(**fields)


# --- scoring given answers ---

ANSWERS = [[5, 7, 1], [9, 1], [30, 31, 32, 33, 1], [1]]


@functools.partial(jax.jit, static_argnames="model")
def plain_logits(model, params, tokens, segments, inputs):
    """The logits of one decoder sequence a prompt, without cache, packing and sharing."""
    encoded = model.encode(params, tokens, segments)
    hidden = model.decode(params, inputs, jnp.ones_like(inputs), encoded, segments)
    return model.logits(params, hidden)


def log_likelihood(name: str, tokens, segments, answer: list[int]) -> float:
    """One answer to one prompt by a plain decoder pass and a float64 log-softmax."""
    inputs = np.zeros((1, 12), np.int32)  # what follows the answer is not seen by it
    inputs[0, 1 : len(answer)] = answer[:-1]
    logits = plain_logits(*seeded(name), tokens[None], segments[None], inputs)[0, : len(answer)]
    logits = np.asarray(logits, np.float64)
    return sum(row[t] - np.log(np.exp(row).sum()) for row, t in zip(logits, answer, strict=True))


def packed(rows: list[list[int]], width: int):
    """Decoder arrays [1, C, width]: `rows` holds the answers' numbers row by row."""
    fields = np.zeros((3, 1, len(rows), width), np.int32)
    for row, numbers in enumerate(rows):
        column = 0
        for number in numbers:
            answer = ANSWERS[number]
            span = slice(column, column := column + len(answer))
            fields[0, 0, row, span] = [0, *answer[:-1]]
            fields[1, 0, row, span] = answer
            fields[2, 0, row, span] = number + 1
    return fields


@pytest.mark.parametrize("name", generation_cases.CONFIGS)
@pytest.mark.parametrize(("rows", "width"), [([[0, 1, 2, 3]], 13), ([[2], [0, 1], [3]], 6)])
def test_packed_answers_score_as_each_alone_in_float64(name, rows, width):
    model, params = seeded(name)
    tokens, segments = generation_cases.prompts()
    scores = score_answers(model, params, tokens, segments, *packed(rows, width), answers=5)
    expected = [
        [log_likelihood(name, *prompt, answer) for answer in ANSWERS]
        for prompt in zip(tokens, segments, strict=True)
    ]
    np.testing.assert_allclose(scores.log_likelihood[:, :4], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(scores.tokens, [[3, 2, 5, 1, 0]] * len(tokens))
    assert (np.asarray(scores.log_likelihood[:, 4]) == -np.inf).all()  # there is no fifth answer


def test_scores_depend_neither_on_the_batch_nor_on_padding():
    model, params = seeded("t5_v1_1")
    tokens, segments = generation_cases.prompts()
    decoder = packed([[0, 1, 2, 3]], 11)
    score = functools.partial(score_answers, model, params, answers=4)
    together = score(tokens, segments, *decoder).log_likelihood
    wider = generation_cases.prompts(extra=20)
    padded = score(*wider, *packed([[0, 1, 2, 3]], 32)).log_likelihood
    np.testing.assert_allclose(padded, together, rtol=1e-5, atol=1e-5)
    for row, length in list(enumerate(generation_cases.PROMPT_LENGTHS))[:2]:
        alone = score(tokens[[row], :length], segments[[row], :length], *decoder).log_likelihood
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-5, atol=1e-5)


def test_scores_are_the_same_however_few_logits_exist_at_once(monkeypatch):
    model, params = seeded("t5_v1_1")
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(3, 7, 16)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 40, (3, 7)))
    at_once = generation.token_log_probability(model, params, hidden, targets)
    monkeypatch.setattr(
        generation, "LOGITS_AT_ONCE", 2 * 3 * 40
    )  # slices of 2, the last half empty
    sliced = generation.token_log_probability(model, params, hidden, targets)
    np.testing.assert_allclose(sliced, at_once, rtol=1e-6)


def test_the_logits_of_a_large_vocabulary_never_exist_together():
    small = generation_cases.CONFIGS["t5_v1_1"]
    model = T5(dataclasses.replace(small, vocabulary_size=250_000))
    rows, width = 16, 64
    tokens = jax.ShapeDtypeStruct((rows, 8), jnp.int32)
    decoder = [jax.ShapeDtypeStruct((1, 1, width), jnp.int32)] * 3
    params = model.abstract_parameters()
    lowered = score_answers.lower(model, params, tokens, tokens, *decoder, answers=8)
    used = lowered.compile().memory_analysis().temp_size_in_bytes
    assert used < rows * width * 250_000 * 4 / 4


def test_generation_has_the_same_answers_on_a_mesh():
    from coin_jax.config import MeshConfig
    from coin_jax.parallel.mesh import make_mesh
    from coin_jax.parallel.sharding import parameter_shardings

    model, params = seeded("t5_v1_1")
    tokens, segments = (array[:4] for array in generation_cases.prompts())
    expected = answers(search("t5_v1_1", tokens, segments, beams=3))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = parameter_shardings(mesh, model.logical_axes(), model.abstract_parameters())
    settings = GenerationSettings(max_new_tokens=generation_cases.NEW_TOKENS, beams=3)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(params, shardings)
        generated = generate(model, sharded, tokens, segments, keys(4), settings=settings)
    assert answers(generated) == expected


def test_relative_biases_of_every_layer_reach_the_cache():
    config = ModelConfig(
        vocabulary_size=40, d_model=16, d_kv=6, d_ff=24, num_heads=3, num_layers=2,
        num_decoder_layers=2, relative_bias_every_layer=True,
    )  # fmt: skip
    model, params = T5(config), generation_cases.parameters(config, seed=1)
    tokens, segments = generation_cases.prompts()
    settings = GenerationSettings(max_new_tokens=6)
    generated = generate(model, params, tokens, segments, keys(len(tokens)), settings=settings)
    inputs = np.zeros((len(tokens), 7), np.int32)
    for position in range(6):
        logits = plain_logits(model, params, tokens, segments, inputs)
        inputs[:, position + 1] = np.asarray(logits[:, position]).argmax(-1)
    expected = [[generation_cases.answer_tokens(row)] for row in inputs[:, 1:]]
    assert answers(generated) == expected
