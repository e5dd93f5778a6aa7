"""Models of the transformers library as an `AnswerScorer`: encoder-decoders and decoder-only ones.

Needs torch, which coin_jax itself does without. T5 is answered as `coin_jax.predictor.Predictor`
answers it; other models can so be measured and attacked beside ours.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from coin_jax.data.templates import Prompt
from coin_jax.data.tokenizer import encode_prompts
from coin_jax.data.tokenizer_files import check_files
from coin_jax.untrusted import UntrustedError, model_folder, printable, read_json

_TOKENS_OF_GENERATION = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("forced_bos_token_id", "forced_eos_token_id"),
)
"""All that is taken from a generation_config.json."""
_BEFORE_ANSWER = ":"
"""What an answer is tokenised after, so that its first token is that of a word in a text."""


class HuggingFaceScorer:
    """Answers and scores prompts; an `AnswerScorer` of coin_jax.robustness.scoring.

    A prompt is text, which loses its end where it is too long, a `coin_jax.data.templates.Prompt`,
    whose input fields lose theirs, or token ids, which are taken as they are.

    Decoder-only models go on with the prompt: white space at its end is dropped, and a space and
    the answer follow. The likelihood is that of the answer's tokens alone, since what such a model
    puts after them is seldom an end; so no answer should begin with another. Of encoder-decoders
    the end-of-sequence token counts too. No chat template is applied.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, batch_size: int = 32, max_input_length: int = 512
    ):
        """`model` and `tokenizer` as the auto classes of transformers load them.

        `batch_size`: prompts at a time. `max_input_length`: tokens a prompt is cut to, those that
        the tokenizer adds included.
        """
        self.model, self.tokenizer = model.eval(), tokenizer
        self.batch_size, self.max_input_length = batch_size, max_input_length
        self._is_encoder_decoder = model.config.is_encoder_decoder
        if self._is_encoder_decoder:
            settings = (model.generation_config, model.config)
            starts = (getattr(entry, "decoder_start_token_id", None) for entry in settings)
            self._decoder_start = next((start for start in starts if start is not None), None)
            if self._decoder_start is None:
                raise ValueError("the model's configuration has no decoder_start_token_id")
        ends = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self._pad = next(token for token in ends if token is not None)
        self._tokens = _Tokens(tokenizer)
        self._before, self._after = self._tokens.around()
        if not self._is_encoder_decoder:
            self._after = []  # an end token there would end the text before its answer
        self._takes_last = "logits_to_keep" in inspect.signature(model.forward).parameters

    @classmethod
    def from_pretrained(
        cls, name: str, *, device: str | None = None, dtype: str = "auto", **settings: Any
    ) -> HuggingFaceScorer:
        """Loads a folder or name of the hub, onto the GPU where there is one.

        Only safetensors are read and only what `HUB_PATTERNS` names is fetched: neither pickles nor
        code, so a model of a kind that transformers does not know cannot be loaded.

        `dtype` as transformers takes it; `auto` is that of the checkpoint. `settings` as for the
        constructor. Raises ImportError, with what to install, where torch is missing, and
        ValueError for a checkpoint that asks for somebody's code.
        """
        try:
            import torch
        except ImportError as error:
            raise ImportError("a Hugging Face model runs in torch: pip install torch") from error
        import transformers

        folder = model_folder(name)
        # The adapter's own file says where the model comes from, and that is fetched unseen.
        if (pathlib.Path(folder) / "adapter_config.json").exists():
            raise ValueError(f"{name} is an adapter; merge it into its model and save that")
        safe = {"trust_remote_code": False, "local_files_only": True}
        _check_config(name, pathlib.Path(folder))
        config = transformers.AutoConfig.from_pretrained(folder, **safe)
        kinds = (transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM)
        kind = kinds[bool(config.is_encoder_decoder)]
        model = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, **safe)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        # Some of a file's settings name code of the hub, or search in ways nobody asked for.
        ours = transformers.GenerationConfig()
        for field in _TOKENS_OF_GENERATION:
            setattr(ours, field, getattr(model.generation_config, field, None))
        model.generation_config = ours
        check_files(pathlib.Path(folder))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **safe)
        return cls(model.to(device), tokenizer, **settings)

    # --- what it is asked -----------------------------------------------------------------

    def score(
        self,
        prompts: Sequence[Any],
        answers: Sequence[str] | Sequence[Sequence[str]],
        length_normalized: bool = False,
    ) -> np.ndarray:
        """Log-likelihood of answers to prompts, float32 [prompts, answers].

        `answers`: one list for all prompts, or one a prompt; where those are of different lengths
        the missing ones score -inf. `length_normalized` divides by the number of tokens.
        """
        import torch

        if not len(answers) or not all(len(entry) for entry in answers):
            raise ValueError("score needs at least one answer, and none of them empty")
        common = isinstance(answers[0], str)
        lists = [answers] * len(prompts) if common else answers
        if len(lists) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts, but {len(lists)} lists of answers")
        texts = answers if common else dict.fromkeys(itertools.chain.from_iterable(answers))
        ids = {text: self._encode_answer(text) for text in texts}
        inputs = self._encode(prompts)
        width = len(answers) if common else max(map(len, answers))
        result = np.full((len(prompts), width), -np.inf, np.float32)
        likelihood = self._after_encoder if self._is_encoder_decoder else self._after_prompt
        for chosen in self._batches(inputs):
            pairs = [
                (row, place, ids[answer])
                for row, index in enumerate(chosen)
                for place, answer in enumerate(lists[index])
            ]
            with torch.inference_mode():
                scores = likelihood(
                    [inputs[index] for index in chosen],
                    [row for row, _, _ in pairs],
                    [tokens for _, _, tokens in pairs],
                )
            for (row, place, tokens), score in zip(pairs, scores.tolist(), strict=True):
                result[chosen[row], place] = score / (len(tokens) if length_normalized else 1)
        return result

    def generate(self, prompts: Sequence[Any], *, max_new_tokens: int = 32) -> list[str]:
        """The greedy answer to each prompt, without special tokens and white space around it."""
        import torch

        inputs = self._encode(prompts)
        result = [""] * len(prompts)
        for chosen in self._batches(inputs):
            rows = [inputs[index] for index in chosen]
            tokens, mask = self._padded(rows, at_start=not self._is_encoder_decoder)
            with torch.inference_mode():
                output = self.model.generate(
                    input_ids=tokens,
                    attention_mask=mask,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    num_beams=1,
                    pad_token_id=self._pad,
                )
            answers = self.tokenizer.batch_decode(
                output if self._is_encoder_decoder else output[:, tokens.shape[1] :],
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )
            for index, answer in zip(chosen, answers, strict=True):
                result[index] = answer.strip()
        return result

    # --- likelihoods, float32 [pairs]; `rows` says which input each answer belongs to -------

    def _after_encoder(
        self, inputs: list[list[int]], rows: list[int], answers: list[list[int]]
    ) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        tokens, mask = self._padded(inputs)
        states = self.model.get_encoder()(input_ids=tokens, attention_mask=mask).last_hidden_state
        start = self._decoder_start
        decoder_inputs, _ = self._padded([[start, *answer[:-1]] for answer in answers])
        logits = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states[rows]),
            attention_mask=mask[rows],
            decoder_input_ids=decoder_inputs,
            use_cache=False,
        ).logits
        return _summed(logits, *self._padded(answers))

    def _after_prompt(
        self, inputs: list[list[int]], rows: list[int], answers: list[list[int]]
    ) -> Any:
        whole = [[*inputs[row], *answer] for row, answer in zip(rows, answers, strict=True)]
        tokens, mask = self._padded(whole)
        # Prompts of a batch are about as long as each other: only the last logits are needed.
        begin = min(map(len, inputs)) - 1
        last = tokens.shape[1] - begin
        settings = {"logits_to_keep": last} if self._takes_last else {}
        logits = self.model(
            input_ids=tokens, attention_mask=mask, use_cache=False, **settings
        ).logits
        is_answer = mask.clone()
        for number, row in enumerate(rows):
            is_answer[number, : len(inputs[row])] = 0
        return _summed(logits[:, -last:-1], tokens[:, begin + 1 :], is_answer[:, begin + 1 :])

    # --- between text and batches ---------------------------------------------------------

    def _encode(self, prompts: Sequence[Any]) -> list[list[int]]:
        """Ids of each prompt, with the special tokens that the tokenizer puts around it."""
        most = self.max_input_length - len(self._before) - len(self._after)
        texts = [index for index, prompt in enumerate(prompts) if isinstance(prompt, str)]
        parted = [index for index, prompt in enumerate(prompts) if isinstance(prompt, Prompt)]
        encoded = [list(ids) if not isinstance(ids, str | Prompt) else [] for ids in prompts]
        ids = self._tokens.encode_batch([self._stripped(prompts[index]) for index in texts])
        kept = encode_prompts(  # it leaves room for an end token, and puts one there
            self._tokens,
            [self._stripped(prompts[index]) for index in parted],
            most + 1,
            sys.maxsize,
        )
        for index, row in zip(texts, ids, strict=True):
            encoded[index] = [*self._before, *row[:most], *self._after]
        for index, prompt in zip(parted, kept, strict=True):
            encoded[index] = [*self._before, *prompt.input[:-1].tolist(), *self._after]
        return [row or [self._pad] for row in encoded]

    def _stripped(self, prompt: str | Prompt) -> Any:
        """Of a decoder-only model's prompt, the white space that the answer brings along."""
        if self._is_encoder_decoder:
            return prompt
        if isinstance(prompt, str):
            return prompt.rstrip()
        *pieces, last = prompt.pieces
        last = last._replace(text=last.text.rstrip())
        return dataclasses.replace(prompt, pieces=(*pieces, last))

    def _encode_answer(self, answer: str) -> list[int]:
        if self._is_encoder_decoder:
            return self.tokenizer(text_target=answer)["input_ids"]
        before = self._tokens.encode(_BEFORE_ANSWER)
        whole = self._tokens.encode(f"{_BEFORE_ANSWER} {answer}")
        same = (one == other for one, other in zip(before, whole, strict=False))
        return whole[sum(itertools.takewhile(bool, same)) :]

    def _batches(self, inputs: list[list[int]]) -> Iterator[list[int]]:
        """Indices of inputs of about the same length, the longest first."""
        order = sorted(range(len(inputs)), key=lambda index: -len(inputs[index]))
        return (
            order[begin : begin + self.batch_size]
            for begin in range(0, len(order), self.batch_size)
        )

    def _padded(self, rows: Sequence[Sequence[int]], at_start: bool = False) -> tuple[Any, Any]:
        """Tokens and mask, int64 [rows, longest], on the model's device."""
        import torch

        shape = len(rows), max(map(len, rows))
        tokens, mask = np.full(shape, self._pad, np.int64), np.zeros(shape, np.int64)
        for number, row in enumerate(rows):
            place = slice(shape[1] - len(row), None) if at_start else slice(len(row))
            tokens[number, place], mask[number, place] = row, 1
        device = self.model.device
        return torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device)


def _check_config(name: str, folder: pathlib.Path) -> None:
    """Raises: ValueError for a config.json that would have code of the hub run, at any depth."""
    try:
        values = [read_json(folder / "config.json")]
    except (UntrustedError, OSError) as error:
        raise ValueError(f"{name}: config.json cannot be read: {error}") from None
    while values:
        value = values.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                # A kernel is named as OWNER/NAME.
                if "kernel_config" in key or ("implementation" in key and "/" in str(inner)):
                    raise ValueError(
                        f"{name}: {printable(key)} in its config.json asks for a kernel of the hub,"
                        " which is code"
                    )
                if key == "quantization_config" and inner:
                    raise ValueError(
                        f"{name} is quantized: what unpacks it may fetch code from the hub; "
                        "save it in bfloat16"
                    )
                if key == "auto_map" and inner:
                    raise ValueError(f"{name}: its config.json asks for code of its own (auto_map)")
        if isinstance(value, dict | list):
            values += value.values() if isinstance(value, dict) else value


class _Tokens:
    """A tokenizer of transformers without the special tokens, as `encode_prompts` asks one."""

    eos_id = 0

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        return self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def prefix(self, text: str, tokens: int) -> str:
        if not self._tokenizer.is_fast:
            return self._tokenizer.decode(
                self.encode(text)[:tokens], clean_up_tokenization_spaces=False
            )
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        return text[: offsets[tokens][0]] if tokens < len(offsets) else text

    def around(self) -> tuple[list[int], list[int]]:
        """The special tokens before and after a text."""
        bare, whole = self.encode("a"), self._tokenizer("a")["input_ids"]
        begin = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        return whole[:begin], whole[begin + len(bare) :]


def _summed(logits: Any, targets: Any, weights: Any) -> Any:
    """Log-likelihood of the targets that weigh 1, [rows], of logits [rows, tokens, vocabulary]."""
    likelihood = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return (likelihood * weights).sum(1)
