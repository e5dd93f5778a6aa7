"""Hostile values, and a sandbox to read files in: little memory, seconds, nothing is executed.

As a program it is the sandbox's server: it imports the readers once and forks for each file, since
a file that gets around the bounds takes its process down.
"""

from __future__ import annotations

import copy
import io
import json
import os
import pathlib
import random
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
MEMORY = 2 << 30
"""Bytes that reading may take beyond the libraries; PyArrow and XLA take half of it themselves."""
SECONDS = 20
"""Of processor time for one file. Of clock time it may be ten times this: machines are busy."""

# --- what reads -----------------------------------------------------------------------------


def read_rows(path: pathlib.Path) -> None:
    from coin_jax.data.sources import collect, expand_files, read_task_rows

    _refused(collect(read_task_rows(expand_files([str(path)], "data.files")), "skip")[1])


def read_pairs(path: pathlib.Path) -> None:
    from coin_jax.data.sources import collect, expand_files, read_pair_rows

    _refused(collect(read_pair_rows(expand_files([str(path)], "data.files")), "skip")[1])


def read_texts(path: pathlib.Path) -> None:
    from coin_jax.data.sources import DataError, expand_files, read_text

    texts = read_text(expand_files([str(path)], "data.files"))
    _refused([text for text in texts if isinstance(text, DataError)])


def read_prompts(path: pathlib.Path) -> None:
    from coin_jax.data.templates import asking_templates, read_templates

    for task, entries in read_templates([path]).items():
        for template in asking_templates(entries, ["text"], task)[0]:
            template.render({"text": "rain"}, "OPTIONS:\n- wet", "wet")


def read_suite(path: pathlib.Path) -> None:
    from coin_jax.robustness.suite import load_suite

    load_suite(path)


def read_set(path: pathlib.Path) -> None:
    from rich.console import Console

    from coin_jax.curation.inspection import inspect
    from coin_jax.data.contrastive_set import load_set

    sets = load_set(path, 0)
    for row in range(min(3, len(sets))):
        sets.get(row, 0)
    said = io.StringIO()
    inspect(path, 2, Console(file=said, width=80))
    assert not _STEERING.search(said.getvalue()), "the terminal is steered"


def read_config(path: pathlib.Path) -> None:
    from coin_jax.config import validate
    from coin_jax.config_files import load_file

    validate(load_file(str(path)))


def read_model(path: pathlib.Path) -> None:
    from coin_jax.model import huggingface

    huggingface.load(path)


def read_tokenizer(path: pathlib.Path) -> None:
    from coin_jax.config import TokenizerConfig
    from coin_jax.data.tokenizer import make_tokenizer

    kind = "sentencepiece" if path.suffix == ".model" else "huggingface"
    tokenizer = make_tokenizer(TokenizerConfig(kind=kind, path=str(path)))
    for text in ("", "Is it wet or dry?", "a" * 2000, "\x00 \u202e 🌧️"):
        tokenizer.decode(tokenizer.encode(text))
        tokenizer.prefix(text, 3)
        tokenizer.encode_batch([text, text])


def read_source(path: pathlib.Path) -> None:
    from coin_jax.curation.sources.records import Records
    from coin_jax.data.sources import DataError

    records = Records([path])
    loaded = [records.record(row)[1] for row in range(min(len(records), 100))]
    scanned = list(records.scan("task", "inputs"))
    _refused([row for row in (*loaded, *scanned) if isinstance(row, DataError)])


def read_set_config(path: pathlib.Path) -> None:
    from coin_jax.config_files import load_file
    from coin_jax.curation.config import SetConfig, validate

    validate(load_file(str(path), SetConfig))


def read_predictions(path: pathlib.Path) -> None:
    """What is damaged or does not fit counts as absent, and is asked again."""
    from coin_jax.robustness.store import PredictionStore

    known = PredictionStore(path.parent).read(path.stem, 4, 2)
    if known is not None:
        labels = [("wet", "dry")[chosen] for chosen in known.predictions if chosen >= 0]
        assert known.scores is None or known.scores[:, 0].sum() <= 0 or len(labels) == 4


def read_attack(path: pathlib.Path) -> None:
    from coin_jax.robustness.evaluation import is_end
    from coin_jax.robustness.store import PredictionStore
    from coin_jax.untrusted import printable

    record = PredictionStore(path.parent).read_record(path.stem)
    if record is not None and is_end(record):
        assert record["text"].encode() is not None
        check_message(printable(f"{record['text']}: {record['clean_accuracy']:.3f}"))


def read_reply(path: pathlib.Path) -> None:
    """What a chat endpoint sends, with each status; the words in it are shown to people."""
    import httpx2

    from coin_jax.curation.config import ChatConfig
    from coin_jax.curation.paraphrasers import ChatError
    from coin_jax.curation.paraphrasers.chat import read_rewordings
    from coin_jax.curation.paraphrasers.paraphraser import keep_sound
    from coin_jax.curation.paraphrasers.replies import NoAnswerError, read_reply

    request = httpx2.Request("POST", "http://localhost/v1/chat/completions")
    for status in (200, 400, 429, 500):
        try:
            response = httpx2.Response(status, request=request)
            reply = read_reply(response, path.read_bytes(), ChatConfig(), "sk-0123456789abcdefgh")
            reply.text.encode()
            assert 0 <= reply.input_tokens + reply.output_tokens < 2**40
            for wording in keep_sound("Is it {text} wet?", read_rewordings(reply.text), ()):
                check_message(wording.encode().decode())
        except (ChatError, NoAnswerError, ValueError) as error:
            check_message(str(error))


def read_run(path: pathlib.Path) -> None:
    from coin_jax.training.checkpoint import load_parameters

    load_parameters(path)


READERS: dict[str, Callable[[pathlib.Path], None]] = {
    "rows": read_rows,
    "pairs": read_pairs,
    "texts": read_texts,
    "templates": read_prompts,
    "suite": read_suite,
    "set": read_set,
    "config": read_config,
    "model": read_model,
    "tokenizer": read_tokenizer,
    "tokenizer_folder": read_tokenizer,
    "set_config": read_set_config,
    "predictions": read_predictions,
    "attack": read_attack,
    "reply": read_reply,
    "source": read_source,
    "run": read_run,
}


def _refused(errors: list[Exception]) -> None:
    """All errors of rows are looked at; one stands for them."""
    for error in errors:
        check_message(str(error))
    if errors:
        raise errors[0]


_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def check_message(message: str) -> None:
    """An error for people: not endless, nothing in it steers a terminal or cannot be printed."""
    assert len(message) < 21_000, f"a message of {len(message)} characters"
    assert not _STEERING.search(message), f"steers the terminal: {message[:200]!r}"
    assert message.strip(), "an error that says nothing"


def outcome(reader: str, path: pathlib.Path) -> str:
    """`read`, `refused: MESSAGE`, or the exception that is no answer."""
    try:
        READERS[reader](path)
    except BaseException as error:
        kinds = {"DataError", "MissingDataError", "ConfigError", "CheckpointError"}
        if type(error).__name__ not in kinds:
            raise
        check_message(str(error))
        return f"refused: {error}"
    return "read"


# --- the sandbox ----------------------------------------------------------------------------

_FORBIDDEN = {
    "pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen",
    "socket.connect", "socket.getaddrinfo", "webbrowser.open", "ctypes.dlopen",
}  # fmt: skip


class Result(NamedTuple):
    outcome: str
    seconds: float
    megabytes: int


class Sandbox:
    """Reads files in processes of their own. A context manager."""

    def __enter__(self) -> Sandbox:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "RUST_BACKTRACE": "0"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def read(self, reader: str, path: pathlib.Path) -> Result:
        return self._ask(reader, str(path))

    def fuzz(self, reader: str, path: pathlib.Path, file: pathlib.Path, seeds: range) -> Result:
        """Reads `path` once for each seed, with another damage to `file` each time."""
        return self._ask(reader, str(path), str(file), seeds.start, seeds.stop)

    def _ask(self, *request: Any) -> Result:
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return Result(*json.loads(self._process.stdout.readline()))


def serve() -> None:
    """Answers lines, each a request of `Sandbox`, with results."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import pandas  # noqa: F401 (PyArrow imports it when it is first asked for numpy)
    import pyarrow.parquet  # noqa: F401
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401

    import coin_jax.curation.inspection
    import coin_jax.curation.sources.records
    import coin_jax.data.contrastive_set
    import coin_jax.model.huggingface
    import coin_jax.robustness.suite
    import coin_jax.training.checkpoint  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(_forked(*json.loads(line))), file=answers, flush=True)


def _forked(reader: str, path: str, *fuzzing: Any) -> Result:
    receive, send = os.pipe()
    begin = time.monotonic()
    child = os.fork()
    if not child:
        os.close(receive)
        try:
            text = _confined(reader, pathlib.Path(path), *fuzzing)
            os.write(send, text.encode("utf-8", "replace")[:60_000])
        finally:
            os._exit(0)
    os.close(send)
    ready = select.select([receive], [], [], 10 * SECONDS)[0]
    if not ready:
        os.kill(child, signal.SIGKILL)
    said = b""
    while chunk := os.read(receive, 65536):
        said += chunk
    os.close(receive)
    _, status, usage = os.wait4(child, 0)
    text = said.decode()
    if not ready:
        text = f"no answer within {10 * SECONDS} seconds"
    elif os.WIFSIGNALED(status):
        text = f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return Result(text, time.monotonic() - begin, usage.ru_maxrss // 1024)


def _confined(reader: str, path: pathlib.Path, *fuzzing: Any) -> str:
    """The outcome under the limits; what was executed, if anything was."""
    executed: list[str] = []
    folder = str(path if path.is_dir() else path.parent)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        is_foreign = event == "exec" and str(arguments[0].co_filename).startswith(folder)
        if event == "ctypes.dlopen" and not str(arguments[0]).startswith(folder):
            return
        if event in _FORBIDDEN or is_foreign:
            executed.append(f"{event} {arguments!r:.200}")

    if reader != "run":  # Orbax and XLA reserve more for their threads than files can ask for
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 2))
    os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
    sys.addaudithook(watch)
    try:
        text = fuzzed(reader, path, *fuzzing) if fuzzing else outcome(reader, path)
    except BaseException as error:
        import traceback

        frames = "".join(traceback.format_exception(error)[-4:])
        text = f"{type(error).__name__}: {error!s:.300}\n{frames[-1500:]}"
    return f"executed: {executed}" if executed else text


def fuzzed(reader: str, path: pathlib.Path, file: str, first: int, stop: int) -> str:
    """How many of the damaged files were read and refused; raises for the first that is neither."""
    sound, read = pathlib.Path(file).read_bytes(), 0
    for seed in range(first, stop):
        content = damaged(sound, random.Random(seed))
        pathlib.Path(file).write_bytes(content)
        try:
            read += outcome(reader, path) == "read"
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error!s:.500}") from error
    return f"{read} read, {stop - first - read} refused"


# --- what makes hostile values --------------------------------------------------------------

NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 10**30, -(10**30), 1e308, 0.5, "", " ", "\x00", "\x1b[31mred",
    "\u202egnp.exe", "\ud800", "{__class__}", "{text.__class__.__mro__}", "{}", "{{", "{",
    "%s%n", "../../etc/passwd", "/dev/zero", "A" * 5000, "🌧️", [], {}, [[]], [None], {"": ""},
    {"__class__": "x", "__init__": []}, [[[[[[[[[[]]]]]]]]]], ["\x1b]0;title\x07"] * 3,
)  # fmt: skip
"""Values that stand where others are expected."""


def places(value: Any, above: tuple = ()) -> Iterator[tuple]:
    """The path of each value within a document."""
    yield above
    inner = value.items() if isinstance(value, dict) else ()
    for key, entry in enumerate(value) if isinstance(value, list) else inner:
        yield from places(entry, (*above, key))


def mutated(document: Any, draw: random.Random) -> Any:
    """A document with one to three values replaced, left out, renamed or repeated."""
    document = json.loads(json.dumps(document))
    for _ in range(draw.randint(1, 3)):
        *above, last = draw.choice(list(places(document))) or (None,)
        if last is None:
            continue
        holder = document
        for key in above:
            holder = holder[key]
        match draw.randint(0, 5):
            case 0:
                del holder[last]
            case 1 if isinstance(holder, dict):
                name = draw.choice([value for value in NASTY if isinstance(value, str)])
                holder[name] = holder.pop(last)
            case 2 if isinstance(holder, list):
                holder.extend([holder[last]] * draw.choice((1, 100)))
            case 3 if isinstance(holder[last], str):
                begin = draw.randint(0, len(holder[last]))
                nasty = draw.choice([value for value in NASTY if isinstance(value, str)])
                holder[last] = holder[last][:begin] + nasty + holder[last][begin:]
            case _:
                # A copy: a later change within it would change it for all, or put it into itself.
                holder[last] = copy.deepcopy(draw.choice(NASTY))
    return document


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Bytes with some flipped, overwritten, cut out or put in twice."""
    content = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        begin = draw.randrange(len(content) + 1)
        size = draw.choice((1, 2, 4, 8, 100))
        match draw.randint(0, 4):
            case 0 if begin < len(content):
                content[begin] ^= 1 << draw.randrange(8)
            case 1:
                content[begin : begin + size] = bytes([draw.choice((0, 255, 127, 128))]) * size
            case 2:
                content[begin : begin + size] = draw.randbytes(size)
            case 3:
                del content[begin : begin + size * draw.choice((1, 10))]
            case _:
                content[begin:begin] = content[begin : begin + size * 10]
    return bytes(content)


def cut_numbers(text: str, draw: random.Random) -> str:
    """JSON text in which a number became one that no reader of JSON should take."""
    numbers = list(re.finditer(r"(?<=[:\[ ,])-?\d+(\.\d+)?", text))
    if not numbers:
        return text
    found = draw.choice(numbers)
    odd = draw.choice(("NaN", "Infinity", "-Infinity", "1e999", "1" * 5000, "0x10", "--1"))
    return text[: found.start()] + odd + text[found.end() :]


if __name__ == "__main__":
    serve()
