"""Sound files of every kind that is read, to be made hostile, and what a hostile case is."""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import suite_files
from data_files import WEATHER, pair_rows, weather_rows, write_json, write_jsonl
from safetensors.numpy import save_file

from coin_jax.config import Config, TokenizerConfig
from coin_jax.config_files import to_json
from coin_jax.curation.config import SetConfig, SourceConfig
from coin_jax.data.pairs import content_hash
from coin_jax.data.set_format import (
    InstructionTask,
    Manifest,
    Shard,
    Split,
    Wording,
    manifest_json,
    set_hash,
)
from coin_jax.data.tokenizer import SentencePieceTokenizer

Folder = pathlib.Path


class Case(NamedTuple):
    name: str
    reader: str
    make: Callable[[Folder], Folder]
    """Writes into a folder of its own and returns what is to be read."""
    expected: str
    """`read`, or a regular expression for the error."""


CASES: list[Case] = []


def case(reader: str, expected: str, *names: Any) -> Callable[[Callable], Callable]:
    """A function is a case; with names it is one for each, and gets it."""

    def keep(make: Callable) -> Callable:
        if not names:
            CASES.append(Case(make.__name__, reader, make, expected))
        for number, name in enumerate(names):
            CASES.append(
                Case(
                    f"{make.__name__}-{number}",
                    reader,
                    functools.partial(make, what=name),
                    expected,
                )
            )
        return make

    return keep


# --- sound files ----------------------------------------------------------------------------

TASKS = (
    InstructionTask(
        "weather", ("text",), (Wording("a", "{text} Wet?"), Wording("b", "Wet or dry? {text}")),
        ("wet", "dry"),
    ),
)  # fmt: skip
SCHEMA = pyarrow.schema(
    [
        ("task", pyarrow.int32()), ("inputs", pyarrow.list_(pyarrow.string())),
        ("target", pyarrow.string()), ("answer", pyarrow.int32()), ("content", pyarrow.int32()),
        ("negatives", pyarrow.list_(pyarrow.int64())),
    ]
)  # fmt: skip
TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
    "added_tokens": [
        {"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for number, token in enumerate(("<pad>", "</s>", "<unk>"))
    ],
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
    "model": {
        "type": "WordLevel", "unk_token": "<unk>",
        "vocab": {"<pad>": 0, "</s>": 1, "<unk>": 2, "wet": 3, "dry": 4},
    },
}  # fmt: skip
TINY = {
    "model_type": "t5", "vocab_size": 16, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1,
    "num_heads": 2, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip


def weather_table(rows: int) -> pyarrow.Table:
    texts = [f"report {number}" for number in range(rows)]
    targets = [("wet", "dry")[number % 2] for number in range(rows)]
    columns = {
        "task": [0] * rows,
        "inputs": [[text] for text in texts],
        "target": targets,
        "answer": [number % 2 for number in range(rows)],
        "content": [content_hash([text], at) for text, at in zip(texts, targets, strict=True)],
        "negatives": [[]] * rows,
    }
    return pyarrow.table(columns, SCHEMA)


def write_set(folder: Folder, table: pyarrow.Table | None = None, **changes: Any) -> Folder:
    """A set of one task; `changes` replace fields of the first shard of training."""
    splits = {}
    for name, rows in (("train", table or weather_table(20)), ("evaluation", weather_table(4))):
        path = folder / f"{name}.parquet"
        pyarrow.parquet.write_table(rows, path)
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        shard = {"file": path.name, "rows": len(rows), "bytes": len(content), "sha256": digest}
        shard |= changes if name == "train" else {}
        splits[name] = Split((Shard(**shard),), (shard["rows"],))
    manifest = Manifest(TASKS, splits, set_hash(TASKS, splits), {"seed": 0})
    (folder / "manifest.json").write_text(manifest_json(manifest), encoding="utf-8")
    return folder


def write_model(folder: Folder, **changes: Any) -> Folder:
    from coin_jax.model import huggingface

    config = huggingface.config_from_huggingface(TINY)
    tensors = {
        name: np.zeros(weight.stored_shape, np.float32)
        for weight in huggingface.weight_map(config)
        for name in weight.names
    }
    save_file(tensors, folder / "model.safetensors")
    write_json(folder / "config.json", TINY | changes)
    return folder


def write_suite(folder: Folder, **changes: Any) -> Folder:
    write_jsonl(folder / "sst2.dev.jsonl", suite_files.rows("sst2"))
    return write_json(folder / "suite.json", suite_files.file(**changes))


def write_tokenizer(folder: Folder, **changes: Any) -> Folder:
    write_json(folder / "tokenizer.json", TOKENIZER)
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    added = {"3": {"content": "wet", "lstrip": False, "special": False}}
    content = names | settings | {"added_tokens_decoder": added, "chat_template": "{{ x }}"}
    write_json(folder / "tokenizer_config.json", content | changes)
    return folder


def write_predictions(folder: Folder, **changes: Any) -> Folder:
    """What a model said to four instances with two answers."""
    scores = np.zeros((4, 2), np.float32)
    arrays = {"predictions": np.array([0, 1, 0, 1], np.int32), "scores": scores} | changes
    np.savez_compressed(folder / "k.npz", **arrays)
    return folder / "k.npz"


SET_CONFIG = SetConfig(sources=(SourceConfig(files=("a.jsonl",), template_files=("t.json",)),))


@functools.cache
def sentencepiece() -> bytes:
    texts = [json.dumps(row) for row in weather_rows(50)]
    return SentencePieceTokenizer.train(texts, 120)._model


def bytes_file(folder: Folder, name: str, content: bytes) -> Folder:
    (folder / name).write_bytes(content)
    return folder / name


def sparse(folder: Folder, name: str, size: int) -> Folder:
    """A file of so many zero bytes that take no room."""
    with open(folder / name, "wb") as stream:
        stream.truncate(size)
    return folder / name


SOUND: dict[str, Callable[[Folder], Folder]] = {
    "rows": lambda folder: write_jsonl(folder / "a.jsonl", weather_rows(4)),
    "pairs": lambda folder: write_jsonl(folder / "a.jsonl", pair_rows(4)),
    "texts": lambda folder: bytes_file(folder, "a.txt", b"It rains.\n\nIt is dry.\n"),
    "templates": lambda folder: write_json(
        folder / "t.json",
        {"weather": json.loads(json.dumps(WEATHER).replace("report}", "text}"))},
    ),
    "suite": write_suite,
    "set": write_set,
    "config": lambda folder: bytes_file(
        folder, "config.json", to_json(Config(tokenizer=TokenizerConfig(kind="bytes"))).encode()
    ),
    "model": write_model,
    "tokenizer": lambda folder: write_json(folder / "tokenizer.json", TOKENIZER),
    "tokenizer_folder": write_tokenizer,
    "set_config": lambda folder: bytes_file(folder, "c.json", to_json(SET_CONFIG).encode()),
    "predictions": write_predictions,
    "attack": lambda folder: write_json(
        folder / "k.json",
        {"text": "Wet?", "clean_accuracy": 0.75, "accuracy": 0.5, "queries": 12},
    ),
    "reply": lambda folder: write_json(
        folder / "reply.json",
        {
            "choices": [{"message": {"role": "assistant", "content": '["Is it wet?", "Wet?"]'}}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10},
        },
    ),
}
"""A sound file of each kind that has a reader in hostile_files, but a run's checkpoint."""
