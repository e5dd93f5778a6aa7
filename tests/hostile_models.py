"""Hand-made hostile sets, models, tokenizers and configs: the name says what each tries."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import pickle
import zipfile
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from data_files import write_json
from hostile_corpus import (
    SOUND,
    TASKS,
    TOKENIZER,
    Folder,
    bytes_file,
    case,
    sentencepiece,
    sparse,
    write_model,
    write_predictions,
    write_set,
    write_tokenizer,
)

from coin_jax.config import Config, TokenizerConfig
from coin_jax.config_files import to_json
from coin_jax.data.set_format import Manifest, Shard, Split, manifest_json, set_hash

# --- sets -----------------------------------------------------------------------------------

SHARD_FAULTS = (
    {"file": "../train.parquet"}, {"file": "/etc/passwd"}, {"file": ".."}, {"file": "a\x00b"},
    {"file": "\x1b[31m"}, {"file": "a" * 5000}, {"rows": 10**12}, {"rows": -1}, {"rows": 2**63},
    {"bytes": 10**12}, {"bytes": -1}, {"sha256": "0" * 64}, {"sha256": ""}, {"rows": 10**9},
)  # fmt: skip


@case("set", "refused", *SHARD_FAULTS)
def a_shard_that_the_manifest_lies_about(folder: Folder, what: dict) -> Folder:
    return write_set(folder, **what)


@case("set", "a link out of the set's folder", "link", "pipe", "device")
def a_shard_that_is_elsewhere(folder: Folder, what: str) -> Folder:
    write_set(folder, **({} if what == "link" else {"bytes": 0}))
    path = folder / "train.parquet"
    content = path.read_bytes()
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    else:
        (folder.parent / "elsewhere").write_bytes(content)
        path.symlink_to("/dev/zero" if what == "device" else folder.parent / "elsewhere")
    return folder


@case("set", "unpacks to more than", 20_000, 500_000)
def a_set_of_one_text_over_and_over(folder: Folder, what: int) -> Folder:
    texts = pyarrow.array(["wet" + " " * (2_000_000_000 // what)])
    index = pyarrow.array(np.zeros(what, np.int32))
    inputs = pyarrow.ListArray.from_arrays(
        pyarrow.array(np.arange(what + 1, dtype=np.int32)),
        pyarrow.DictionaryArray.from_arrays(index, texts),
    )
    column = {
        "task": index, "inputs": inputs, "target": pyarrow.array(["wet"] * what), "answer": index,
        "content": index, "negatives": pyarrow.array([[]] * what, pyarrow.list_(pyarrow.int64())),
    }  # fmt: skip
    folder.joinpath("inner").mkdir()
    table = pyarrow.table(column)
    path = folder / "inner" / "train.parquet"
    pyarrow.parquet.write_table(table, path, store_schema=False)
    write_set(folder)
    content = path.read_bytes()
    (folder / "train.parquet").write_bytes(content)
    shard = Shard("train.parquet", what, len(content), hashlib.sha256(content).hexdigest())
    evaluation = json.loads((folder / "manifest.json").read_text())["splits"]["evaluation"]
    splits = {
        "train": Split((shard,), (what,)),
        "evaluation": Split((Shard(**evaluation["shards"][0]),), (4,)),
    }
    manifest = Manifest(TASKS, splits, set_hash(TASKS, splits), {})
    (folder / "manifest.json").write_text(manifest_json(manifest), encoding="utf-8")
    return folder


@case("set", "read", b"ARROW1" + b"\xff" * 500, b"")
def a_memory_map_that_came_along(folder: Folder, what: bytes) -> Folder:
    write_set(folder)
    digest = json.loads((folder / "manifest.json").read_text())["content_hash"]
    place = folder / ".mapped" / f"{digest}-2"
    place.mkdir(parents=True)
    for split in ("train", "evaluation"):
        (place / f"{split}.arrow").write_bytes(what)
        facts = {"seal": np.array([1, 2]), "unpaired": np.array([object()], object)}
        np.savez(place / f"{split}.npz", **(facts if what else {}))  # a pickle, in part
    return folder


@case("set", "read")
def a_folder_of_maps_that_leads_elsewhere(folder: Folder) -> Folder:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (write_set(folder) / ".mapped").symlink_to(elsewhere)
    return folder


# --- models, tokenizers ---------------------------------------------------------------------

MODEL_FAULTS: tuple[dict[str, Any], ...] = (
    *({name: value} for name in ("d_model", "num_layers", "num_heads", "vocab_size", "d_ff", "d_kv")
      for value in (10**9, 10**30, -1, 0, 1.5, "8", True, None, [8], {})),
    {"num_decoder_layers": 10**9}, {"model_type": "\x1b[31m"}, {"model_type": ["t5"]},
    {"model_type": "x" * 100_000}, {"feed_forward_proj": {}}, {"layer_norm_epsilon": 1e308},
    {"relative_attention_num_buckets": 10**9}, {"relative_attention_num_buckets": -2},
    {"model_type": "custom", "auto_map": {"AutoModel": "modeling.Evil"}},
)  # fmt: skip


@case("model", "refused", *MODEL_FAULTS)
def a_model(folder: Folder, what: dict) -> Folder:
    return write_model(folder, **what)


def header(size: int, content: dict | bytes) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return (size or len(text)).to_bytes(8, "little") + text


HEADERS = (
    header(2**63 - 1, b""), header(2**40, b"{}"), header(99_000_000, b"{}"),
    header(0, b"[" * 90_000),
    *(header(0, {"shared.weight": {"dtype": "F32", "shape": shape, "data_offsets": offsets}})
      for shape in ([10**12], [2**63], [-1], [2**32, 2**32], [], [0], "x", [1e308])
      for offsets in ([0, 4 * 10**12], [0, 4], [4, 0], [0, 2**64], [-4, 0])),
    header(0, {"a": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}}), b"", b"\x80\x04.",
    header(0, b'{"a":1,"a":2}'), header(0, b"\xff" * 50), header(0, {"__metadata__": {"a": [1]}}),
)  # fmt: skip


@case("model", "refused", *HEADERS)
def a_header_of_safetensors(folder: Folder, what: bytes) -> Folder:
    write_model(folder)
    (folder / "model.safetensors").write_bytes(what)
    return folder


INDEXES = (
    {}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "../model.safetensors"}},
    {"weight_map": {"a": "/etc/passwd"}}, {"weight_map": {"a": "model.bin"}}, [], "x",
    {"weight_map": {"a": "a\x00.safetensors"}}, {"weight_map": {"a": "\x1b.safetensors"}},
    {"weight_map": {str(n): f"{n}.safetensors" for n in range(100_000)}},
)  # fmt: skip


@case("model", "refused", *INDEXES)
def an_index_of_safetensors(folder: Folder, what: Any) -> Folder:
    write_json(write_model(folder) / "model.safetensors.index.json", what)
    return folder


class Trap:
    """What a pickle of it runs when it is loaded."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@case("model", "a pickle, which is never read")
def a_model_that_is_a_pickle(folder: Folder) -> Folder:
    import pickle

    (write_model(folder) / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(f"touch {folder}/executed")))
    return folder


def _replacing(times: int, content: str) -> dict:
    step = {"type": "Replace", "pattern": {"String": content[:1]}, "content": content}
    return {"type": "Sequence", "normalizers": [step] * times}


CODE = "import os, pathlib\npathlib.Path(__file__).with_name('executed').touch()\n"


@case("tokenizer", "refused", {"normalizer": _replacing(12, "a" * 10)}, {"model": {}},
      {"normalizer": _replacing(1, "a" * 10**6)}, {"added_tokens": [{"id": -1}]}, {"model": None},
      {"model": TOKENIZER["model"] | {"vocab": {"a": 2**64}}}, {"version": "\x1b[31m"},
      {"model": TOKENIZER["model"] | {"vocab": {"a": -1}}}, {"pre_tokenizer": {"type": "Split"}},
      {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$|((("},
                         "behavior": "Isolated", "invert": False}},
      {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+b"},
                         "behavior": "Isolated", "invert": False}})  # fmt: skip
def a_tokenizer(folder: Folder, what: dict) -> Folder:
    return write_json(folder / "tokenizer.json", TOKENIZER | what)


@case(
    "tokenizer",
    "read",
    {
        "padding": {
            "strategy": {"Fixed": 10**9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        }
    },
    {"model": TOKENIZER["model"] | {"vocab": TOKENIZER["model"]["vocab"] | {"a": 2**31}}},
)
def a_tokenizer_whose_claims_do_no_harm(folder: Folder, what: dict) -> Folder:
    return write_json(folder / "tokenizer.json", TOKENIZER | what)


@case("tokenizer", "refused", {"tokenizer_class": "EvilTokenizer"}, {"model_type": "evil"})
def a_tokenizer_with_code(folder: Folder, what: dict) -> Folder:
    code = {"auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None], "AutoConfig": "evil.Evil"}}
    (folder / "evil.py").write_text(CODE)
    for name in ("tokenizer_config.json", "config.json"):
        write_json(folder / name, what | code)
    return folder


@case("tokenizer", "refused", b"", b"\x80\x04.", b"\xff" * 1000, b"\x0a" + b"\xff" * 9 + b"\x7f")
def no_sentencepiece(folder: Folder, what: bytes) -> Folder:
    return bytes_file(folder, "a.model", what)


@case("tokenizer", "larger than", "a.model", "tokenizer.json")
def a_tokenizer_of_a_gigabyte(folder: Folder, what: str) -> Folder:
    return sparse(folder, what, 1 << 30)


def _unigrams(pieces: list[str]) -> dict:
    special = [[token, 0.0] for token in ("<pad>", "</s>", "<unk>")]
    vocabulary = special + [[piece, -1.0] for piece in pieces]
    return {"model": {"type": "Unigram", "unk_id": 2, "vocab": vocabulary}}


def _added(content: str, count: int = 1) -> dict:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "special": False}
    more = [
        flags | {"id": 5 + n, "content": f"{content}{n}", "normalized": True} for n in range(count)
    ]
    return {"added_tokens": TOKENIZER["added_tokens"] + more}


def _split(pattern: str) -> dict:
    rule = {"pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"pre_tokenizer": {"type": "Split"} | rule}


def _pieces(kind: str, **changes: Any) -> dict:
    words = TOKENIZER["model"]["vocab"] | {"a": 5}
    more = {"merges": []} if kind == "BPE" else {"max_input_chars_per_word": 100}
    prefix = {"continuing_subword_prefix": "##"}
    return {"model": {"type": kind, "unk_token": "<unk>", "vocab": words} | prefix | more | changes}


def _charsmap(longest: int) -> dict:
    trie = np.zeros(256, np.uint32).tobytes()
    table = len(trie).to_bytes(4, "little") + trie + b"a" * longest + b"\0"
    kind = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}
    return {"normalizer": kind}


LONG = "ab" * 4_000_000


@case("tokenizer", "characters; at most", _unigrams([LONG]), _added(LONG), _split("a|" * 500_000),
      {"normalizer": {"type": "Prepend", "prepend": LONG}}, _split("(" * 200_000),
      _pieces("WordPiece", continuing_subword_prefix=LONG),
      _pieces("BPE", continuing_subword_prefix="a" * 1000, end_of_word_suffix="a" * 1000),
      {"model": TOKENIZER["model"] | {"vocab": {LONG: 5}}})  # fmt: skip
def a_tokenizer_with_a_text_of_megabytes(folder: Folder, what: dict) -> Folder:
    return write_json(folder / "tokenizer.json", TOKENIZER | what)


@case("tokenizer", "refused",
      _unigrams([f"{n}" * 20 for n in range(50_000)]), _added("a", 210_000), _charsmap(2_000_000),
      {"normalizer": {"type": "Sequence", "normalizers": [
          {"type": "Prepend", "prepend": "a" * 100}] * 1000}},
      {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}] * 5000}},
      _pieces("WordPiece", max_input_chars_per_word=10**9),
      _split("(?:(?:(?:a{900}){900}){900}){9}"),
      {"decoder": {"type": "Replace", "pattern": {"String": "w"},
                   "content": "w" * 9000}})  # fmt: skip
def a_tokenizer_that_grows(folder: Folder, what: dict) -> Folder:
    return write_json(folder / "tokenizer.json", TOKENIZER | what)


@case("tokenizer_folder", "refused|read", {"init_inputs": ["/"]},
      {"chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"},
      {"chat_template": "{% for a in range(10**9) %}{% endfor %}"}, {"tokenizer_object": {}},
      {"added_tokens_decoder": {"9" * 400: {"content": "a"}}}, {"model_max_length": 1e308},
      {"added_tokens_decoder": {"5": {"content": "a" * 9000}}}, {"backend": "../evil"},
      {"name_or_path": "somebody/evil"}, {"local_files_only": False})  # fmt: skip
def a_tokenizer_config(folder: Folder, what: dict) -> Folder:
    return write_tokenizer(folder, **what)


@case("tokenizer_folder", "refused",
      {"fast_tokenizer_files": ["tokenizer.0/../../../../../../../dev/zero.json"]},
      {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}},
      {"added_tokens_decoder": {"5": {"content": LONG}}}, {"pad_token": LONG},
      {"tokenizer_file": "/dev/zero"}, {"gguf_file": "/dev/zero"},
      {"vocab_file": "/dev/zero", "tokenizer_class": "T5Tokenizer"},
      {"eos_token": None})  # fmt: skip
def a_tokenizer_config_that_is_refused(folder: Folder, what: dict) -> Folder:
    (folder / "evil.py").write_text(CODE)
    return write_tokenizer(folder, **what)


@case("tokenizer_folder", "larger than", "vocab.txt", "tekken.json", "chat_template.jinja",
      "additional_chat_templates/a.jinja")  # fmt: skip
def a_file_of_a_gigabyte_beside_a_tokenizer(folder: Folder, what: str) -> Folder:
    write_tokenizer(folder)
    (folder / what).parent.mkdir(exist_ok=True)
    sparse(folder, what, 1 << 30)
    return folder


def _message(number: int, content: bytes) -> bytes:
    size, digits = len(content), b""
    while size > 127:
        digits += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + digits + bytes([size]) + content


BOMB = (1024).to_bytes(4, "little") + bytes(1024) + b"a" * 2_000_000 + b"\0"


@case("tokenizer", "refused", _message(1, _message(1, b"ab" * 10_000)),
      _message(3, _message(2, BOMB)), _message(5, _message(2, BOMB)), b"\x0a\xff\xff\xff\xff\x0f",
      b"\xff" * 12, b"\x0b")  # fmt: skip
def a_sentencepiece_model_with_more_in_it(folder: Folder, what: bytes) -> Folder:
    return bytes_file(folder, "a.model", sentencepiece() + what)


# --- what an evaluation reads again ---------------------------------------------------------


@case("predictions", "read", {"predictions": np.zeros(5, np.int32)}, {"scores": np.zeros(3)},
      {"predictions": np.full(4, 7, np.int32)}, {"predictions": np.full(4, -5, np.int32)},
      {"predictions": np.zeros(4, np.float32)}, {"scores": np.full((4, 2), np.nan, np.float32)},
      {"evil": np.zeros(1)}, {"predictions": np.array(["x"] * 4)}, {"texts": np.array(["a"] * 4)},
      {"predictions": np.array([{}] * 4, object)})  # fmt: skip
def predictions_that_do_not_fit(folder: Folder, what: dict) -> Folder:
    return write_predictions(folder, **what)


def _npz(member: str, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as packed:
        packed.writestr(member, content)
    return file.getvalue()


def _npy(shape: str, kind: str = "<i4") -> bytes:
    head = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode()


@case("predictions", "read", _npz("predictions.npy", bytes(300 << 20)), _npz("a", b""),
      *(_npz("predictions.npy", _npy(shape)) for shape in (
          "(1000000000000,)", "(-1,)", "(2**62,)", "(" * 90, "()", "(99999999999999999999,)")),
      _npz("predictions.npy", _npy("(4,)", "|O") + pickle.dumps([1])),
      _npz("../../predictions.npy", _npy("(4,)")),
      _npz("predictions.npy", bytes(100), zipfile.ZIP_LZMA), b"", b"PK\x03\x04" * 50)  # fmt: skip
def an_archive_of_predictions(folder: Folder, what: bytes) -> Folder:
    return bytes_file(folder, "k.npz", what)


@case("attack", "read", b"[" * 100_000, b"[]", b"null", b"{}", b"\xff", b'{"text": 1}',
      b'{"text": "\\u001b[2J", "clean_accuracy": 1, "accuracy": 1, "queries": 1}',
      b'{"text": "a", "clean_accuracy": NaN, "accuracy": 1, "queries": 1}',
      b'{"text": "a", "clean_accuracy": 1e999, "accuracy": 1, "queries": 1}')  # fmt: skip
def the_end_of_an_attack(folder: Folder, what: bytes) -> Folder:
    return bytes_file(folder, "k.json", what)


@case("attack", "read")
def the_end_of_an_attack_of_a_gigabyte(folder: Folder) -> Folder:
    return sparse(folder, "k.json", 1 << 30)


REPLY = b'{"choices": [{"message": {"content": %s}}], "usage": {"prompt_tokens": %s}}'


@case("reply", "read", b"[" * 100_000, b"\xff", b'{"error": ' + b"[" * 900 + b"]" * 900 + b"}",
      REPLY % (b'"[\\"\\ud800\\"]"', b"1"), REPLY % (b'"\\ud800"', b"1"),
      REPLY % (b'"[\\"a\\"]"', b"9" * 400), REPLY % (b'"[\\"a\\"]"', b"-1e400"),
      REPLY % (b'"' + b"[" * 100_000 + b']"', b"true"), b'{"error": {"message": "\\u001b[2J"}}',
      REPLY % (b'"[\\"{text.__class__} \\u001b\\"]"', b"{}"),
      b'{"error": {"message": "no sk-0123456789abcdefgh"}}')  # fmt: skip
def a_reply(folder: Folder, what: bytes) -> Folder:
    return bytes_file(folder, "reply.json", what)


# --- configs --------------------------------------------------------------------------------

RUN = json.loads(to_json(Config(tokenizer=TokenizerConfig(kind="bytes"))))


def _changed(section: str, field: str, text: str) -> bytes:
    values = json.loads(json.dumps(RUN))
    values[section][field] = "HERE"
    return json.dumps(values).replace('"HERE"', text).encode()


@case("config", "refused", *(_changed("optimizer", "learning_rate", text) for text in
      ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000, '"1"', "null", "[]", "true",
       "1" + "0" * 400, "-1" + "0" * 400)),
      _changed("training", "steps", "1" + "0" * 400),
      *(_changed("model", "d_model", text) for text in ("-1", "1e3", "null", "[[]]", '"\\u001b"')),
      json.dumps(RUN | {"\x1b[31m": 1}).encode(), json.dumps(RUN | {"__class__": {}}).encode(),
      json.dumps(RUN | {"model": {"__init__": 1}}).encode(),
      json.dumps({"a" * 900_000: 1}).encode(),
      _changed("data", "files", "[" + "1," * 400_000 + "1]"))  # fmt: skip
def a_config(folder: Folder, what: bytes) -> Folder:
    return bytes_file(folder, "config.json", what)


@case(
    "config",
    "a config is a .py file, a run's folder",
    "config.pyc",
    "config.so",
    "config",
    "c.yaml",
)
def a_config_of_another_kind(folder: Folder, what: str) -> Folder:
    return bytes_file(folder, what, CODE.encode())


@case("config", "read")
def a_run_with_code_beside_its_config(folder: Folder) -> Folder:
    for name in ("config.py", "__init__.py", "get_config.py", "conftest.py", "sitecustomize.py"):
        (folder / name).write_text(CODE)
    return SOUND["config"](folder).parent
