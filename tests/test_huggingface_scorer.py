"""Models of transformers answer through the same interface as ours, and T5 answers the same."""

import sys

import generation_cases
import jax
import numpy as np
import pytest

from coin_jax.data.templates import Piece, Prompt
from coin_jax.data.tokenizer import ByteTokenizer
from coin_jax.huggingface_scorer import HuggingFaceScorer
from coin_jax.model import huggingface
from coin_jax.model.t5 import T5
from coin_jax.predictor import Predictor

torch = pytest.importorskip("torch", reason="models of transformers run in torch")
transformers = pytest.importorskip("transformers")

PROMPTS = ["a long prompt, by some way", "b", "", "what?", "c" * 28, "dd", "e e e", "a longer one"]
ANSWERS = ["yes", "no", "perhaps so"]
WORDS = ["<s>", "<e>", ":", "is", "it", "yes", "no", "perhaps", "so", *"abcdefg"]
QUESTIONS = ["is it a", "is it b or c :", "d", "is it a b c d e f g : ", "is it\nso :\n", "a b c"]


@pytest.fixture(scope="module", params=generation_cases.CONFIGS)
def pair(request, tmp_path_factory):
    """(ours, theirs): the same weights, and bytes as tokens."""
    config = generation_cases.CONFIGS[request.param]
    config = type(config)(**vars(config) | {"vocabulary_size": 384})
    params = generation_cases.parameters(config)
    folder = tmp_path_factory.mktemp(request.param)
    huggingface.save(folder, config, params)
    ours = Predictor(
        T5(config), jax.tree.map(np.asarray, params), ByteTokenizer(), max_input_length=20
    )
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder)
    theirs = HuggingFaceScorer(
        model, transformers.ByT5Tokenizer(), batch_size=3, max_input_length=20
    )
    return ours, theirs


@pytest.mark.parametrize("length_normalized", [False, True])
def test_t5_scores_as_our_own_does(pair, length_normalized):
    ours, theirs = (
        scorer.score(PROMPTS, ANSWERS, length_normalized=length_normalized) for scorer in pair
    )
    assert theirs.dtype == np.float32
    np.testing.assert_allclose(theirs, ours, rtol=2e-5)


def test_t5_generates_as_our_own_does(pair):
    ours, theirs = (scorer.generate(PROMPTS, max_new_tokens=6) for scorer in pair)
    # Bytes that are no UTF-8 are shown by our tokenizer and left out by theirs.
    assert theirs == [answer.replace("\ufffd", "").strip() for answer in ours]
    assert len(set(theirs)) > 1


def test_long_fields_are_cut_where_our_own_cuts_them(pair):
    prompts = [
        Prompt((Piece("Is ", False), Piece("x" * n, True), Piece(" it?", False)), "yes")
        for n in (1, 11, 12, 13, 40)
    ]
    prompts.append(Prompt((Piece("y" * 50, True), Piece("z" * 9, True)), "no"))
    prompts.append([*b"ids as they are, however many there are", 1])
    ours, theirs = (scorer.score(prompts, ANSWERS) for scorer in pair)
    np.testing.assert_allclose(theirs, ours, rtol=2e-5)
    np.testing.assert_allclose(theirs[2], theirs[4], rtol=1e-5)


def test_answers_of_its_own_score_as_common_ones_and_missing_ones_cannot_win(pair):
    _, theirs = pair
    common = theirs.score(PROMPTS, ANSWERS)
    own = [ANSWERS[: 1 + index % 3] for index in range(len(PROMPTS))]
    for row, (entry, scores) in enumerate(zip(own, theirs.score(PROMPTS, own), strict=True)):
        np.testing.assert_allclose(scores[: len(entry)], common[row, : len(entry)], rtol=2e-5)
        assert (scores[len(entry) :] == -np.inf).all()


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def decoder(request):
    """(a decoder-only model with a token a word, the special tokens before a prompt)."""
    import tokenizers

    vocabulary = {word: number for number, word in enumerate(WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<e>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    sizes = {"vocab_size": len(WORDS), "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    if request.param == "gpt2":
        sizes |= {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    else:
        around = {"single": "<s> $A <e>", "special_tokens": [("<s>", 0), ("<e>", 1)]}
        words.post_processor = tokenizers.processors.TemplateProcessing(**around)
        sizes |= {"hidden_size": 16, "intermediate_size": 24}
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    for parameter in model.parameters():  # so that answers differ
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<e>"
    )
    settings = {"batch_size": 2, "max_input_length": 12}
    return HuggingFaceScorer(model, tokenizer, **settings), [0] * (request.param == "llama")


def ids(text):
    return [WORDS.index(word) if word in WORDS else 1 for word in text.split()]


def logits_of(model, tokens):
    """Of one sequence alone, float64 [tokens, vocabulary]."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0].double().numpy()


def test_a_decoder_is_scored_by_the_tokens_of_the_answer_after_the_prompt(decoder):
    scorer, start = decoder
    scores = scorer.score(QUESTIONS, ANSWERS)
    normalized = scorer.score(QUESTIONS, ANSWERS, length_normalized=True)
    for row, question in enumerate(QUESTIONS):
        for place, answer in enumerate(ANSWERS):
            prompt = start + ids(question)
            logits = logits_of(scorer.model, prompt + ids(answer))[len(prompt) - 1 : -1]
            likelihood = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            expected = sum(step[token] for step, token in zip(likelihood, ids(answer), strict=True))
            np.testing.assert_allclose(scores[row, place], expected, rtol=1e-4)
            length = len(answer.split())
            np.testing.assert_allclose(normalized[row, place], expected / length, rtol=1e-4)


@pytest.mark.parametrize("space", ["Ġ", "▁"])
def test_an_answer_begins_as_a_word_in_a_text_does(space):
    """Tokenizers tell `yes` after a space from `yes` at the beginning, each kind in its way."""
    import tokenizers

    kinds = {"Ġ": tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)}
    kinds["▁"] = tokenizers.pre_tokenizers.Metaspace()
    vocabulary = ["?", ":", "a", "yes", *(f"{space}{word}" for word in (":", "a", "yes"))]
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: n for n, w in enumerate(vocabulary)}, unk_token="?")
    )
    words.pre_tokenizer = kinds[space]
    config = transformers.GPT2Config(
        vocab_size=7, n_embd=16, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
    scorer = HuggingFaceScorer(transformers.GPT2LMHeadModel(config), tokenizer)
    logits = logits_of(scorer.model, [2])[-1]
    expected = logits[6] - np.log(np.exp(logits).sum())
    np.testing.assert_allclose(scorer.score([[2]], ["yes"]), [[expected]], rtol=1e-5)


def test_a_decoder_generates_greedily_whatever_the_batch(decoder):
    scorer, start = decoder
    expected = []
    for question in QUESTIONS:
        tokens = start + ids(question)
        for _ in range(5):
            tokens.append(int(logits_of(scorer.model, tokens)[-1].argmax()))
            if tokens[-1] == 1:
                break
        new = tokens[len(start + ids(question)) :]
        expected.append(" ".join(WORDS[token] for token in new if token > 1))
    assert scorer.generate(QUESTIONS, max_new_tokens=5) == expected
    assert len(set(expected)) > 1


def test_the_end_of_a_text_or_of_its_longest_field_is_cut_for_a_decoder(decoder):
    scorer, start = decoder
    room = 12 - len(start)
    long = Prompt((Piece("is it ", False), Piece("a b " * 20, True), Piece(": ", False)), "yes")
    short = "is it " + " ".join(["a", "b"] * 5)[: 2 * (room - 3) - 1] + " :"
    assert len(ids(short)) == room
    scores = scorer.score([long, short, "a b " * 20, ("a b " * 20)[: 2 * room]], ANSWERS)
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)
    np.testing.assert_allclose(scores[2], scores[3], rtol=1e-5)


def test_a_saved_model_is_loaded_with_its_tokenizer(decoder, tmp_path):
    scorer, _ = decoder
    scorer.model.save_pretrained(tmp_path)
    scorer.tokenizer.save_pretrained(tmp_path)
    loaded = HuggingFaceScorer.from_pretrained(str(tmp_path), device="cpu", max_input_length=12)
    np.testing.assert_allclose(
        loaded.score(QUESTIONS, ANSWERS), scorer.score(QUESTIONS, ANSWERS), rtol=1e-5
    )


def test_without_torch_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch"):
        HuggingFaceScorer.from_pretrained("google/flan-t5-small")


def test_questions_without_answers_are_refused(decoder):
    scorer, _ = decoder
    with pytest.raises(ValueError, match="at least one answer"):
        scorer.score(QUESTIONS, [])
    with pytest.raises(ValueError, match="6 prompts, but 2 lists"):
        scorer.score(QUESTIONS, [["yes"], ["no"]])
