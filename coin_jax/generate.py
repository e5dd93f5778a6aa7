"""Answers prompts, one a line, from a file or standard input.

    python -m coin_jax.generate --checkpoint runs/coin --input prompts.txt
    echo "Is this positive? I loved it." | python -m coin_jax.generate \\
        --checkpoint google/flan-t5-base --answers yes no --jsonl

Answers go to standard output in the order of the prompts, one a line; a blank line is answered by a
blank line. With `--jsonl` each input line is `{"prompt": "..."}`, where `\\n` in the text is a line
break, and each output line an object; without it, line breaks in an answer become spaces.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import queue
import sys
import threading
from collections.abc import Iterator
from typing import Any, Literal, TextIO

import tyro

from coin_jax.model.generation import GenerationSettings
from coin_jax.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Answer prompts with a trained model."""

    checkpoint: str
    """A run's folder, a Hugging Face folder, or a Hugging Face name such as google/flan-t5-base."""
    input: str = "-"
    """File of prompts, UTF-8, one a line; - is standard input."""
    output: str = "-"
    """File for the answers; - is standard output."""
    jsonl: bool = False
    """Lines are JSON: {"prompt": ...} in, {"prompt", "answer"} out, with {"scores"} where answers
    are given."""
    answers: tuple[str, ...] = ()
    """Choose among these by likelihood instead of generating."""
    length_normalized: bool = False
    """Choose by mean instead of summed log-likelihood of an answer's tokens."""
    max_new_tokens: int = 32
    """Tokens of an answer at most."""
    beams: int = 1
    """Width of the beam search; 1: none."""
    length_penalty: float = 1.0
    """Beams are ranked by log-likelihood / length^penalty."""
    early_stopping: Literal["no", "yes", "never"] = "no"
    """As transformers' False, True and "never"."""
    temperature: float = 0.0
    """0: the likeliest token; above: tokens are drawn."""
    top_k: int = 0
    """Draw among the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together hold this probability."""
    seed: int = 0
    """Of what is drawn. The same seed gives the same answers."""
    batch_size: int = 32
    """Prompts at a time."""
    max_input_length: int = 0
    """Tokens a prompt is cut to; 0: what the run was trained with, 512 for Hugging Face models."""

    def settings(self) -> GenerationSettings:
        return GenerationSettings(
            max_new_tokens=self.max_new_tokens,
            beams=self.beams,
            length_penalty=self.length_penalty,
            early_stopping={"no": False, "yes": True, "never": "never"}[self.early_stopping],
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        )


class InputError(ValueError):
    """Input that cannot be read, with its place."""


def read_prompts(stream: TextIO, name: str, jsonl: bool) -> Iterator[str]:
    """The prompts of a stream, as they come. InputError with file and line for a bad one."""
    number = 0
    while True:
        number += 1
        try:
            line = stream.readline()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name}, near line {number}: not UTF-8 text ({error.reason})"
            ) from None
        if not line:
            return
        line = line.rstrip("\r\n")
        if not jsonl or not line.strip():
            yield line
            continue
        try:
            row = json.loads(line)
            prompt = row["prompt"] if isinstance(row, dict) else None
        except (ValueError, KeyError, RecursionError):
            prompt = None
        if not isinstance(prompt, str):
            raise InputError(
                f'{name}, line {number}: expected an object {{"prompt": "text"}}, got {line[:80]!r}'
            )
        yield prompt


def windows(prompts: Iterator[str], size: int) -> Iterator[list[str]]:
    """Lists of up to `size` prompts."""
    while window := list(itertools.islice(prompts, size)):
        yield window


def live_windows(prompts: Iterator[str], size: int, quiet: float = 0.05) -> Iterator[list[str]]:
    """Lists of up to `size` prompts, handed on when none has come for `quiet` seconds.

    So a person, or a program at the other end of a pipe, is answered without closing the input.
    """
    lines: queue.SimpleQueue[Any] = queue.SimpleQueue()
    end = object()

    def read() -> None:
        try:
            for prompt in prompts:
                lines.put(prompt)
            lines.put(end)
        except Exception as error:
            lines.put(error)

    threading.Thread(target=read, daemon=True).start()
    window: list[str] = []
    while True:
        try:
            line = lines.get(timeout=quiet if window else None)
        except queue.Empty:
            line = None
        if isinstance(line, str):
            window.append(line)
        if window and (not isinstance(line, str) or len(window) == size):
            yield window
            window = []
        if isinstance(line, Exception):
            raise line
        if line is end:
            return


def answer(
    predictor: Predictor, prompts: list[str], first: int, arguments: Arguments
) -> list[dict[str, Any]]:
    """One row a prompt: prompt, answer and, where answers are given, their scores."""
    rows: list[dict[str, Any]] = [{"prompt": prompt, "answer": ""} for prompt in prompts]
    asked = [index for index, prompt in enumerate(prompts) if prompt.strip()]
    texts = [prompts[index] for index in asked]
    if arguments.answers:
        scores = predictor.score(texts, arguments.answers, arguments.length_normalized)
        for index, row_scores in zip(asked, scores, strict=True):
            rows[index]["answer"] = arguments.answers[int(row_scores.argmax())]
            rows[index]["scores"] = dict(
                zip(arguments.answers, map(float, row_scores), strict=True)
            )
        return rows
    settings = dataclasses.asdict(arguments.settings())
    generated = predictor.generate(texts, seed=arguments.seed, first=first, **settings)
    for index, text in zip(asked, generated, strict=True):
        rows[index]["answer"] = text
    return rows


@contextlib.contextmanager
def progress_bar(lines: int | None) -> Iterator[Any]:
    """A bar on standard error, if that is a terminal; yields a function that advances it."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("answering", total=lines)
        yield lambda count: progress.advance(task, count)


def run(arguments: Arguments) -> int:
    """Answers everything; returns how many lines there were."""
    arguments.settings()  # refuses bad values before a model is loaded
    from_stdin = arguments.input == "-"
    if not from_stdin and not pathlib.Path(arguments.input).is_file():
        raise InputError(f"--input {arguments.input}: there is no such file")
    settings = {"batch_size": arguments.batch_size}
    if arguments.max_input_length:
        settings["max_input_length"] = arguments.max_input_length
    predictor = Predictor.from_checkpoint(arguments.checkpoint, **settings)

    # Many batches are read at a time, so that prompts of like length can share one.
    size = 16 * arguments.batch_size
    name = "standard input" if from_stdin else arguments.input
    total = None
    if not from_stdin:
        with open(arguments.input, "rb") as file:
            total = sum(1 for _ in file)
    done = 0
    with contextlib.ExitStack() as stack:
        source, sink = sys.stdin, sys.stdout
        if not from_stdin:
            source = stack.enter_context(open(arguments.input, encoding="utf-8", newline="\n"))
        elif hasattr(source, "reconfigure"):
            source.reconfigure(encoding="utf-8", errors="strict", newline="\n")
        if arguments.output != "-":
            sink = stack.enter_context(open(arguments.output, "w", encoding="utf-8"))
        advance = stack.enter_context(progress_bar(total))
        gather = live_windows if from_stdin else windows
        for prompts in gather(read_prompts(source, name, arguments.jsonl), size):
            for row in answer(predictor, prompts, done, arguments):
                line = (
                    json.dumps(row, ensure_ascii=False)
                    if arguments.jsonl
                    else " ".join(row["answer"].splitlines())
                )
                sink.write(line + "\n")
            sink.flush()
            done += len(prompts)
            advance(len(prompts))
    if not done:
        raise InputError(f"{name} is empty: give one prompt a line")
    return done


def main() -> None:
    arguments = tyro.cli(Arguments, prog="python -m coin_jax.generate", description=__doc__)
    try:
        run(arguments)
    except BrokenPipeError:  # whoever read the answers has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
