"""How much faster it is to score all answers of all prompts in batches than one by one.

    python -m benchmarks.scoring                      # a T5-small shape, random weights
    python -m benchmarks.scoring --shape quickstart   # the quickstart's

Ways of asking the same questions of the same model, in one run after compilation:

    one call a prompt and answer    the encoder runs for each answer
    one call a prompt               the encoder is shared between the answers
    one call                        prompts batched and sorted by length as well
    generation, one call a prompt   what comparing generated answers costs, greedy, 8 tokens
    the same by transformers        generate of its PyTorch T5 with the same weights, as the usual
                                    evaluation scripts ask; where torch is installed

Prompt lengths are log-normal with median 70 like FLAN's, cut at 128; answers have a token a word.
How far batching helps depends on what a call costs besides arithmetic: on two cores a T5-small's
single prompt is arithmetic for the most part, a small model's is overhead.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time

import jax
import numpy as np

from coin_jax.config import ModelConfig
from coin_jax.model import huggingface
from coin_jax.model.t5 import T5
from coin_jax.predictor import Predictor

SHAPES = {
    "small": ModelConfig(num_layers=6, num_decoder_layers=6),
    "quickstart": ModelConfig(
        vocabulary_size=1152,
        d_model=96,
        d_kv=16,
        d_ff=256,
        num_heads=6,
        num_layers=2,
        num_decoder_layers=2,
    ),
}
ANSWERS = ["yes", "no", "maybe", "it is not possible to tell"]


class WordTokenizer:
    """A token a word, numbered in the order in which words come. Prompts come as ids."""

    vocabulary_size = 1000
    pad_id, eos_id = 0, 1
    sentinel_ids = ()

    def __init__(self):
        self._ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        return [self._ids.setdefault(word, 3 + len(self._ids)) for word in text.split()]

    def encode_batch(self, texts) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids) -> str:
        return " ".join(map(str, ids))


def transformers_model(model: T5, params):
    """transformers' T5 with these weights."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        huggingface.save(folder, model.config, params)
        return transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(np.log(70), 0.6, arguments.prompts)).clip(8, 128).astype(int)
    prompts = [[*rng.integers(3, 1000, length - 1).tolist(), 1] for length in lengths]
    model = T5(SHAPES[arguments.shape])
    params = jax.jit(model.init)(jax.random.key(0))
    predictor = Predictor(model, params, WordTokenizer(), batch_size=arguments.batch_size)
    print(
        f"{len(prompts)} prompts of {lengths.mean():.0f} tokens on average x {len(ANSWERS)} "
        f"answers; {arguments.shape} shape, {jax.devices()[0].device_kind}, float32"
    )

    def by_answer() -> np.ndarray:
        return np.array([[predictor.score([p], [a])[0, 0] for a in ANSWERS] for p in prompts])

    def by_prompt() -> np.ndarray:
        return np.concatenate([predictor.score([prompt], ANSWERS) for prompt in prompts])

    def at_once() -> np.ndarray:
        return predictor.score(prompts, ANSWERS)

    def generated() -> None:
        for prompt in prompts:
            predictor.generate([prompt], max_new_tokens=8)

    reference = None
    if importlib.util.find_spec("torch"):
        reference = transformers_model(model, params)

    def generated_by_transformers() -> None:
        import torch

        with torch.inference_mode():
            for prompt in prompts:
                reference.generate(
                    input_ids=torch.tensor([prompt]), max_new_tokens=8, do_sample=False
                )

    ways = {
        "one call a prompt and answer": by_answer,
        "one call a prompt": by_prompt,
        "one call": at_once,
        "generation, one call a prompt": generated,
    }
    if reference is not None:
        ways["the same by transformers"] = generated_by_transformers
    results, seconds = {}, {}
    for name, ask in ways.items():
        ask()  # compiles
        begin = time.perf_counter()
        results[name] = ask()
        seconds[name] = time.perf_counter() - begin
    for name, taken in seconds.items():
        rate, ratio = len(prompts) / taken, taken / seconds["one call"]
        print(
            f"{name:32}{taken:8.2f} s {rate:10.1f} prompts/s   one call is {ratio:6.1f} x as fast"
        )
    scores = [results[name] for name in list(ways)[:3]]
    difference = max(np.abs(other / scores[0] - 1).max() for other in scores[1:])
    print(f"largest relative difference between the scores: {difference:.1e}")


if __name__ == "__main__":
    main()
