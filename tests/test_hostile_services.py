"""What services send, where addresses lead, what a foreign model's files ask for, and that no key
is written anywhere."""

import gzip
import itertools
import json

import fsspec
import numpy as np
import pytest
import test_hostile_input
from fake_chat import FakeChat, raw, say
from fsspec.implementations.memory import MemoryFileSystem
from hostile_corpus import write_set
from hostile_files import check_message
from rich.console import Console

from coin_jax import evaluate, paraphrase, untrusted
from coin_jax.config import Config, ConfigError, TokenizerConfig
from coin_jax.config_files import load, load_file, to_json
from coin_jax.curation.config import ChatConfig, ParaphraseConfig, SetConfig, SourceConfig
from coin_jax.curation.paraphrasers import Request, endpoint, replies
from coin_jax.curation.paraphrasers.chat import Chat
from coin_jax.curation.sources.files import cache_folder, resolve_files
from coin_jax.data.sources import DataError, TaskRow
from coin_jax.robustness import instances
from coin_jax.robustness.store import Answered, PredictionStore
from coin_jax.training.logging import read_metrics

PASSWORD = test_hostile_input.PASSWORD
KEY = "sk-proj-0123456789abcdef"

# --- a chat endpoint ------------------------------------------------------------------------


@pytest.fixture
def ask(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("FAKE_CHAT_KEY", KEY)

    def ask(plan):
        with FakeChat(plan) as server:
            chat = Chat(
                ChatConfig(server.base_url, "fake", "FAKE_CHAT_KEY", attempts=2, timeout=20,
                           cache=str(tmp_path / "cache")),
                3, sleep=lambda seconds: endpoint.asyncio.sleep(0, seconds),
            )  # fmt: skip
            request = Request("task", "0", "Is it wet?", ())
            return chat.reword([request], lambda *_: None)[0], chat

    return ask


def test_an_endless_reply_is_given_up_and_the_run_goes_on(ask, monkeypatch):
    monkeypatch.setattr(replies, "LARGEST_REPLY", 1 << 20)
    wordings, chat = ask(lambda text, number: raw(b" " * (4 << 20)))
    assert wordings == []
    assert "more than 1,048,576 bytes" in chat.notes[0]


@pytest.mark.parametrize("packed", ["gzip", "br", "zstd"])
def test_a_packed_reply_does_not_fill_the_memory(packed, ask, monkeypatch):
    monkeypatch.setattr(replies, "LARGEST_REPLY", 1 << 20)
    content = gzip.compress(bytes(64 << 20)) if packed == "gzip" else b"\x00" * 1000
    plan = lambda text, number: lambda it: it.reply(content, Content_Encoding=packed)  # noqa: E731
    wordings, chat = ask(plan)
    assert wordings == []
    assert len(chat.notes) == 1


def test_a_hostile_answer_neither_ends_a_run_nor_steers_the_terminal(ask):
    answers = ['["\\ud800 wet?"]', '["\\u001b[2J wet?", "Wet, is it?"]', "[" * 50_000 + "]"]
    for answer in answers:
        wordings, chat = ask(lambda text, number, answer=answer: say(answer, (10**30, -1)))
        assert not any(map(untrusted.steers_terminal, wordings))
        assert chat.usage.input_tokens < 2**40
        for note in chat.notes:
            check_message(note)


def test_a_cache_that_came_from_elsewhere_is_read_or_asked_anew(ask, tmp_path):
    good = lambda text, number: say('["Wet, is it?"]')  # noqa: E731
    assert ask(good)[0] == ["Wet, is it?"]
    # The address of the server is part of a question's key: rename to whatever is looked for.
    (file,) = (tmp_path / "cache").iterdir()
    chat = Chat(ChatConfig("http://127.0.0.1:9/v1", "fake", "", cache=str(tmp_path)), 3)
    question = chat._endpoint._question([{"role": "user", "content": "Wet?"}])
    place = tmp_path / f"{question.key}.json"
    for content in (b"[" * 100_000, b"{}", b"null", b"\xff", b'{"answer": {}}', b'{"answer": NaN'):
        place.write_bytes(content)
        assert chat._endpoint._recall(question) is None
    place.unlink()
    place.mkdir()
    assert chat._endpoint._recall(question) is None
    place.rmdir()
    place.write_bytes(file.read_bytes())
    assert chat._endpoint._recall(question) == ["Wet, is it?"]


@pytest.mark.parametrize(
    "changes", [{"base_url": "https://evil.example/v1"}, {"key_variable": "AWS_SECRET_ACCESS_KEY"}]
)
def test_a_json_config_cannot_have_a_key_sent_to_a_strangers_address(changes, tmp_path):
    wordings = ParaphraseConfig(("chat",), chat=ChatConfig(**changes))
    source = SourceConfig(files=(str(tmp_path / "none.jsonl"),), template_files=("t.json",))
    text = to_json(SetConfig(sources=(source,), paraphrase=wordings))
    (tmp_path / "config.json").write_text(text)
    command = ["--config", str(tmp_path), "--output", str(tmp_path / "set")]
    with pytest.raises(ConfigError, match="comes from a file, and the value of"):
        paraphrase.run(command, Console(quiet=True))
    for name, value in changes.items():
        command += [f"--paraphrase.chat.{name.replace('_', '-')}", value]
    with pytest.raises(DataError, match="matches no file"):  # past the check
        paraphrase.run(command, Console(quiet=True))


# --- addresses ------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "address",
    ["https://evil.example/../../../../.bashrc", "https://../../x/rows.jsonl",
     "gs://bucket/../../../x.jsonl", "file:///etc/passwd", "local:///etc/passwd",
     "reference://evil.json", "simplecache::https://evil.example/a.jsonl",
     "zip://a.jsonl::https://evil.example/a.zip", "https://evil.example/a\x00.jsonl",
     "dask://x/a.jsonl", "jar://x/a.jsonl", "python://x/a.jsonl"],
)  # fmt: skip
def test_no_address_leads_out_of_the_cache_or_to_this_machines_files(address, monkeypatch):
    def url_to_fs(given):
        raise AssertionError(f"{given} was asked for")

    monkeypatch.setattr(fsspec.core, "url_to_fs", url_to_fs)
    with pytest.raises(DataError, match=r"leads out of its folder|addresses begin with one of"):
        resolve_files([address], "files")


def test_a_name_in_a_bucket_cannot_lead_out_of_the_cache(tmp_path, monkeypatch):
    class Evil(MemoryFileSystem):
        def find(self, path, **_):
            return ["/bucket/../../../../../evil.jsonl"]

        def get_file(self, *arguments, **_):
            raise AssertionError(arguments)

    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda address: (Evil(), "/bucket"))
    with pytest.raises(DataError, match="leads out of its folder"):
        resolve_files(["gs://bucket/rows"], "files")


def test_the_place_of_a_fetched_file_tells_no_password_and_no_signature(monkeypatch):
    class Web(MemoryFileSystem):
        def get_file(self, path, place):
            with open(place, "w") as file:
                file.write("{}\n")

    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda address: (Web(), "/a.jsonl"))
    for query in (f"X-Amz-Signature={PASSWORD}&b=1", f"api_key={PASSWORD}"):
        (found,) = resolve_files([f"https://me:{PASSWORD}@h.example/a.jsonl?{query}"], "files")
        assert found.is_relative_to(cache_folder())
        assert PASSWORD not in str(found)


def test_a_data_set_of_the_hub_without_an_end_is_refused(monkeypatch):
    monkeypatch.setattr(instances, "MOST_ROWS", 1000)
    rows = (TaskRow("t", {"a": "b"}, "x", f"row {number}") for number in itertools.count())
    monkeypatch.setattr(instances, "remote_rows", lambda *_: rows)
    with pytest.raises(DataError, match=r"more than 1,000 rows; take a part of it"):
        instances.Reader([]).rows("t", ["hub:somebody/endless"], "train", "label")


# --- foreign models in torch ----------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A tiny model as transformers saves it."""
    torch = pytest.importorskip("torch")
    tokenizers, transformers = (
        pytest.importorskip("tokenizers"),
        pytest.importorskip("transformers"),
    )
    folder = tmp_path_factory.mktemp("gpt2")
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 4}
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(folder)
    words = tokenizers.models.WordLevel({"<e>": 0, "a": 1, "b": 2, ":": 3}, unk_token="<e>")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), eos_token="<e>"
    ).save_pretrained(folder)
    return folder


def changed(folder, name, **changes):
    content = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attn_implementation": "evil/kernel"}, "a kernel of the hub"),
        ({"_attn_implementation": {"": "evil/kernel"}}, "a kernel of the hub"),
        ({"text_config": {"_attn_implementation_internal": "evil/k:f"}}, "a kernel of the hub"),
        ({"experts_implementation": "evil/kernel@main"}, "a kernel of the hub"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "is quantized"),
        ({"auto_map": {"AutoModelForCausalLM": "evil.Evil"}}, "auto_map"),
        ({"a": {"b": [{"auto_map": {"AutoConfig": "evil.Evil"}}]}}, "auto_map"),
    ],
)
def test_a_model_that_asks_for_code_is_refused(gpt2, tmp_path, changes, reason):
    from coin_jax.huggingface_scorer import HuggingFaceScorer

    for file in gpt2.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "evil.py").write_text("raise SystemExit('this was run')")
    changed(tmp_path, "config.json", **changes)
    with pytest.raises(ValueError, match=reason):
        HuggingFaceScorer.from_pretrained(str(tmp_path), device="cpu")


def test_how_a_foreign_model_answers_is_not_for_its_files_to_say(gpt2, tmp_path):
    from coin_jax.huggingface_scorer import HuggingFaceScorer

    for file in gpt2.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    sound = HuggingFaceScorer.from_pretrained(str(gpt2), device="cpu")
    expected = sound.generate(["a b"], max_new_tokens=3)
    changed(
        tmp_path, "generation_config.json", penalty_alpha=0.6, top_k=4, repetition_penalty=1e30,
        stop_strings=["a"], guidance_scale=3.0, min_new_tokens=10**9, max_time=0.0,
        custom_generate="evil/generate", cache_implementation="offloaded",
    )  # fmt: skip
    (tmp_path / "custom_generate").mkdir()
    (tmp_path / "custom_generate" / "generate.py").write_text("raise SystemExit('this was run')")
    scorer = HuggingFaceScorer.from_pretrained(str(tmp_path), device="cpu")
    assert scorer.generate(["a b"], max_new_tokens=3) == expected


# --- what is read again ---------------------------------------------------------------------


def test_predictions_that_were_kept_are_found_again_and_others_are_not(tmp_path):
    store = PredictionStore(tmp_path)
    said = Answered(np.array([0, 1], np.int32), np.zeros((2, 3), np.float32))
    store.write("k", said)
    assert store.read("k", 2, 3) is not None
    for shape in ((3, 3), (2, 4), (2, 1)):
        assert store.read("k", *shape) is None


def test_the_metrics_of_a_run_from_elsewhere_are_numbers_or_are_passed_over(tmp_path):
    lines = [b'{"step": 1, "loss": 2.5}', b"[" * 100_000, b'{"step": "x"}', b"\xff", b"null",
             b'{"step": 2, "loss": "\\u001b[2J", "nan": NaN}']  # fmt: skip
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert first == {"step": 1, "loss": 2.5}
    assert second.keys() == {"step", "nan"}


def test_the_training_wordings_of_a_hostile_run_are_read_or_there_are_none(tmp_path):
    sound = json.loads(to_json(Config(tokenizer=TokenizerConfig(kind="bytes"))))
    empty = json.dumps(sound | {"data": {"source": "set", "files": []}})
    for text in ("[" * 100_000, "null", empty, " " * (2 << 20)):
        (tmp_path / "config.json").write_text(text)
        assert evaluate.training_wordings(str(tmp_path)) == []
    write_set(tmp_path)
    sound["data"] |= {"source": "set", "files": [str(tmp_path)]}
    (tmp_path / "config.json").write_text(json.dumps(sound))
    assert evaluate.training_wordings(str(tmp_path)) == ["{text} Wet?", "Wet or dry? {text}"]
    assert evaluate.training_wordings("x") == []


def test_a_folder_whose_name_looks_like_a_python_config_is_a_folder(tmp_path):
    folder = tmp_path / "evil.py:base"
    folder.mkdir()
    (tmp_path / "evil.py").write_text("raise SystemExit('this was run')")
    (folder / "config.json").write_text(to_json(Config(tokenizer=TokenizerConfig(kind="bytes"))))
    assert load_file(str(folder)).tokenizer.kind == "bytes"


# --- keys -----------------------------------------------------------------------------------

TELLING = (
    f"https://me:{PASSWORD}@h.example/a", f"https://h.example/a?api_key={PASSWORD}",
    f"https://h.example/a?X-Amz-Signature={PASSWORD}", KEY, "hf_abcdefghijklmnop12345",
    "ghp_abcdefghijklmnop12345",
)  # fmt: skip


@pytest.mark.parametrize("value", TELLING)
def test_a_config_with_a_key_anywhere_is_refused(value):
    for field in ("--data.files", "--name", "--training.wandb-project"):
        with pytest.raises(ConfigError, match="or what looks like a key") as caught:
            load([field, value, "--tokenizer.kind", "bytes"])
        assert PASSWORD not in str(caught.value)
        assert KEY not in str(caught.value)


def test_names_of_runs_are_no_keys():
    names = ("sk-finetune-experiment-base", "risk-assessment-data-2024", "hf_export_of_our_models")
    for name in names:
        assert load(["--output", name, "--tokenizer.kind", "bytes"]).output == name


def test_the_value_of_a_key_variable_is_never_shown(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setattr(untrusted, "key_values", untrusted.key_values.__wrapped__)
    message = f"401: the key {'0123456789' * 4} is not known"
    assert "0123456789" not in untrusted.printable(message)
    assert "0123456789" not in json.dumps(untrusted.public({"a": [message]}))
    assert "0123456789" not in str(DataError(message))
