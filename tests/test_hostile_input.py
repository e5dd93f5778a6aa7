"""Files from strangers are read or refused by one clear error: soon, in little memory, and whatever
they hold, nothing of it is executed. hostile_rows and hostile_models hold the hand-made ones."""

import collections
import gzip
import hashlib
import json
import pickle
import random
import re
import shutil

import hostile_models
import hostile_rows
import huggingface_hub
import jax
import pytest
from hostile_corpus import CASES, SOUND, bytes_file, sentencepiece
from hostile_files import (
    NASTY,
    Sandbox,
    check_message,
    cut_numbers,
    mutated,
    outcome,
    places,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from coin_jax import untrusted
from coin_jax.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    MeshConfig,
    ModelConfig,
    TokenizerConfig,
)
from coin_jax.config_files import load, to_json
from coin_jax.curation.config import ChatConfig, SetConfig
from coin_jax.data.set_format import Manifest, manifest_json
from coin_jax.data.sources import DataError
from coin_jax.data.tokenizer import make_tokenizer
from coin_jax.model import huggingface
from coin_jax.model.t5 import T5
from coin_jax.parallel.mesh import make_mesh
from coin_jax.training.checkpoint import Checkpoints
from coin_jax.training.optimizer import make_optimizer
from coin_jax.training.state import create_state

TRIED: collections.Counter[str] = collections.Counter()
"""Hostile inputs by kind of test."""
SLOW = pytest.mark.slow
FEW = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
"""The same examples in every run: what is merged does not depend on luck."""
MANY = settings(FEW, max_examples=5000, derandomize=False)
"""Others in every run."""


@pytest.fixture(scope="module", autouse=True)
def count(request):
    yield
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in TRIED.items())
        capture = request.config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled():
            reporter.write_line(f"\nhostile inputs tried: {sum(TRIED.values()):,} ({kinds})")


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as box:
        yield box


# --- by hand --------------------------------------------------------------------------------

HEAVY = (
    "a_hundred_million_rows_of_nothing", "millions_of_bad_rows", "csv-0", "a_bomb_of_gzip-0",
    "a_bomb_of_gzip-1", "a_bomb_of_gzip-2", "a_bomb_of_gzip-3", "a_tokenizer_with_code-1",
    "an_index_of_safetensors-10", "nothing_but_zero_bytes", "a_line_without_an_end-1",
    "a_line_without_an_end-2", "a_line_without_an_end-3", "a_tokenizer_that_grows-1",
    "one_text_in_every_row-0", "one_text_in_every_row-1", "a_config-19", "json_as_tokenizer-10",
    "a_bomb_among_the_sources-0", "a_bomb_among_the_sources-2", "csv-10",
    "the_end_of_an_attack_of_a_gigabyte",
)  # fmt: skip
"""Seconds of processor time each."""


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case, id=case.name, marks=[SLOW] * (case.name.removeprefix("source_") in HEAVY)
        )
        for case in CASES
    ],
)
def test_a_hand_made_file_is_read_or_refused_within_the_limits(case, sandbox, tmp_path):
    (tmp_path / "files").mkdir()
    found = sandbox.read(case.reader, case.make(tmp_path / "files"))
    TRIED["made by hand"] += 1
    assert found.outcome.startswith(("read", "refused")), found
    assert re.search(case.expected, found.outcome), found
    assert not list(tmp_path.rglob("executed"))


@pytest.mark.parametrize("kind", SOUND)
def test_the_sound_files_that_hostile_ones_are_made_of_are_read(kind, sandbox, tmp_path):
    assert sandbox.read(kind, SOUND[kind](tmp_path)).outcome == "read"


# --- by chance ------------------------------------------------------------------------------

FUZZED = {"few": FEW, "many": MANY}
runs = pytest.mark.parametrize("much", ["few", pytest.param("many", marks=SLOW)])
"""Seconds of examples in every run, minutes of them with --slow."""
seeds = st.integers(0, 2**32 - 1)
nasty_texts = st.sampled_from([value for value in NASTY if isinstance(value, str)]) | st.text()
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | nasty_texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(nasty_texts, inner, max_size=4),
    max_leaves=20,
)


def tried(kind, reader, path, content):
    """One hostile file: its outcome, where it is one."""
    path.write_bytes(content)
    TRIED[f"{kind} by chance"] += 1
    assert outcome(reader, path.parent if reader in FOLDERS else path)


FOLDERS = {
    "model": "config.json", "set": "manifest.json", "tokenizer_folder": "tokenizer_config.json",
}  # fmt: skip
"""Kinds that are folders, and their file of JSON."""


@runs
@pytest.mark.parametrize("kind", ["rows", "pairs", "texts"])
def test_lines_of_any_bytes_are_read_or_refused(kind, much, tmp_path):
    names = {"rows": ("a.jsonl", "a.jsonl.gz"), "texts": ("a.txt", "a.txt.gz")}
    line = st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode())

    @FUZZED[much]
    @given(st.lists(line, max_size=6), st.sampled_from(names.get(kind, ("a.csv", "a.jsonl"))))
    def check(lines, name):
        tried("lines", kind, tmp_path / name, b"\n".join(lines))

    check()


@runs
@pytest.mark.parametrize(
    "kind", ["rows", "pairs", "templates", "suite", "config", "set_config", "attack", "reply",
             *FOLDERS],
)  # fmt: skip
def test_json_with_anything_in_place_of_anything_is_read_or_refused(kind, much, tmp_path):
    path = SOUND[kind](tmp_path)
    path = path / FOLDERS[kind] if kind in FOLDERS else path
    is_lines = path.suffix == ".jsonl"
    sound = [json.loads(line) for line in path.read_text().splitlines()] if is_lines else None
    sound = sound or json.loads(path.read_text())

    @FUZZED[much]
    @given(seeds, values)
    def check(seed, value):
        draw = random.Random(seed)
        document = mutated(sound, draw)
        if draw.random() < 0.3:
            document = put(document, value, draw)
        if kind == "set" and isinstance(document, dict):  # one who changes it would do this, too
            what = {name: document.get(name) for name in ("tasks", "splits")}
            content = json.dumps(what, sort_keys=True, ensure_ascii=False)
            document["content_hash"] = hashlib.sha256(
                content.encode("utf-8", "surrogatepass")
            ).hexdigest()
        if is_lines:
            text = "\n".join(map(json.dumps, document)) if isinstance(document, list) else ""
        else:
            text = json.dumps(document)
        if draw.random() < 0.2:
            text = cut_numbers(text, draw)
        tried("JSON", kind, path, text.encode("utf-8", "surrogatepass"))

    check()


def put(document, value, draw):
    """A document with a value in a place of it."""
    *above, last = draw.choice(list(places(document))) or (None,)
    if last is None:
        return value
    holder = document
    for key in above:
        holder = holder[key]
    holder[last] = value
    return document


NATIVE = {
    "Parquet": ("pairs", lambda folder: hostile_rows.parquet(folder, targets=["wet"] * 50)),
    "gzip": ("texts", lambda f: bytes_file(f, "a.txt.gz", gzip.compress(b"It rains.\n" * 500))),
    "safetensors": ("model", SOUND["model"]),
    "tokenizer.json": ("tokenizer", SOUND["tokenizer"]),
    "SentencePiece": ("tokenizer", lambda f: bytes_file(f, "a.model", sentencepiece())),
    "memory maps": ("set", SOUND["set"]),
    "manifests": ("set", SOUND["set"]),
    "predictions": ("predictions", SOUND["predictions"]),
}
"""What libraries read that are not Python, and may take the process down: read in the sandbox."""
DAMAGED = {
    "safetensors": "model.safetensors", "memory maps": "evaluation.parquet",
    "manifests": "manifest.json",
}  # fmt: skip


@pytest.mark.parametrize(("much", "count"), [("few", 40), pytest.param("many", 4000, marks=SLOW)])
@pytest.mark.parametrize("kind", NATIVE)
def test_damaged_binary_files_are_read_or_refused(kind, much, count, sandbox, tmp_path):
    reader, make = NATIVE[kind]
    path = make(tmp_path)
    file = path / DAMAGED[kind] if path.is_dir() else path
    sound = file.read_bytes()
    for first in range(0, count, 40):
        file.write_bytes(sound)
        found = sandbox.fuzz(reader, path, file, range(first, first + 40))
        TRIED[f"damaged {kind}"] += 40
        assert re.fullmatch(r"\d+ read, \d+ refused", found.outcome), found


@runs
def test_what_is_printed_of_any_text_steers_no_terminal_and_tells_no_secret(much):
    secret = st.text("abcXYZ019-_", min_size=20, max_size=30).map("Zq7K{}v".format)
    shape = st.sampled_from(
        ("https://me:{}@host/x", "http://{}@host", "redis://:{}@h:1/0", "https://h/?a=1&api_key={}",
         "https://h?X-Amz-Signature={}&b", "Authorization: Bearer {}", "sk-{}", "hf_{}",
         "ProxyError('http://me:{}@proxy:3128')", "https://h/?access_token={}#x")
    )  # fmt: skip

    @FUZZED[much]
    @given(nasty_texts, shape, secret, nasty_texts)
    @example("x" * 199_980, "https://me:{}@host", "s" * 25, "")
    def check(before, shape, key, after):
        message = f"{before} {shape.format(key)} {after}"
        TRIED["messages"] += 1
        assert key not in str(DataError(message))
        assert key not in untrusted.printable(message)
        check_message(untrusted.printable(message))

    check()


# --- what is code and what is data ----------------------------------------------------------


def test_the_folder_of_a_run_stands_for_its_json_and_a_file_that_is_neither_is_not_run(tmp_path):
    (tmp_path / "run").mkdir()
    SOUND["config"](tmp_path / "run")
    trap = "raise SystemExit('this was run')"
    for name in ("config.py", "get_config.py", "__init__.py", "config.so", "config.txt"):
        (tmp_path / "run" / name).write_text(trap)
    chosen = load(["--config", str(tmp_path / "run"), "--seed", "7"])
    assert chosen == Config(tokenizer=TokenizerConfig(kind="bytes"), seed=7)
    for name in ("config.so", "config.txt"):
        with pytest.raises(ConfigError, match=r"a config is a \.py file, a run's folder or its"):
            load(["--config", str(tmp_path / "run" / name)])


def test_pickles_and_code_in_a_checkpoint_are_not_executed_when_it_is_restored(
    saved_run, sandbox, tmp_path
):
    run = shutil.copytree(saved_run, tmp_path / "run")
    (folder,) = (run / "checkpoints").iterdir()
    trap = pickle.dumps(hostile_models.Trap(f"touch {tmp_path}/executed"))
    for inner in (run, folder, folder / "state", folder / "config"):
        for name in ("state.pkl", "msgpack", "_strings.json", "item_handlers.pkl"):
            (inner / name).write_bytes(trap)
        for name in ("config.py", "sitecustomize.py", "orbax.py"):
            (inner / name).write_text(hostile_models.CODE)
    (folder / "manifest.json").unlink(missing_ok=True)  # a stranger would write a true one
    found = sandbox.read("run", run)
    assert found.outcome == "read", found
    # Orbax has an old format of one file with this name; it is msgpack.
    (folder / "state" / "checkpoint").write_bytes(trap)
    found = sandbox.read("run", run)
    assert re.match("refused: .*cannot be read", found.outcome), found
    assert not list(tmp_path.rglob("executed"))


@pytest.mark.parametrize("file", ["config/metadata", "state/_METADATA", "state/manifest.ocdbt"])
def test_a_damaged_checkpoint_executes_nothing(file, saved_run, sandbox, tmp_path):
    run = shutil.copytree(saved_run, tmp_path / "run")
    (folder,) = (run / "checkpoints").iterdir()
    (folder / "manifest.json").unlink(missing_ok=True)
    found = sandbox.fuzz("run", run, folder / file, range(6))
    TRIED["damaged checkpoints"] += 6
    assert "executed" not in found.outcome, found
    assert not found.outcome.startswith(("killed", "no answer")), found


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    """A run directory with one checkpoint of a tiny model."""
    run = tmp_path_factory.mktemp("runs") / "run"
    size = {"vocabulary_size": 16, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2}
    model = ModelConfig(**size, num_layers=1, num_decoder_layers=1)
    config = Config(model=model, tokenizer=TokenizerConfig(kind="bytes"))
    network = T5(model)
    optimizer = make_optimizer(config.optimizer, 10, network.logical_axes())
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with Checkpoints(run, CheckpointConfig()) as checkpoints:
        checkpoints.save(create_state(network, optimizer, config, mesh), {"seed": 0}, config)
    return run


def test_of_the_hub_only_safetensors_and_small_files_without_code_are_fetched(
    tmp_path, monkeypatch
):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(hostile_models.write_model(tmp_path))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    huggingface.load("somebody/model")
    with pytest.raises(DataError, match=r"tokenizer\.path = 'somebody/model'"):
        make_tokenizer(TokenizerConfig(kind="huggingface", path="somebody/model"))
    assert [name for name, _ in asked] == ["somebody/model"] * 2
    names = ["pytorch_model.bin", "model.pkl", "modeling_evil.py", "tokenization_evil.py", "a.pt",
             "a.h5", "chat_template.jinja", "adapter_config.json", "a/b/config.json", "train.ckpt",
             "flax_model.msgpack", "model.onnx", "requirements.txt", "handler.py"]  # fmt: skip
    for _, patterns in asked:
        assert not list(huggingface_hub.utils.filter_repo_objects(names, allow_patterns=patterns))


# --- keys -----------------------------------------------------------------------------------

PASSWORD = "hunter2hunter2"
ADDRESS = f"https://me:{PASSWORD}@files.example/rows.jsonl"


@pytest.mark.parametrize("field", ["--data.files", "--model.init-from", "--output"])
def test_a_config_with_a_password_in_an_address_is_refused_before_it_is_saved(field):
    with pytest.raises(ConfigError, match="user or password") as caught:
        load([field, ADDRESS, "--tokenizer.kind", "bytes"])
    assert PASSWORD not in str(caught.value)


def test_neither_manifest_nor_errors_repeat_a_password(tmp_path):
    record = {"config": {"chat": {"base_url": ADDRESS}, "sources": [{"files": [ADDRESS]}]}}
    record["sources"] = [f"read {ADDRESS}?api_key={PASSWORD}"]
    assert PASSWORD not in manifest_json(Manifest((), {}, "", record))
    for error in (DataError, huggingface.CheckpointError):
        assert PASSWORD not in str(error(f"no file at {ADDRESS}"))
        assert "files.example/rows.jsonl" in str(error(f"no file at {ADDRESS}"))


def test_keys_of_the_environment_reach_no_saved_config(monkeypatch):
    for name in ("WANDB_API_KEY", "OPENAI_API_KEY", "HF_TOKEN", "HTTPS_PROXY"):
        monkeypatch.setenv(name, PASSWORD)
    settings_of_a_set = SetConfig()
    assert ChatConfig().key_variable == "OPENAI_API_KEY"
    for config in (Config(tokenizer=TokenizerConfig(kind="bytes")), settings_of_a_set):
        assert PASSWORD not in to_json(config)
