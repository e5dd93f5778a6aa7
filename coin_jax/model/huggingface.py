"""Hugging Face T5 checkpoints in and out: config.json, safetensors (single or sharded), tokenizers.

`WEIGHTS` is the whole map. No pickle is ever read, no code of a checkpoint is run, and what its
files claim is checked before memory is given to it.

Two facts about a checkpoint decide how logits are made, and its config.json states them badly:

- *Scale.* T5 1.0 multiplies the decoder's states by d_model^-0.5, the later ones do not. Files
  state it as `tie_word_embeddings`, absent or true (T5 1.0) or false (T5 1.1, Flan, mT5, ByT5,
  umT5); transformers 5 drops that key when it saves and writes `scale_decoder_outputs` instead,
  but for mT5 never scales and for umT5 always does. Read here: the explicit key, else never for
  mT5, else whether `tie_word_embeddings` is not false.
- *Tying.* Since transformers 5 writes `tie_word_embeddings: true` over untied heads, the weights
  decide: no `lm_head.weight`, or one equal to the embedding where the config does not deny tying,
  is tied; anything else is untied. transformers 5 does the same when it loads.

So umT5's published weights (`tie_word_embeddings: false`) are not scaled here, as they were trained
and as in transformers 4; transformers 5 gives them logits that are d_model^-0.5 times as large,
and has no switch for it.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from coin_jax.config import ModelConfig
from coin_jax.model.t5 import T5, Params
from coin_jax.untrusted import (
    TOKENIZER_FILES,
    UntrustedError,
    model_folder,
    printable,
    read_json,
    shown,
)

MODEL_TYPES = ("t5", "mt5", "umt5")
SHARD_BYTES = 5_000_000_000

ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}

# Path of ours, name of theirs, whether theirs is the transpose (torch stores [out, in]).
# {s} encoder or decoder, {l} layer (a leading axis in ours), {f} the block's last sublayer.
WEIGHTS: tuple[tuple[str, str, bool], ...] = (
    ("embedding", "shared.weight", False),
    ("head", "lm_head.weight", True),
    ("{s}/norm/scale", "{s}.final_layer_norm.weight", False),
    (
        "{s}/relative_bias",
        "{s}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        False,
    ),
    (
        "{s}/layers/self_attention/attention/relative_bias",
        "{s}.block.{l}.layer.0.SelfAttention.relative_attention_bias.weight",
        False,
    ),
    ("{s}/layers/self_attention/norm/scale", "{s}.block.{l}.layer.0.layer_norm.weight", False),
    ("{s}/layers/cross_attention/norm/scale", "{s}.block.{l}.layer.1.layer_norm.weight", False),
    ("{s}/layers/feed_forward/norm/scale", "{s}.block.{l}.layer.{f}.layer_norm.weight", False),
    *(
        (
            f"{{s}}/layers/{ours}/attention/{matrix}",
            f"{{s}}.block.{{l}}.layer.{sublayer}.{theirs}.{letter}.weight",
            True,
        )
        for sublayer, ours, theirs in (
            (0, "self_attention", "SelfAttention"),
            (1, "cross_attention", "EncDecAttention"),
        )
        for matrix, letter in ATTENTION.items()
    ),
    *(
        (
            f"{{s}}/layers/feed_forward/{ours}",
            f"{{s}}.block.{{l}}.layer.{{f}}.DenseReluDense.{theirs}.weight",
            True,
        )
        for ours, theirs in (("wi_gate", "wi_0"), ("wi", "{wi}"), ("wo", "wo"))
    ),
)

# Copies of the embedding, and a table that T5 1.0's files carry and no model uses.
EMBEDDING_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
UNUSED = (
    *EMBEDDING_COPIES,
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)


MOST = 2**31 - 1
"""Of every size in a config.json: XLA's and safetensors' shapes could be larger, no T5's is."""


class CheckpointError(ValueError):
    """Files that cannot be read as a T5: everything that is wrong with them, a line each."""

    def __str__(self) -> str:
        return printable(super().__str__())


@dataclasses.dataclass(frozen=True)
class Weight:
    """One of our arrays and where it stands in theirs."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    names: tuple[str, ...]
    """One name; or one a layer, for the slices of the leading axis."""
    stacked: bool
    transposed: bool

    @property
    def stored_shape(self) -> tuple[int, ...]:
        shape = self.shape[1:] if self.stacked else self.shape
        return shape[::-1] if self.transposed else shape


def weight_map(config: ModelConfig) -> list[Weight]:
    """`WEIGHTS` spelled out for one architecture: an entry for each array of our tree."""
    wi = "wi_1" if config.feed_forward.startswith("gated-") else "wi"
    patterns = {}
    for stack, last in (("encoder", 1), ("decoder", 2)):
        for ours, theirs, transposed in WEIGHTS:
            pattern = theirs.format(s=stack, l="{l}", f=last, wi=wi)
            patterns[ours.format(s=stack)] = (pattern, transposed)
    entries = []
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(T5(config).abstract_parameters()):
        path = tuple(key.key for key in key_path)
        pattern, transposed = patterns["/".join(path)]
        stacked = "layers" in path
        names = [pattern.format(l=layer) for layer in range(leaf.shape[0] if stacked else 1)]
        entries.append(Weight(path, leaf.shape, tuple(names), stacked, transposed))
    return entries


def config_from_huggingface(
    source: dict[str, Any] | str | pathlib.Path, base: ModelConfig | None = None
) -> ModelConfig:
    """The architecture in a config.json (its dict, its path, or its folder's) laid over `base`.

    What a run chooses stays as in `base`: init_from, dropout_rate, compute_dtype, remat,
    scan_unroll. Raises CheckpointError with all that is missing or not supported.
    """
    if isinstance(source, dict):
        where, values = "config.json", source
    else:
        where = pathlib.Path(source)
        where = where / "config.json" if where.is_dir() else where
        values = _read_object(where)
    kind = values.get("model_type", "t5")
    activation = values.get("feed_forward_proj", "relu" if kind == "t5" else "gated-gelu")
    faults = []
    if kind not in MODEL_TYPES:
        faults.append(f"model_type is {shown(kind)}; supported are {', '.join(MODEL_TYPES)}")
    if activation not in ("relu", "gated-gelu", "gated-silu"):
        faults.append(
            f"feed_forward_proj is {shown(activation)}; supported are relu, gated-gelu, gated-silu"
        )
    required = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    faults += [f"{name} is missing" for name in required if values.get(name) is None]
    faults += _wrong_numbers(values, (*required, *_OPTIONAL, "num_decoder_layers"))
    if faults:
        raise CheckpointError("\n".join([f"{where} cannot be used:", *faults]))
    untied = values.get("tie_word_embeddings") is False
    scaled = bool(values.get("scale_decoder_outputs", kind != "mt5" and not untied))
    optional = {name: values[name] for name in _OPTIONAL if values.get(name) is not None}
    return dataclasses.replace(
        base or ModelConfig(),
        vocabulary_size=values["vocab_size"],
        **{name: values[name] for name in required[1:]},
        num_decoder_layers=values.get("num_decoder_layers") or values["num_layers"],
        relative_bias_every_layer=kind == "umt5",
        feed_forward=activation,
        tie_word_embeddings=not untied and scaled,
        scale_decoder_outputs=scaled,
        **optional,
    )


_OPTIONAL = (
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
    "pad_token_id",
    "eos_token_id",
    "decoder_start_token_id",
)


def _wrong_numbers(values: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    faults = []
    for name in names:
        value = values.get(name)
        kinds = int | float if name == "layer_norm_epsilon" else int
        least = 0 if name.endswith(("_id", "_epsilon")) else 1
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= MOST
        ):
            faults.append(f"{name} is {shown(value)}; allowed: numbers from {least} to {MOST}")
    return faults


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError."""
    try:
        values = read_json(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except UntrustedError as error:
        raise CheckpointError(f"{path}: {error}.") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {shown(values)}.")
    return values


def config_to_huggingface(config: ModelConfig, carried: dict[str, Any] | None = None) -> dict:
    """A config.json that transformers 4 and 5 read as `config`, laid over `carried`.

    The model type is umt5 or t5, or mt5 where `carried` says so and it fits.
    """
    kind = "umt5" if config.relative_bias_every_layer else "t5"
    if (carried or {}).get("model_type") == "mt5" and kind == "t5":
        kind = "t5" if config.scale_decoder_outputs else "mt5"
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    ours = ("init_from", "vocabulary_size", "feed_forward", "compute_dtype", "remat")
    ours += ("scan_unroll", "relative_bias_every_layer", "scale_decoder_outputs")
    values = {name: getattr(config, name) for name in fields if name not in ours}
    values |= {
        "architectures": [
            {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}[kind] + "ForConditionalGeneration"
        ],
        "model_type": kind,
        "vocab_size": config.vocabulary_size,
        "feed_forward_proj": config.feed_forward,
        "is_encoder_decoder": True,
        "dtype": "float32",
        # Both readers take this key for the scale; what is tied shows in the weights.
        "tie_word_embeddings": config.scale_decoder_outputs,
    }
    dropped = ("torch_dtype", "transformers_version", "_name_or_path", "scale_decoder_outputs")
    dropped += ("auto_map", "quantization_config", "attn_implementation")  # they ask for code
    kept = {name: value for name, value in (carried or {}).items() if name not in dropped}
    # Derived keys of an older architecture must not outlive it.
    kept = {name: kept[name] for name in kept if name not in ("is_gated_act", "dense_act_fn")}
    return kept | values


def find(path_or_name: str | pathlib.Path) -> pathlib.Path:
    """The folder of a checkpoint: the path itself, or a download from the Hugging Face hub.

    Raises CheckpointError if it is neither.
    """
    try:
        return pathlib.Path(model_folder(path_or_name))
    except UntrustedError as error:
        raise CheckpointError(f"{path_or_name} is {error}.") from None
    except Exception as error:  # one of many, of several libraries
        first_line, *_ = str(error).splitlines() or [""]
        raise CheckpointError(
            f"{path_or_name} is no local folder and could not be had from the Hugging Face hub "
            f"({type(error).__name__}: {first_line}). Without a connection, give the path of a "
            "folder with config.json and model.safetensors."
        ) from error


class TensorFiles:
    """The tensors of all safetensors files of a folder, by name; read one at a time."""

    def __init__(self, folder: pathlib.Path):
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            files_of = _read_object(index).get("weight_map")
            if not isinstance(files_of, dict) or not all(map(_is_beside, files_of.values())):
                raise CheckpointError(
                    f"{index}: weight_map must give each tensor the name of a .safetensors file "
                    "beside the index."
                )
            names = sorted(set(files_of.values()))
            files = [folder / name for name in names]
        else:
            files = [folder / "model.safetensors"]
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            message = f"{folder} has no {', '.join(absent)}."
            for pickle in sorted(folder.glob("*.bin"))[:1]:
                message += (
                    f" It has {pickle.name}, a pickle, which is never read: load it once with "
                    "transformers and save_pretrained() it, which writes safetensors."
                )
            raise CheckpointError(message)
        opened = [self._open(file) for file in files]
        self.where = {name: (file, name) for file in opened for name in file.keys()}  # noqa: SIM118

    @staticmethod
    def _open(file: pathlib.Path) -> Any:
        # It is a map: safetensors itself refuses a header that claims more than the file holds.
        try:
            return safe_open(file, framework="numpy")
        except Exception as error:  # a kind of its own, OSError or MemoryError
            raise CheckpointError(f"{file} is not safetensors: {error}.") from None

    def shape(self, name: str) -> tuple[int, ...]:
        file, stored_name = self.where[name]
        return tuple(file.get_slice(stored_name).get_shape())

    def __getitem__(self, name: str) -> np.ndarray:
        file, stored_name = self.where[name]
        try:
            return file.get_tensor(stored_name)
        except Exception as error:  # a type that numpy lacks; a file that is not whole
            raise CheckpointError(f"{stored_name} cannot be read: {error}.") from None


def _is_beside(name: Any) -> bool:
    """Whether a name is one of a safetensors file, without a way into other folders."""
    return (
        isinstance(name, str)
        and name.endswith(".safetensors")
        and not any(mark in name for mark in "/\\\0")
    )


def load(
    path_or_name: str | pathlib.Path, base: ModelConfig | None = None
) -> tuple[ModelConfig, Params]:
    """The config (see `config_from_huggingface`) and parameters (numpy, float32) of a checkpoint.

    path_or_name: a folder, or a name on the Hugging Face hub. Raises CheckpointError with every
    missing, unexpected and misshapen tensor.
    """
    folder = find(path_or_name)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json.")
    config = config_from_huggingface(folder, base)
    denied = _read_object(folder / "config.json").get("tie_word_embeddings") is False
    tensors = TensorFiles(folder)
    where = tensors.where
    layers = config.num_layers + config.num_decoder_layers
    if 8 * layers > len(where):  # each has eight or more; the list of what is missing has an end
        raise CheckpointError(
            f"{folder}: config.json says {layers} layers, and the files hold {len(where)} tensors."
        )
    for copy in EMBEDDING_COPIES:
        if copy in where:
            where.setdefault("shared.weight", where[copy])
    tied = "lm_head.weight" not in where
    if not tied and not denied and "shared.weight" in where:
        tied = np.array_equal(tensors["lm_head.weight"], tensors["shared.weight"])
    config = dataclasses.replace(config, tie_word_embeddings=tied)

    weights = weight_map(config)
    faults, expected = [], set()
    for weight in weights:
        for name in weight.names:
            expected.add(name)
            if name not in where:
                faults.append(f"missing     {name} {weight.stored_shape}")
                continue
            shape = tensors.shape(name)
            if shape != weight.stored_shape:
                faults.append(f"wrong shape {name} {shape}, expected {weight.stored_shape}")
    ignored = expected.union(UNUSED, ("lm_head.weight",) if tied else ())
    faults += [f"unexpected  {name}" for name in sorted(where.keys() - ignored)]
    if faults:
        raise CheckpointError("\n".join([f"{folder} does not match its config.json:", *faults]))

    params: Params = {}
    for weight in weights:
        array = np.empty(weight.shape, np.float32)
        slices = array if weight.stacked else array[None]
        for part, name in zip(slices, weight.names, strict=True):
            part[...] = tensors[name].T if weight.transposed else tensors[name]
        node = params
        for key in weight.path[:-1]:
            node = node.setdefault(key, {})
        node[weight.path[-1]] = array
    return config, params


def save(
    path: str | pathlib.Path,
    config: ModelConfig,
    params: Params,
    *,
    tokenizer_from: str | pathlib.Path | None = None,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that transformers loads: config.json, safetensors, and the tokenizer.

    tokenizer_from: a folder whose tokenizer files, generation_config.json and remaining config.json
    keys are carried along. dtype: float32 or bfloat16. Above `shard_bytes` the weights are split
    into several files with an index. Raises ValueError if the arrays do not fit the config.
    """
    folder = pathlib.Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    source = None if tokenizer_from is None else pathlib.Path(tokenizer_from)
    carried = {}
    if source is not None and source.is_dir():
        if (source / "config.json").is_file():
            carried = _read_object(source / "config.json")
        for name in (*TOKENIZER_FILES, "generation_config.json"):
            if (source / name).is_file() and source.resolve() != folder.resolve():
                shutil.copyfile(source / name, folder / name)
    values = config_to_huggingface(config, carried) | {"dtype": dtype}
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")

    stored = np.dtype(getattr(ml_dtypes, dtype, dtype))
    entries = export_plan(config, params)
    shards: list[list[int]] = [[]]
    size = 0
    for position, (_, array, _) in enumerate(entries):
        nbytes = array.size * stored.itemsize
        if size and size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(position)
        size += nbytes
    count = len(shards)
    files = ["model.safetensors"]
    index_file = folder / "model.safetensors.index.json"
    # What an earlier save left would be read instead of, or lie beside, what is written now.
    for old in (
        index_file,
        *folder.glob("model.safetensors"),
        *folder.glob("model-*-of-*.safetensors"),
    ):
        old.unlink(missing_ok=True)
    if count > 1:
        files = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        where = {
            entries[i][0]: file for file, held in zip(files, shards, strict=True) for i in held
        }
        total = sum(array.size * stored.itemsize for _, array, _ in entries)
        index = {"metadata": {"total_size": total}, "weight_map": where}
        index_file.write_text(json.dumps(index, indent=2) + "\n")
    for file, held in zip(files, shards, strict=True):
        tensors = {}
        for name, array, transposed in (entries[i] for i in held):
            values = np.asarray(array).astype(stored)
            tensors[name] = np.ascontiguousarray(values.T if transposed else values)
        save_file(tensors, folder / file, metadata={"format": "pt"})


def export_plan(config: ModelConfig, params: Params) -> list[tuple[str, Any, bool]]:
    """(their name, array of ours or a slice of one, whether to transpose it) for every tensor."""
    plan = []
    for weight in weight_map(config):
        array = params
        for key in weight.path:
            array = array[key]
        if array.shape != weight.shape:
            at = "/".join(weight.path)
            raise ValueError(f"{at} has shape {array.shape}; the config says {weight.shape}.")
        slices = array if weight.stacked else array[None]
        plan += [(name, slices[i], weight.transposed) for i, name in enumerate(weight.names)]
    # transformers 4 takes an unscaled model to be untied, and then wants to see its head.
    if config.tie_word_embeddings and not config.scale_decoder_outputs:
        plan.append(("lm_head.weight", params["embedding"], False))
    return plan
