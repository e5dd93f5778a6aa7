"""Tokenizers behind one small interface, and prompts turned into ids that fit a length."""

from __future__ import annotations

import bisect
import functools
import io
import itertools
import pathlib
import re
import string
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from coin_jax.config import TokenizerConfig
from coin_jax.data.sources import DataError
from coin_jax.data.templates import Prompt
from coin_jax.data.tokenizer_files import check_files, check_sentencepiece, without_panic
from coin_jax.untrusted import TOKENIZER_FILES, UntrustedError, model_folder, read_bytes

SENTINELS = 100
"""Of T5's vocabulary; they mark masked spans in pretraining."""
MODEL_FILE = "spiece.model"
_TRAINING_LINES = 200_000
"""Lines a SentencePiece model is trained on at most; they take seconds."""
_REMEMBERED_WORDS = 1 << 18
"""Tens of megabytes."""
_TIE = 0.05
"""Log-probability: far above what float32 sums over a text are off by."""


class Tokenizer(Protocol):
    vocabulary_size: int
    """Ids are below it."""
    pad_id: int
    eos_id: int
    sentinel_ids: tuple[int, ...]
    """The first sentinel first; T5 numbers them downwards."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without an end-of-sequence."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without padding and end-of-sequence."""

    def prefix(self, text: str, tokens: int) -> str:
        """The beginning of the text that its first `tokens` tokens spell."""

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes what `make_tokenizer` with `path=folder` and the same kind reads back."""


class HuggingFaceTokenizer:
    """Any tokenizer of the transformers library; a tokenizer.json needs nothing beside it.

    Code that a tokenizer brings along is never run.

    Raises: DataError for what holds none, or one that makes more of a text than memory can hold.
    """

    def __init__(self, path: str):
        import transformers  # here, because it takes seconds and the other kinds do without

        try:
            if path.endswith(".json"):
                check_files(pathlib.Path(path))
                # The file alone names no pad and eos token, and saving would forget them.
                names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
                self._tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=path, **names)
            else:
                folder = model_folder(path, (*TOKENIZER_FILES, "config.json"))
                check_files(pathlib.Path(folder))
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                    folder, trust_remote_code=False, local_files_only=True
                )
            self._fast = getattr(self._tokenizer, "backend_tokenizer", None)
            if self._fast is not None:
                self._fast.no_padding()  # either would lengthen or cut every text unasked
                self._fast.no_truncation()
        except Exception as error:  # the library raises many kinds for a missing or broken file
            raise DataError(
                f"tokenizer.path = {path!r}: no tokenizer could be loaded from it (a Hugging Face "
                f"name, a folder with tokenizer files, or a tokenizer.json): {error}"
            ) from error
        highest = max(self._tokenizer.get_vocab().values(), default=0)
        self.vocabulary_size = max(len(self._tokenizer), highest + 1)
        self.pad_id = self._tokenizer.pad_token_id
        self.eos_id = self._tokenizer.eos_token_id
        if self.pad_id is None or self.eos_id is None:
            raise DataError(f"tokenizer.path = {path!r}: T5 needs a padding and an end token")
        self.sentinel_ids = self._find_sentinels()

    def _find_sentinels(self) -> tuple[int, ...]:
        vocabulary = self._tokenizer.get_vocab()
        ids = []
        for number in itertools.count():
            names = (f"<extra_id_{number}>", f"▁<extra_id_{number}>")  # the latter in mT5
            found = [vocabulary[name] for name in names if name in vocabulary]
            if not found:
                return tuple(ids)
            ids.append(found[0])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if self._fast is None:
            return self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        with without_panic():
            return [
                encoding.ids
                for encoding in self._fast.encode_batch_fast(list(texts), add_special_tokens=False)
            ]

    def encode(self, text: str) -> list[int]:
        if self._fast is None:
            return self._tokenizer(text, add_special_tokens=False)["input_ids"]
        with without_panic():
            return self._fast.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode(
            [int(token) for token in ids if token not in (self.pad_id, self.eos_id)],
            clean_up_tokenization_spaces=False,
        )

    def prefix(self, text: str, tokens: int) -> str:
        if self._fast is None:
            return self.decode(self.encode(text)[:tokens])
        with without_panic():
            offsets = self._fast.encode(text, add_special_tokens=False).offsets
        # Up to where the first token too many begins: a letter may make several tokens.
        return text[: offsets[tokens][0]] if tokens < len(offsets) else text

    def save(self, folder: str | pathlib.Path) -> None:
        self._tokenizer.save_pretrained(str(folder))


class SentencePieceTokenizer:
    """A SentencePiece model in T5's convention: pad 0, eos 1, unk 2, and sentinels at the end.

    T5's own model turns line breaks into spaces. A model that the project trains has a piece for
    them, beside which blanks are dropped, so that a word is the same piece on both sides.
    """

    _LINE_BREAK = " \n"

    def __init__(self, model: bytes, name: str = "SentencePiece model"):
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._model = model
        self._pieces = self._processor.get_piece_size()
        self.vocabulary_size = self._pieces + SENTINELS
        self.pad_id = self._processor.pad_id()
        self.eos_id = self._processor.eos_id()
        if self.pad_id < 0 or self.eos_id < 0:
            raise DataError(
                f"{name}: has no padding or no end token, which T5 needs; train it with pad_id=0, "
                "eos_id=1, unk_id=2, bos_id=-1"
            )
        self.sentinel_ids = tuple(reversed(range(self._pieces, self.vocabulary_size)))
        line_break = self._LINE_BREAK.replace(" ", "▁")
        self._keeps_lines = self._processor.piece_to_id(line_break) != self._processor.unk_id()
        self._words: dict[str, list[int] | None] | None = {} if self._splits_at_spaces() else None
        try:
            self._is_unigram = bool(self._processor.nbest_encode_as_ids("a", 2))
        except RuntimeError:  # byte-pair models know one way only to split a text
            self._is_unigram = False

    def _splits_at_spaces(self) -> bool:
        """Whether a text's ids are those of its words, one after the other.

        So it is where no piece goes on behind a space and blanks in a row count as one, as in T5's
        model and in those trained here.
        """
        pieces = (self._processor.id_to_piece(token) for token in range(self._pieces))
        return all("▁" not in piece[1:] for piece in pieces) and self._processor.encode(
            " a  b "
        ) == self._processor.encode("a") + self._processor.encode("b")

    @classmethod
    def load(cls, path: str | pathlib.Path) -> SentencePieceTokenizer:
        path = pathlib.Path(path)
        file = path / MODEL_FILE if path.is_dir() else path
        try:
            content = read_bytes(file)
            check_sentencepiece(content)
            return cls(content, str(file))
        except UntrustedError as error:
            raise DataError(f"tokenizer.path: {file}: {error}") from None
        except OSError as error:
            raise DataError(f"tokenizer.path: {file} cannot be read: {error.strerror}") from None
        except RuntimeError as error:
            raise DataError(f"tokenizer.path: {file} is no SentencePiece model: {error}") from None

    @classmethod
    def train(cls, texts: Iterable[str], pieces: int) -> SentencePieceTokenizer:
        """Trains on the first lines of the texts; the same texts give the same model.

        Byte-pair merges (Sennrich et al. 2016) rather than T5's unigrams: of a text with few
        different words, unigrams keep hardly any word whole. Fewer pieces than asked for are made
        where the text has no more.
        """
        import sentencepiece

        lines = (line for text in texts for line in text.split("\n") if line.strip())
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=itertools.islice(lines, _TRAINING_LINES),
                model_writer=model,
                vocab_size=pieces,
                model_type="bpe",
                hard_vocab_limit=False,
                pad_id=0,
                eos_id=1,
                unk_id=2,
                bos_id=-1,
                normalization_rule_name="nfkc",
                user_defined_symbols=[cls._LINE_BREAK.replace(" ", "▁")],
                # Noisy prompts hold letters that the training text may lack.
                required_chars=string.ascii_letters + string.digits + string.punctuation,
                num_threads=1,  # sums in the order of threads would differ between runs
                minloglevel=2,
            )
        except RuntimeError as error:
            raise DataError(
                f"a SentencePiece model of tokenizer.vocabulary_size = {pieces} pieces cannot be "
                f"trained on this text: {error}"
            ) from None
        return cls(model.getvalue())

    def _spaced(self, text: str) -> str:
        return text.replace("\n", " \n ") if self._keeps_lines else text

    def _unspaced(self, text: str) -> str:
        return re.sub(" ?\n ?", "\n", text) if self._keeps_lines else text

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode(self, text: str) -> list[int]:
        """Exactly SentencePiece's ids; words that came before are looked up, which is several times
        as fast."""
        words, spaced = self._words, self._spaced(text)
        if words is None:
            return self._processor.encode(spaced)
        ids: list[int] = []
        for word in spaced.split(" "):
            try:
                known = words[word]
            except KeyError:
                if len(words) >= _REMEMBERED_WORDS:
                    words.clear()
                known = words[word] = self._word_ids(word)
            if known is None:
                return self._processor.encode(spaced)
            ids += known
        return ids

    def _word_ids(self, word: str) -> list[int] | None:
        """A word's ids, or None where its two best splits score alike, so that rounding, and with
        it the rest of the text, decides between them."""
        if self._is_unigram:
            scores = [
                sum(map(self._processor.get_score, ids))
                for ids in self._processor.nbest_encode_as_ids(word, 2)
            ]
            if len(scores) == 2 and scores[0] - scores[1] < _TIE:
                return None
        return self._processor.encode(word)

    def decode(self, ids: Iterable[int]) -> str:
        """Sentinels are written `<extra_id_0>` and so on."""
        parts: list[str] = []
        for is_sentinel, run in itertools.groupby(map(int, ids), lambda i: i >= self._pieces):
            if is_sentinel:
                parts.extend(f"<extra_id_{self.vocabulary_size - 1 - token}>" for token in run)
            else:
                parts.append(self._processor.decode(list(run)))
        return self._unspaced(" ".join(part for part in parts if part))

    def prefix(self, text: str, tokens: int) -> str:
        # Pieces, not ids: unknown characters are spelled out in them.
        pieces = self._processor.encode(self._spaced(text), out_type=str)[:tokens]
        return self._unspaced("".join(pieces).replace("▁", " ").lstrip(" "))

    def save(self, folder: str | pathlib.Path) -> None:
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL_FILE).write_bytes(self._model)


class ByteTokenizer:
    """UTF-8 bytes as ByT5 numbers them (Xue et al. 2022): pad 0, eos 1, unk 2, byte b is b + 3,
    then 125 ids that the published models keep for sentinels."""

    _FIRST_BYTE = 3
    vocabulary_size = 384
    pad_id = 0
    eos_id = 1
    sentinel_ids = tuple(range(383, 258, -1))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode(self, text: str) -> list[int]:
        content = np.frombuffer(text.encode("utf-8"), np.uint8)
        return (content.astype(np.int32) + self._FIRST_BYTE).tolist()

    def decode(self, ids: Iterable[int]) -> str:
        """Bytes that are no UTF-8 become replacement characters; sentinels are left out."""
        content = (int(token) - self._FIRST_BYTE for token in ids)
        return bytes(byte for byte in content if 0 <= byte < 256).decode("utf-8", "replace")

    def prefix(self, text: str, tokens: int) -> str:
        return text.encode("utf-8")[:tokens].decode("utf-8", "ignore")

    def save(self, folder: str | pathlib.Path) -> None:
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)


def make_tokenizer(config: TokenizerConfig, texts: Iterable[str] | None = None) -> Tokenizer:
    """Builds the tokenizer; `texts` train a SentencePiece model where the config names no path.

    A folder that `save` wrote is a path for the same kind.

    Raises: DataError naming the path that holds no such tokenizer.
    """
    if config.kind == "bytes":
        return ByteTokenizer()
    if config.kind == "huggingface":
        return HuggingFaceTokenizer(config.path)
    if config.path:
        return SentencePieceTokenizer.load(config.path)
    if texts is None:
        raise DataError(
            "tokenizer.path is empty and there is no training text here to train a SentencePiece "
            "model on; name the .model file or the folder that a run saved it in"
        )
    return SentencePieceTokenizer.train(texts, config.vocabulary_size)


class EncodedPrompt(NamedTuple):
    input: np.ndarray
    """[length] int32, ends with eos; at most the longest input allowed."""
    target: np.ndarray
    """[length] int32, the answer, ends with eos."""
    was_cut: bool
    """Whether input fields were shortened."""


def encode_prompts(
    tokenizer: Tokenizer, prompts: Sequence[Prompt], max_input: int, max_target: int
) -> list[EncodedPrompt]:
    """Ids of prompts and answers, the prompts' fields shortened where they do not fit.

    A prompt that fits is tokenised as one text. Of one that does not, the longest field loses
    tokens at its end until it is as long as the next, then both, and so on.

    Args:
      max_input, max_target: lengths in tokens, end-of-sequence included.

    Raises: DataError naming the prompt where its fixed parts alone, or its answer, are too long.
    """
    encoded = []
    texts = [prompt.text for prompt in prompts]
    for prompt, ids in zip(prompts, tokenizer.encode_batch(texts), strict=True):
        was_cut = len(ids) >= max_input
        if was_cut:
            ids = _encode_cut(tokenizer, prompt, max_input - 1)
        target = _encode_answer(tokenizer, prompt.answer)
        if len(target) >= max_target:
            raise DataError(
                f"the answer {_shown(prompt.answer)} has {len(target)} tokens and an end token; "
                f"batch.decoder_length allows {max_target}"
            )
        encoded.append(
            EncodedPrompt(
                np.array([*ids, tokenizer.eos_id], np.int32),
                np.array([*target, tokenizer.eos_id], np.int32),
                was_cut,
            )
        )
    return encoded


def encode_prompt(
    tokenizer: Tokenizer, prompt: Prompt, max_input: int, max_target: int
) -> EncodedPrompt:
    """One prompt, as `encode_prompts` does it."""
    return encode_prompts(tokenizer, [prompt], max_input, max_target)[0]


@functools.lru_cache(maxsize=4096)
def _encode_answer(tokenizer: Tokenizer, answer: str) -> list[int]:
    # Few answers are asked for again and again; callers only read the list.
    return tokenizer.encode(answer)


def _encode_cut(tokenizer: Tokenizer, prompt: Prompt, max_tokens: int) -> list[int]:
    """Ids of the prompt with its fields shortened so that at most max_tokens remain.

    The whole text is tokenised again after each cut, because tokens may join across the seam;
    what that adds is taken off the fields in the next round.
    """
    pieces = prompt.pieces
    fields = [number for number, piece in enumerate(pieces) if piece.is_field]
    lengths = [len(tokenizer.encode(pieces[number].text)) for number in fields]
    texts = [piece.text for piece in pieces]
    ids = tokenizer.encode("".join(texts))
    while len(ids) > max_tokens and any(lengths):
        lengths = shorten_longest(lengths, len(ids) - max_tokens)
        for number, length in zip(fields, lengths, strict=True):
            texts[number] = tokenizer.prefix(pieces[number].text, length)
        ids = tokenizer.encode("".join(texts))
    if len(ids) > max_tokens:
        raise DataError(
            f"batch.encoder_length allows {max_tokens} tokens and an end token, and without its "
            f"input fields this prompt still has {len(ids)}: {_shown(''.join(texts))}"
        )
    return ids


def shorten_longest(lengths: Sequence[int], excess: int) -> list[int]:
    """Lengths with `excess` taken off, each unit from the longest one (of equals, the last)."""
    keep = max(0, sum(lengths) - excess)
    # The highest level that all can be cut to; what it leaves over goes to the first ones.
    level = bisect.bisect_right(
        range(max(lengths, default=0)), keep, key=lambda top: sum(min(n, top + 1) for n in lengths)
    )
    spare = keep - sum(min(length, level) for length in lengths)
    shortened = []
    for length in lengths:
        extra = int(length > level and spare > 0)
        shortened.append(min(length, level + extra))
        spare -= extra
    return shortened


def _shown(text: str, limit: int = 200) -> str:
    return repr(text if len(text) <= limit else text[:limit] + " ...")
