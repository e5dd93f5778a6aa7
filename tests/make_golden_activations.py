"""Seeded small T5s of every kind, and what transformers computes with them.

`python tests/make_golden_activations.py` (needs torch) writes golden/t5_activations.npz. The tests
compare with that file, and live with `reference` where torch is installed. Weights are not stored:
numpy draws them again from the case's seed, under the names they have in published checkpoints.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tempfile

import numpy as np
from safetensors.numpy import save_file

GOLDEN = pathlib.Path(__file__).parent / "golden" / "t5_activations.npz"
PROJECTIONS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """An architecture as its config.json states it, made small."""

    name: str
    values: dict
    has_head: bool
    """lm_head.weight is in the file."""
    seed: int

    @property
    def gated(self) -> bool:
        return self.values["feed_forward_proj"].startswith("gated-")


SMALL = {
    "vocab_size": 53,
    "d_model": 16,
    "d_kv": 5,
    "d_ff": 20,
    "num_heads": 3,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
    "layer_norm_epsilon": 1e-6,
    "dropout_rate": 0.1,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "is_encoder_decoder": True,
}


def case(name, seed, feed_forward, *, kind="t5", has_head=True, **values) -> Case:
    values = SMALL | {"model_type": kind, "feed_forward_proj": feed_forward} | values
    return Case(name, values, has_head, seed)


CASES = {
    each.name: each
    for each in (
        case("t5_1.0", 1, "relu", has_head=False),
        case("flan_t5", 2, "gated-gelu", tie_word_embeddings=False),
        case("mt5", 3, "gated-gelu", kind="mt5", tie_word_embeddings=False),
        case(
            "byt5", 4, "gated-gelu", tie_word_embeddings=False, num_layers=3, num_decoder_layers=1
        ),
        case("ul2", 5, "gated-silu", tie_word_embeddings=False),
        # transformers 5 scales umT5's decoder outputs whatever config.json says; without
        # `tie_word_embeddings` we do too, so that the two can be compared.
        case("umt5", 6, "gated-gelu", kind="umt5"),
    )
}


def shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published checkpoint; torch stores matrices as [out, in]."""
    size = case.values
    model, inner = size["d_model"], size["num_heads"] * size["d_kv"]
    tensors = {"shared.weight": (size["vocab_size"], model)}
    if case.has_head:
        tensors["lm_head.weight"] = (size["vocab_size"], model)
    stacks = (("encoder", size["num_layers"]), ("decoder", size["num_decoder_layers"]))
    for stack, layers in stacks:
        tensors[f"{stack}.final_layer_norm.weight"] = (model,)
        for layer in range(layers):
            sublayers = ["SelfAttention"] + ["EncDecAttention"] * (stack == "decoder")
            block = f"{stack}.block.{layer}.layer."
            for index, attention in enumerate(sublayers):
                tensors[f"{block}{index}.layer_norm.weight"] = (model,)
                for letter in "qkv":
                    tensors[f"{block}{index}.{attention}.{letter}.weight"] = (inner, model)
                tensors[f"{block}{index}.{attention}.o.weight"] = (model, inner)
            if layer == 0 or size["model_type"] == "umt5":
                table = (size["relative_attention_num_buckets"], size["num_heads"])
                tensors[f"{block}0.SelfAttention.relative_attention_bias.weight"] = table
            last = f"{block}{len(sublayers)}."
            tensors[f"{last}layer_norm.weight"] = (model,)
            for wi in ("wi_0", "wi_1") if case.gated else ("wi",):
                tensors[f"{last}DenseReluDense.{wi}.weight"] = (size["d_ff"], model)
            tensors[f"{last}DenseReluDense.wo.weight"] = (model, size["d_ff"])
    return tensors


def weights(case: Case) -> dict[str, np.ndarray]:
    """Float32, drawn in the order of the names; of the size of trained ones."""
    random = np.random.default_rng(case.seed)
    drawn = {}
    for name, shape in sorted(shapes(case).items()):
        values = random.standard_normal(shape)
        if "norm" in name:
            values = 1.0 + 0.2 * values
        elif "relative" not in name and name != "shared.weight":
            values *= shape[1] ** -0.5 * (0.4 if ".q." in name else 1.0)
        drawn[name] = values.astype(np.float32)
    return drawn


def write(case: Case, folder: pathlib.Path) -> pathlib.Path:
    """The case as a folder like a published one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(case.values))
    save_file(weights(case), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def inputs(case: Case) -> dict[str, np.ndarray]:
    """Three inputs of different length, their targets, and weights of the targets in the loss."""
    random = np.random.default_rng(100 + case.seed)
    vocabulary = case.values["vocab_size"]
    encoder_length, decoder_length = 24, 9
    valid = np.arange(encoder_length) < np.array([[24], [7], [15]])
    return {
        "encoder_tokens": random.integers(2, vocabulary, (3, encoder_length)) * valid,
        "encoder_segment_ids": valid.astype(np.int32),
        "decoder_inputs": random.integers(2, vocabulary, (3, decoder_length)),
        "targets": random.integers(2, vocabulary, (3, decoder_length)),
        "weights": random.uniform(0.0, 1.0, (3, decoder_length)).astype(np.float32),
    }


def projections(name: str, gradient: np.ndarray, seed: int) -> np.ndarray:
    """Norm of a gradient and its products with a few random unit vectors: float64 [1 + 3]."""
    random = np.random.default_rng([seed, *name.encode()])
    directions = random.standard_normal((PROJECTIONS, gradient.size))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    flat = gradient.astype(np.float64).reshape(-1)
    return np.concatenate([[np.linalg.norm(flat)], directions @ flat])


def reference(case: Case) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Activations (encoder, decoder, logits) and gradients by name, of transformers in float32.

    The loss is the weighted sum of the targets' negative log-likelihood.
    """
    import torch
    import transformers

    classes = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}
    kind = getattr(transformers, classes[case.values["model_type"]] + "ForConditionalGeneration")
    with tempfile.TemporaryDirectory() as folder:
        model = kind.from_pretrained(
            write(case, pathlib.Path(folder)), attn_implementation="eager"
        ).eval()
    given = {name: torch.tensor(array) for name, array in inputs(case).items()}
    output = model(
        input_ids=given["encoder_tokens"],
        attention_mask=given["encoder_segment_ids"],
        decoder_input_ids=given["decoder_inputs"],
        output_hidden_states=True,
    )
    likelihood = torch.log_softmax(output.logits, -1)
    likelihood = likelihood.gather(-1, given["targets"][..., None])[..., 0]
    (-(given["weights"] * likelihood).sum()).backward()
    activations = {
        "encoder": output.encoder_last_hidden_state,
        "decoder": output.decoder_hidden_states[-1],
        "logits": output.logits,
    }
    activations = {name: value.detach().numpy() for name, value in activations.items()}
    parameters = dict(model.named_parameters())
    if not case.has_head:
        parameters.pop("lm_head.weight", None)
    return activations, {name: parameters[name].grad.numpy() for name in shapes(case)}


def main() -> None:
    stored = {}
    for case in CASES.values():
        activations, gradients = reference(case)
        stored |= {f"{case.name}/{name}": value for name, value in activations.items()}
        for name, gradient in gradients.items():
            stored[f"{case.name}/gradient/{name}"] = projections(name, gradient, case.seed)
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **stored)
    print(f"{GOLDEN.name}: {GOLDEN.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
