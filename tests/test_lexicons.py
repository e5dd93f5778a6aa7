"""Where a word-level perturbation takes its words from, and what is said where there are none."""

import numpy as np
import pytest

from coin_jax import lexicons
from coin_jax.lexicons import choose_lexicon
from coin_jax.robustness.perturb import PerturbationError, perturb


class WordTokenizer:
    """Words that are one token, and one that is two."""

    words = ("", "film", "movie", "rain", "storm", "x1", "a")
    vocabulary_size = len(words)

    def decode(self, ids):
        return " ".join(self.words[token] for token in ids)

    def encode_batch(self, texts):
        return [[self.words.index(t)] if t != "storm" else [3, 3] for t in texts]


class Model(lexicons.Predictor):
    """Says what it is given."""

    def __init__(self, said=()):
        self.tokenizer, self.said, self.asked = WordTokenizer(), said, []
        vectors = np.zeros((9, 2), np.float32)  # more rows than tokens, as checkpoints have
        vectors[1:5] = [(1, 0), (0.9, 0.1), (0, 1), (1, 0.01)]
        self.params = {"embedding": vectors}

    def candidates(self, prompts, **settings):
        self.asked += prompts
        return [list(self.said) for _ in prompts]


@pytest.mark.parametrize("method", ["deepwordbug", "textbugger", "checklist", "stresstest"])
def test_methods_that_need_no_words_take_none(method):
    assert choose_lexicon(method) is None


def test_the_embedding_proposes_words_of_one_token():
    lexicon = choose_lexicon("textfooler", "embedding", Model)
    assert lexicon.synonyms("film", "film", 0, 4) == ["movie", "rain"]


def test_bert_attack_asks_the_model_to_fill_the_gap():
    model = Model(["<extra_id_0> good <extra_id_1>", "fine", "two words"])
    lexicon = choose_lexicon("bertattack", "auto", lambda: model)
    assert lexicon.synonyms("great", "a great film", 2, 7) == ["good", "fine"]
    assert model.asked == ["a <extra_id_0> film"]


def test_a_paraphraser_rewords_whole_prompts_and_keeps_their_places():
    model = Model(["Name the mood: good or bad. X", "Name the mood. X", "lost its place"])
    lexicon = choose_lexicon("semantic", paraphraser=lambda: model)
    text = "Say good or bad of this: {text}"
    copies = {
        perturb(
            text,
            "semantic",
            frozen=("good", "bad"),
            random=np.random.default_rng(seed),
            lexicon=lexicon,
        )
        for seed in range(8)
    }
    assert copies == {"Name the mood: good or bad. {text}"}
    assert set(model.asked) == {"paraphrase: Say good or bad of this: X"}


@pytest.mark.parametrize(
    ("method", "choice", "expected"),
    [
        ("semantic", "auto", "paraphraser"),
        ("textfooler", "embedding", "needs a model"),
        ("bertattack", "infilling", "needs a model"),
        ("unheard", "auto", "unheard"),
    ],
)
def test_what_is_missing_is_named(method, choice, expected):
    with pytest.raises(PerturbationError, match=expected):
        choose_lexicon(method, choice)


def test_a_model_that_is_not_ours_lends_no_words():
    with pytest.raises(PerturbationError, match="of ours"):
        choose_lexicon("textfooler", "embedding", object)
