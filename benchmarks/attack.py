"""How long an attack on one prompt takes: the model against the search around it.

    python benchmarks/attack.py                       # 4 + 4 layers 256 wide, random weights
    python benchmarks/attack.py --shape t5-small
    python benchmarks/attack.py --checkpoint runs/coin --method textbugger

The prompt asks for the sentiment of sentences drawn from a fixed list of words, their lengths
log-normal with median 25. With random weights accuracy is near chance and never reaches 0, so the
search tries every word. What is counted is questions: one prompt on one instance, all its answers.
CPU seconds are those of all cores; on a machine that is busy they tell more than the clock.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np
from scoring import SMALL, WordTokenizer

from coin_jax.config import ModelConfig
from coin_jax.model.t5 import T5
from coin_jax.predictor import Predictor
from coin_jax.robustness.attack import attack
from coin_jax.robustness.perturb import PERTURBATIONS
from coin_jax.robustness.suite import Instance, SuiteTask, make_wording

PROMPT = (
    "In your role as a careful reader of film reviews, decide whether the mood of the following "
    "sentence is positive or negative, and reply with that word alone: {sentence} Answer:"
)
WORDS = "film plot actor scene is was the a of and never quite almost too long short dull bright"


SHAPES = {
    "from-scratch": ModelConfig(
        vocabulary_size=8192,
        d_model=256,
        d_kv=32,
        d_ff=512,
        num_heads=8,
        num_layers=4,
        num_decoder_layers=4,
    ),
    "t5-small": SMALL,
}


class Timed:
    """Keeps the time that the model itself takes, and counts questions."""

    def __init__(self, predictor: Predictor):
        self.predictor, self.seconds, self.calls, self.questions = predictor, 0.0, 0, 0

    def score(self, prompts, answers, length_normalized=False) -> np.ndarray:
        begin = time.perf_counter()
        scores = self.predictor.score(prompts, answers, length_normalized)
        self.seconds += time.perf_counter() - begin
        self.calls, self.questions = self.calls + 1, self.questions + len(prompts)
        return scores


def sentences(count: int) -> list[str]:
    random = np.random.default_rng(0)
    lengths = np.exp(random.normal(np.log(25), 0.6, count)).clip(5, 80).astype(int)
    return [" ".join(random.choice(WORDS.split(), length)) for length in lengths]


def load(checkpoint: str, shape: str, batch_size: int) -> Predictor:
    if checkpoint:
        return Predictor.from_checkpoint(checkpoint, batch_size=batch_size)
    model = T5(SHAPES[shape])
    params = jax.jit(model.init)(jax.random.key(0))
    tokenizer = WordTokenizer()
    tokenizer.vocabulary_size = model.config.vocabulary_size
    return Predictor(model, params, tokenizer, batch_size=batch_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="", help="a run of ours, or a Hugging Face T5")
    parser.add_argument("--shape", default="from-scratch", choices=SHAPES)
    names = [name for name, made in PERTURBATIONS.items() if not made.lexicon]
    parser.add_argument("--method", default="deepwordbug", choices=names)
    parser.add_argument("--instances", type=int, default=100)
    parser.add_argument("--budget", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()

    predictor = load(arguments.checkpoint, arguments.shape, arguments.batch_size)
    task = SuiteTask("mood", ("sentence",), ("negative", "positive"), ())
    instances = [
        Instance(f"mood/{number}", {"sentence": text}, number % 2)
        for number, text in enumerate(sentences(arguments.instances))
    ]
    wording = make_wording(task, "clean", 0, PROMPT)

    def run(scorer: Timed):
        settings = {"budget": arguments.budget, "seed": 0, "condition": arguments.method}
        return attack(scorer, task, wording, instances, arguments.method, **settings)

    for name in ("with compilation", "compiled"):
        scorer = Timed(predictor)
        begin, cpu = time.perf_counter(), time.process_time()
        found = run(scorer)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        print(
            f"{arguments.method}, {name:16} {found.queries} prompts x {len(instances)} instances "
            f"in {scorer.calls} calls: {seconds:6.1f} s ({cpu:.1f} CPU s), "
            f"{scorer.questions / seconds:5.0f} questions/s; all but the model takes "
            f"{1 - scorer.seconds / seconds:.1%} of the time"
        )
    print(
        f"accuracy {found.clean_accuracy:.1%} -> {found.accuracy:.1%} after {len(found.steps)} "
        f"changes; {predictor.model.config.d_model} wide, {jax.devices()[0].device_kind}"
    )


if __name__ == "__main__":
    main()
