"""The small seeded models, prompts and settings on which generation is compared with transformers.

With torch installed, `PYTHONPATH=. python tests/generation_cases.py` in the repository's root
writes tests/golden/generation.json anew.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tempfile

import jax
import numpy as np

from coin_jax.config import ModelConfig
from coin_jax.model.t5 import T5

GOLDEN = pathlib.Path(__file__).parent / "golden" / "generation.json"
NEW_TOKENS = 10
PROMPT_LENGTHS = (3, 9, 5, 12, 1, 7, 12)

_V1_1 = ModelConfig(
    vocabulary_size=40, d_model=16, d_kv=6, d_ff=24, num_heads=3, num_layers=2, num_decoder_layers=2
)
_V1_0 = dataclasses.replace(
    _V1_1, feed_forward="relu", tie_word_embeddings=True, scale_decoder_outputs=True
)
CONFIGS = {"t5_v1_1": _V1_1, "t5_v1_0": _V1_0}
_BEAM_FIELDS = ("beams", "candidates", "length_penalty", "early_stopping")
GREEDY: dict = {}
SEARCHES = [GREEDY] + [
    dict(zip(_BEAM_FIELDS, values, strict=True))
    for values in [
        (2, 1, 1.0, False),
        (4, 4, 1.0, False),
        (4, 2, 0.0, True),
        (4, 4, 2.0, True),
        (3, 3, 2.0, False),
        (3, 3, 2.0, "never"),
        (5, 1, -0.5, "never"),
        (5, 5, 0.6, False),
    ]
]


def parameters(config: ModelConfig, seed: int = 0):
    """Numpy weights, the same on every machine; wide enough that answers differ in length."""
    rng = np.random.default_rng(seed)
    abstract = T5(config).abstract_parameters()

    def draw(path, leaf):
        scale = leaf.shape[-1] ** -0.5 if len(leaf.shape) > 1 else 0.2
        values = rng.normal(0, 1, leaf.shape) * scale
        is_norm = jax.tree_util.keystr(path).endswith("['scale']")
        return (values * 0.3 + 1 if is_norm else values * 1.6).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, abstract)
    ends = params["embedding"][1] if config.tie_word_embeddings else params["head"][:, 1]
    ends *= 2.5  # end-of-sequence is likely or unlikely, and seldom in between
    return params


def prompts(extra: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and segment ids [7, 12 + extra]."""
    rng = np.random.default_rng(7)
    tokens = np.zeros((len(PROMPT_LENGTHS), max(PROMPT_LENGTHS) + extra), np.int32)
    for row, length in enumerate(PROMPT_LENGTHS):
        tokens[row, : length - 1] = rng.integers(2, 40, length - 1)
        tokens[row, length - 1] = 1
    return tokens, (tokens > 0).astype(np.int32)


def answer_tokens(row) -> list[int]:
    """Up to and with the first end-of-sequence: transformers pads beams with more of them."""
    row = [int(token) for token in row]
    return row[: row.index(1) + 1] if 1 in row else row


def generate_with_transformers(config: ModelConfig, search: dict) -> tuple[list, list]:
    """Token ids without start token and padding [prompt][candidate], and their scores."""
    import torch
    import transformers

    from coin_jax.model import huggingface

    tokens, mask = prompts()
    with tempfile.TemporaryDirectory() as folder:
        huggingface.save(folder, config, parameters(config))
        model = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    candidates, beams = search.get("candidates", 1), search.get("beams", 1)
    options = {name: search[name] for name in _BEAM_FIELDS[2:] if name in search}
    with torch.no_grad():
        output = model.generate(
            input_ids=torch.tensor(tokens, dtype=torch.int64),
            attention_mask=torch.tensor(mask, dtype=torch.int64),
            max_new_tokens=NEW_TOKENS,
            num_beams=beams,
            num_return_sequences=candidates,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
    rows = [answer_tokens(row[1:]) for row in output.sequences]
    scores = [] if beams == 1 else output.sequences_scores.tolist()
    grouped = [rows[begin : begin + candidates] for begin in range(0, len(rows), candidates)]
    return grouped, np.reshape(scores, (-1, candidates)).tolist() if scores else []


def main() -> None:
    cases = []
    for name, config in CONFIGS.items():
        for search in SEARCHES if config is _V1_1 else SEARCHES[::4]:
            tokens, scores = generate_with_transformers(config, search)
            scores = [[round(score, 6) for score in row] for row in scores]
            cases.append({"model": name, "search": search, "tokens": tokens, "scores": scores})
    GOLDEN.parent.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    GOLDEN.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
