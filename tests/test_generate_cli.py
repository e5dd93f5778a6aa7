"""`python -m coin_jax.generate` from prompts to answers, on a tiny checkpoint."""

import dataclasses
import io
import json
import os
import subprocess
import sys
import threading

import generation_cases
import jax
import numpy as np
import pytest

from coin_jax import generate
from coin_jax.data.tokenizer import ByteTokenizer
from coin_jax.model import huggingface
from coin_jax.predictor import Predictor

CONFIG = generation_cases.CONFIGS["t5_v1_1"]
WORDS = [
    "is",
    "it",
    "good",
    "bad",
    "yes",
    "no",
    "the",
    "film",
    "was",
    "fine",
    "poor",
    "and",
    "a",
    "question",
    "answer",
    "maybe",
    "so",
]
LINES = ["is it good", "", "the film was good and so maybe it is bad", "was it poor"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    """A Hugging Face folder: seeded weights and a tokenizer of whole words."""
    import tokenizers
    import transformers

    folder = tmp_path_factory.mktemp("checkpoint")
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    huggingface.save(folder, CONFIG, generation_cases.parameters(CONFIG))
    return str(folder)


def answer(monkeypatch, capsys, text: str, **fields) -> str:
    """What the command prints for `text` on standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), newline="\n"))
    generate.run(generate.Arguments(max_new_tokens=5, batch_size=4, **fields))
    captured = capsys.readouterr()
    assert captured.err == ""  # no progress bar where no terminal is
    return captured.out


def test_the_command_answers_standard_input_line_by_line(checkpoint):
    command = [sys.executable, "-m", "coin_jax.generate", "--checkpoint", checkpoint]
    command += ["--answers", "yes", "no", "--jsonl"]
    lines = "".join(json.dumps({"prompt": line}) + "\n" for line in LINES)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        command, input=lines, capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == LINES
    expected = Predictor.from_checkpoint(checkpoint).score(LINES, ["yes", "no"])
    for row, prompt, scores in zip(rows, LINES, expected, strict=True):
        if not prompt:
            assert row == {"prompt": "", "answer": ""}
            continue
        assert row["answer"] == ["yes", "no"][scores.argmax()]
        np.testing.assert_allclose(list(row["scores"].values()), scores, rtol=1e-5)


def test_a_file_and_standard_input_give_the_same_answers(checkpoint, tmp_path, monkeypatch, capsys):
    text = "\n".join(LINES)  # no line break at the end
    printed = answer(monkeypatch, capsys, text, checkpoint=checkpoint)
    source, sink = tmp_path / "prompts.txt", tmp_path / "answers.txt"
    source.write_text(text)
    answer(monkeypatch, capsys, "", checkpoint=checkpoint, input=str(source), output=str(sink))
    assert sink.read_text() == printed
    answers = printed.split("\n")
    assert len(answers) == len(LINES) + 1
    assert answers[1] == answers[-1] == ""
    direct = Predictor.from_checkpoint(checkpoint).generate([LINES[0]], max_new_tokens=5)
    assert answers[0] == direct[0]


def test_the_same_seed_draws_the_same_answers(checkpoint, monkeypatch, capsys):
    draw = {"checkpoint": checkpoint, "temperature": 2.0, "jsonl": True}
    lines = "".join(json.dumps({"prompt": line}) + "\n" for line in LINES)
    first = answer(monkeypatch, capsys, lines, seed=3, **draw)
    assert answer(monkeypatch, capsys, lines, seed=3, **draw) == first
    assert answer(monkeypatch, capsys, lines, seed=4, **draw) != first


def test_a_line_break_in_an_answer_stays_one_line(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(Predictor, "generate", lambda self, prompts, **_: ["two\nlines"])
    plain = answer(monkeypatch, capsys, "is it", checkpoint=checkpoint)
    assert plain == "two lines\n"
    row = json.dumps({"prompt": "is\nit"})
    rows = answer(monkeypatch, capsys, row, checkpoint=checkpoint, jsonl=True)
    assert json.loads(rows) == {"prompt": "is\nit", "answer": "two\nlines"}


def test_a_line_is_answered_before_the_input_ends():
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8") as stream, open(writing, "w", encoding="utf-8") as typed:
        windows = generate.live_windows(generate.read_prompts(stream, "pipe", False), size=3)
        got, ready = [], threading.Semaphore(0)

        def collect():
            for window in windows:
                got.append(window)
                ready.release()

        thread = threading.Thread(target=collect)
        thread.start()
        typed.write("one\n")
        typed.flush()
        assert ready.acquire(timeout=30)
        assert got == [["one"]]
        typed.write("".join(f"{number}\n" for number in range(4)))
        typed.close()
        thread.join(timeout=30)
    assert [line for window in got for line in window] == ["one", "0", "1", "2", "3"]
    assert all(len(window) <= 3 for window in got)


@pytest.mark.parametrize(
    ("text", "jsonl", "named"),
    [
        ("", False, "standard input is empty"),
        ('{"prompt": "a"}\n{"text": "b"}\n', True, "standard input, line 2: expected an object"),
        ("no json\n", True, "line 1: expected an object"),
        ('["prompt"]\n', True, "line 1: expected an object"),
    ],
)
def test_input_that_cannot_be_read_is_refused_with_its_place(
    checkpoint, monkeypatch, capsys, text, jsonl, named
):
    with pytest.raises(generate.InputError, match=named):
        answer(monkeypatch, capsys, text, checkpoint=checkpoint, jsonl=jsonl)


def test_bytes_that_are_no_text_are_refused_with_their_place():
    stream = io.TextIOWrapper(io.BytesIO(b"fine\n\xff\xfe\n"), encoding="utf-8")
    with pytest.raises(generate.InputError, match="file, near line 1: not UTF-8"):
        list(generate.read_prompts(stream, "file", False))


def test_a_missing_checkpoint_file_or_setting_ends_with_one_sentence(tmp_path, monkeypatch):
    def complaint(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["generate", *arguments])
        with pytest.raises(SystemExit) as exit:
            generate.main()
        return str(exit.value)

    assert "error: " in complaint("--checkpoint", str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    assert "neither a run directory" in complaint("--checkpoint", str(tmp_path / "empty"))
    missing = str(tmp_path / "none.txt")
    assert "there is no such file" in complaint("--checkpoint", "x", "--input", missing)
    assert "top_p is 3.0" in complaint("--checkpoint", "x", "--temperature", "1", "--top-p", "3")


def test_a_run_directory_and_one_of_its_checkpoints_are_loaded(tmp_path, monkeypatch):
    from coin_jax.config import Config, TokenizerConfig
    from coin_jax.training import checkpoint as checkpoints

    model = dataclasses.replace(CONFIG, vocabulary_size=384)
    config = Config(model=model, tokenizer=TokenizerConfig(kind="bytes"))
    params = generation_cases.parameters(model)
    monkeypatch.setattr(checkpoints, "load_parameters", lambda path: (config, params))
    (tmp_path / "config.json").write_text('{"name": "ours"}')
    ByteTokenizer().save(tmp_path / "tokenizer")
    step = tmp_path / "checkpoints" / "10"
    step.mkdir(parents=True)
    loaded = [Predictor.from_checkpoint(folder) for folder in (tmp_path, step)]
    for predictor in loaded:
        assert predictor.max_input_length == config.batch.encoder_length
        assert predictor.tokenizer.vocabulary_size == 384
        jax.tree.map(np.testing.assert_array_equal, predictor.params, params)
