"""What process 0 is asked, the others compute with it, and nothing else."""

import gc
import weakref

import jax
import numpy as np
import pytest
from test_predictor import ANSWERS, MODEL, PARAMS, PROMPTS

from coin_jax import leader
from coin_jax.data.templates import Piece, Prompt
from coin_jax.data.tokenizer import ByteTokenizer
from coin_jax.predictor import Predictor

TEMPLATED = Prompt((Piece("Which? ", False), Piece("a long field " * 9, True)), "yes")
SETTINGS = {"batch_size": 4, "max_input_length": 48}


@pytest.fixture
def wire(monkeypatch):
    """What process 0 of two says; the other one is played later, in the same process."""
    said = []
    leader._leading.clear()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(leader.distributed, "barrier", lambda name: None)
    monkeypatch.setattr(leader, "tell", lambda text: said.append(text) if text else said.pop(0))
    monkeypatch.setattr(
        leader,
        "_everywhere",
        lambda kind, checkpoint, settings: kind(MODEL, PARAMS, ByteTokenizer(), **settings),
    )
    return said


def record(patch, computed):
    """Has the results of all batches put into `computed`."""
    fetch = Predictor._fetch

    def recording(chosen, output):
        computed.append(fetch(chosen, output))
        return computed[-1]

    patch.setattr(Predictor, "_fetch", staticmethod(recording))


def test_the_others_compute_what_process_0_is_asked(wire, monkeypatch):
    plain = Predictor(MODEL, PARAMS, ByteTokenizer(), **SETTINGS)
    asked, computed = [], []
    with monkeypatch.context() as patch:
        record(patch, asked)
        leading = leader.load("a run", **SETTINGS)
        prompts = [*PROMPTS, TEMPLATED, [5, 6, 1]]
        own = [ANSWERS[: 1 + number % 3] for number in range(len(prompts))]
        for answers, normalized in ((ANSWERS, False), (own, True)):
            np.testing.assert_array_equal(
                leading.score(prompts, answers, length_normalized=normalized),
                plain.score(prompts, answers, length_normalized=normalized),
            )
        greedy = {"max_new_tokens": 4}
        assert leading.generate(prompts, **greedy) == plain.generate(prompts, **greedy)
        states = leading.pooled_states(PROMPTS[:3], ANSWERS, ("encoder_mean",))
        wanted = plain.pooled_states(PROMPTS[:3], ANSWERS, ("encoder_mean",))
        np.testing.assert_array_equal(states["encoder_mean"], wanted["encoder_mean"])
        assert leading.score([], ANSWERS).shape == (0, 3)
        leader.dismiss()
    with monkeypatch.context() as patch:
        record(patch, computed)
        leader.follow()
    assert wire == []
    # `plain` computed everything a second time.
    assert 2 * len(computed) == len(asked)
    everything = {(np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(asked)}
    assert {np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(computed)} == everything


def test_the_others_forget_the_models_that_process_0_has_forgotten(wire, monkeypatch):
    first, second = leader.load("first", **SETTINGS), leader.load("second", **SETTINGS)
    del first
    gc.collect()
    leader.load("third", **SETTINGS)
    leader.dismiss()
    made, alive = [], []
    everywhere = leader._everywhere

    def counting(*parts):
        alive.append([reference() is not None for reference in made])
        made.append(weakref.ref(predictor := everywhere(*parts)))
        return predictor

    monkeypatch.setattr(leader, "_everywhere", counting)
    leader.follow()
    assert alive == [[], [True], [False, True]]
    assert second.number == 1


def test_the_others_do_nothing_but_answer(wire, monkeypatch):
    leader.load("a run", **SETTINGS)
    leader._send({"ask": "__init__", "of": 0, "arguments": {}})
    leader.follow()  # as if it were the end
    assert wire == []
