"""Tokenizers: their conventions, saving and loading, and prompts cut to a length."""

import io
import itertools
import json
import random

import numpy as np
import pytest
import sentencepiece
from data_files import real_data
from sentencepiece import sentencepiece_model_pb2

from coin_jax.config import TokenizerConfig
from coin_jax.data.sources import DataError
from coin_jax.data.templates import Piece, Prompt
from coin_jax.data.tokenizer import (
    ByteTokenizer,
    SentencePieceTokenizer,
    encode_prompt,
    encode_prompts,
    make_tokenizer,
    shorten_longest,
)

TEXT = [
    "Three red apples were carried to the market.\nWhat colour are the things?",
    "Is the following sentence about rain or about sun?\n\nOPTIONS:\n- rain\n- sun",
    "In the evening the furious sailor hides five white shovels outside the library.",
    "Review: a film that is never dull, and never quite true.",
]


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory):
    """A tokenizer.json of T5's kind: unigrams behind a Metaspace, an eos put after the text."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    characters = sorted(set("".join(TEXT) + "▁") - {"\n", " "})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁the", -2.0), ("▁about", -3.0)]
    pieces += [(character, -5.0) for character in characters]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(
        ["<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in range(9, -1, -1))]
    )
    file = tmp_path_factory.mktemp("huggingface") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


@pytest.fixture(scope="module")
def trained():
    return make_tokenizer(TokenizerConfig("sentencepiece", "", 300), TEXT)


@pytest.fixture(params=["huggingface", "sentencepiece", "bytes"])
def config_and_tokenizer(request, tokenizer_json, trained):
    config = TokenizerConfig(request.param, str(tokenizer_json))
    if request.param == "sentencepiece":
        return config, trained
    return config, make_tokenizer(config)


def test_every_kind_gives_text_back_and_ends_nothing_itself(config_and_tokenizer):
    _, tokenizer = config_and_tokenizer
    for text in TEXT:
        ids = tokenizer.encode(text)
        spaced = tokenizer.decode(ids)
        assert spaced.split() == text.split()
        assert tokenizer.eos_id not in ids
        assert all(2 < token < tokenizer.vocabulary_size for token in ids)
        assert tokenizer.decode([*ids, tokenizer.eos_id, tokenizer.pad_id]) == spaced
    assert tokenizer.encode_batch(TEXT) == [tokenizer.encode(text) for text in TEXT]
    assert (tokenizer.pad_id, tokenizer.eos_id) == (0, 1)


def test_what_a_tokenizer_saves_is_read_back_by_the_same_kind(config_and_tokenizer, tmp_path):
    config, tokenizer = config_and_tokenizer
    tokenizer.save(tmp_path / "saved")
    loaded = make_tokenizer(TokenizerConfig(config.kind, str(tmp_path / "saved")))
    assert loaded.encode_batch(TEXT) == tokenizer.encode_batch(TEXT)
    for name in ("vocabulary_size", "pad_id", "eos_id", "sentinel_ids"):
        assert getattr(loaded, name) == getattr(tokenizer, name)


def test_sentinels_run_downwards_and_belong_to_no_text(config_and_tokenizer):
    _, tokenizer = config_and_tokenizer
    ids = tokenizer.sentinel_ids
    assert list(ids) == list(range(ids[0], ids[0] - len(ids), -1))
    assert ids[0] == tokenizer.vocabulary_size - 1
    assert not set(ids).intersection(*map(set, tokenizer.encode_batch(TEXT)))


def test_a_prefix_is_what_the_first_tokens_spell(config_and_tokenizer):
    _, tokenizer = config_and_tokenizer
    for text in TEXT:
        ids = tokenizer.encode(text)
        for count in range(len(ids) + 1):
            prefix = tokenizer.prefix(text, count)
            assert " ".join(text.split()).startswith(" ".join(prefix.split()))
            assert len(tokenizer.encode(prefix)) <= count
        assert tokenizer.prefix(text, 0) == ""
        assert tokenizer.prefix(text, len(ids)).split() == text.split()


def test_bytes_are_numbered_as_byt5_numbers_them():
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("aé\n") == [97 + 3, 0xC3 + 3, 0xA9 + 3, 10 + 3]
    assert tokenizer.vocabulary_size == 384  # of the published models
    assert tokenizer.decode([100, 0xC3 + 3, 1, 0, 383]) == "a\ufffd"
    assert tokenizer.prefix("aé", 2) == "a"  # no half characters


# SentencePiece


def train_model(texts, **settings) -> bytes:
    """A model trained by the library itself, in T5's convention unless told otherwise."""
    model = io.BytesIO()
    convention = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        num_threads=1,
        minloglevel=2,
        **convention | settings,
    )
    return model.getvalue()


def test_a_trained_model_depends_on_its_texts_alone(trained, tmp_path):
    again = make_tokenizer(TokenizerConfig("sentencepiece", "", 300), iter(TEXT))
    again.save(tmp_path / "a")
    trained.save(tmp_path / "b")
    first, second = ((tmp_path / name / "spiece.model").read_bytes() for name in "ab")
    assert first == second


def test_a_trained_model_keeps_line_breaks_and_words_beside_them(trained):
    text = "the market.\nWhat colour\n\nOPTIONS:\n- rain"
    assert trained.decode(trained.encode(text)) == text
    word = trained.encode("rain")
    assert trained.encode("a\nrain")[-len(word) :] == word
    assert trained.encode("a rain")[-len(word) :] == word


def test_a_trained_model_spells_all_ascii(trained):
    noise = "qZ~`@#%^{}|\\ 0123456789"
    assert 2 not in trained.encode(noise)
    assert trained.decode(trained.encode(noise)) == noise


def test_sentinels_stand_behind_the_pieces_and_are_shown_by_name(trained):
    pieces = trained.vocabulary_size - 100
    assert trained.sentinel_ids[0] == pieces + 99
    assert trained.sentinel_ids[-1] == pieces
    ids = [trained.sentinel_ids[0], *trained.encode("the"), trained.sentinel_ids[1], 1]
    assert trained.decode(ids) == "<extra_id_0> the <extra_id_1>"


def test_few_texts_make_a_smaller_vocabulary_and_none_an_error():
    assert SentencePieceTokenizer.train(["a b a b"], 5000).vocabulary_size < 300
    for texts, pieces in (([], 500), (TEXT, 50)):
        with pytest.raises(DataError, match=rf"tokenizer\.vocabulary_size = {pieces} pieces"):
            SentencePieceTokenizer.train(texts, pieces)


def test_looking_words_up_gives_the_ids_of_sentencepiece_itself(tmp_path):
    """With unigrams as in T5's model, where "aba" = "ab" + "a" = "a" + "ba" score alike, so that
    rounding, and with it the text before, decides between them."""
    generator = random.Random(0)
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(train_model(["ab ba abc ca abba cab"] * 9, vocab_size=16))
    del model.pieces[3:]
    for text, score in {"▁": -3.3, "a": -2.7, "b": -2.7, "c": -4.1, "ab": -1.9, "ba": -1.9}.items():
        model.pieces.add(piece=text, score=score)
    (tmp_path / "ties.model").write_bytes(model.SerializeToString())
    direct = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "ties.model"))
    tokenizer = make_tokenizer(TokenizerConfig("sentencepiece", str(tmp_path / "ties.model")))
    texts = [
        "".join(generator.choices("aaabbbc   \n\t\u00a0\u0301½€", k=generator.randrange(90)))
        for _ in range(5000)
    ]
    assert [tokenizer.encode(text) for text in texts] == [direct.encode(text) for text in texts]
    # The ties are real: what "aba" gives depends on where it stands.
    first = direct.encode("aba")
    assert any(direct.encode(f"{text} aba")[-len(first) :] != first for text in texts)


def test_a_model_whose_pieces_go_on_behind_spaces_is_encoded_as_a_whole(tmp_path):
    text = ["hello big world", "hello big moon", "hello big hall"] * 30
    model = train_model(text, vocab_size=40, model_type="bpe", split_by_whitespace=False)
    (tmp_path / "m.model").write_bytes(model)
    direct = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    tokenizer = make_tokenizer(TokenizerConfig("sentencepiece", str(tmp_path / "m.model")))
    assert tokenizer.encode("hello big world") == direct.encode("hello big world")
    assert any("▁" in direct.id_to_piece(i)[1:] for i in direct.encode("hello big world"))


def test_a_model_without_padding_or_end_is_refused(tmp_path):
    (tmp_path / "m.model").write_bytes(train_model(TEXT, vocab_size=60, pad_id=-1))
    with pytest.raises(DataError, match=r"m\.model: has no padding or no end token"):
        make_tokenizer(TokenizerConfig("sentencepiece", str(tmp_path / "m.model")))


def test_a_tokenizer_that_cannot_be_loaded_is_an_error_that_names_the_path(tmp_path):
    (tmp_path / "broken.json").write_text(json.dumps({"no": "tokenizer"}))
    (tmp_path / "broken.model").write_bytes(b"no model")
    (tmp_path / "empty").mkdir()
    for kind, name in itertools.product(
        ("huggingface", "sentencepiece"), ("broken.json", "broken.model", "empty", "missing")
    ):
        with pytest.raises(DataError, match=f"tokenizer.path.*{name}"):
            make_tokenizer(TokenizerConfig(kind, str(tmp_path / name)))
    with pytest.raises(DataError, match=r"tokenizer\.path is empty"):
        make_tokenizer(TokenizerConfig("sentencepiece", ""))


# Prompts


def prompt_of(*pieces: str, answer="yes") -> Prompt:
    """Pieces in asterisks are fields."""
    return Prompt(tuple(Piece(p.strip("*"), p.startswith("*")) for p in pieces), answer)


def test_a_prompt_that_fits_is_tokenised_as_one_text(config_and_tokenizer):
    _, tokenizer = config_and_tokenizer
    prompt = prompt_of('Review: "', "*a film that is never dull*", '" true?', answer="never true")
    whole = [*tokenizer.encode('Review: "a film that is never dull" true?'), 1]
    encoded = encode_prompt(tokenizer, prompt, len(whole), 100)
    assert encoded.input.tolist() == whole
    assert encoded.target.tolist() == [*tokenizer.encode("never true"), 1]
    assert not encoded.was_cut
    assert encoded.input.dtype == encoded.target.dtype == np.int32


def test_the_longest_field_is_cut_and_nothing_else(config_and_tokenizer):
    _, tokenizer = config_and_tokenizer
    short, long = "the rain", " ".join(["the furious sailor hides five white shovels"] * 9)
    prompt = prompt_of("Is it ", f"*{short}*", " or so?\n", f"*{long}*", "\nOPTIONS:\n- rain")
    whole = len(tokenizer.encode(prompt.text)) + 1
    kept = prompt_of(*(piece.text for piece in prompt.pieces[:3]), long[:27], "\nOPTIONS:\n- rain")
    for limit in range(whole - 1, len(tokenizer.encode(kept.text)), -5):
        encoded = encode_prompt(tokenizer, prompt, limit, 100)
        assert encoded.was_cut
        assert limit - 3 <= len(encoded.input) <= limit
        text = " ".join(tokenizer.decode(encoded.input).split())
        start, end = "Is it the rain or so? ", "OPTIONS: - rain"
        assert text.startswith(start.strip())
        assert text.endswith(end)
        assert long.startswith(text[len(start) : -len(end)].strip())


def test_two_long_fields_are_cut_to_the_same_length():
    prompt = prompt_of("*" + "a" * 50 + "*", "|", "*" + "b" * 80 + "*", "|", "*" + "c" * 5 + "*")
    encoded = encode_prompt(ByteTokenizer(), prompt, 48, 9)
    assert ByteTokenizer().decode(encoded.input) == "a" * 20 + "|" + "b" * 20 + "|" + "c" * 5


def test_lengths_lose_from_the_longest_first():
    assert shorten_longest([5, 9, 7], 1) == [5, 8, 7]
    assert shorten_longest([5, 9, 7], 5) == [5, 6, 5]
    assert shorten_longest([5, 9, 7], 7) == [5, 5, 4]
    assert shorten_longest([5, 9, 7], 99) == [0, 0, 0]
    assert shorten_longest([], 3) == []


def test_cutting_a_very_long_field_takes_no_longer_than_tokenising_it():
    prompt = prompt_of("a", "*" + "b" * 3_000_000 + "*", "c")
    assert len(encode_prompt(ByteTokenizer(), prompt, 100, 9).input) == 100


def test_fixed_parts_that_are_too_long_alone_are_an_error_that_shows_the_prompt():
    prompt = prompt_of("Instruction. ", "*field*", " Options.")
    fixed = len("Instruction.  Options.")
    assert len(encode_prompt(ByteTokenizer(), prompt, fixed + 1, 9).input) == fixed + 1
    with pytest.raises(DataError, match=r"allows 21 tokens .* still has 22: 'Instruction.  Opt"):
        encode_prompt(ByteTokenizer(), prompt, fixed, 9)


def test_an_answer_that_is_too_long_is_an_error_that_shows_it():
    prompts = [prompt_of("Is it?", answer="yes"), prompt_of("Is it?", answer="perhaps")]
    assert len(encode_prompts(ByteTokenizer(), prompts, 99, 8)) == 2
    with pytest.raises(DataError, match=r"answer 'perhaps' has 7 tokens .* allows 7"):
        encode_prompts(ByteTokenizer(), prompts, 99, 7)


# T5's own vocabulary


@pytest.fixture(scope="module")
def t5_tokenizers():
    return [
        make_tokenizer(TokenizerConfig(kind, str(real_data("..", "tokenizer", name))))
        for kind, name in (
            ("huggingface", "t5-tokenizer.json"),
            ("sentencepiece", "t5-spiece.model"),
        )
    ]


def test_t5s_vocabulary_is_read_as_t5_numbers_it(t5_tokenizers):
    for tokenizer in t5_tokenizers:
        assert tokenizer.vocabulary_size == 32100
        assert tokenizer.sentinel_ids == tuple(range(32099, 31999, -1))
        assert (tokenizer.pad_id, tokenizer.eos_id) == (0, 1)
        # The example of T5's own documentation.
        assert tokenizer.encode("The house is wonderful.") == [37, 629, 19, 1627, 5]


def test_both_forms_of_t5s_vocabulary_agree_on_real_prompts(t5_tokenizers):
    lines = real_data("tasks", "mrpc.dev.jsonl").read_text(encoding="utf-8").splitlines()
    texts = ["{sentence1}\n\n{sentence2}\nSame?".format(**json.loads(x)["inputs"]) for x in lines]
    huggingface, own = t5_tokenizers
    assert huggingface.encode_batch(texts) == own.encode_batch(texts)
