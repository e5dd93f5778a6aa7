"""A chat endpoint on this machine that misbehaves as it is told to."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Behaviour = Callable[["Handler"], None]
"""What happens to one request."""


class FakeChat:
    """A context manager. `plan(text, n)` gives what happens to the n-th request for a text; for
    None it is answered with rewordings, which repeat the text.
    """

    def __init__(self, plan: Callable[[str, int], Behaviour | None] = lambda text, number: None):
        self.plan = plan
        self.bodies: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.tries: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.lock = threading.Lock()

    def __enter__(self) -> FakeChat:
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.chat = self
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"
        arguments = {"poll_interval": 0.01}
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs=arguments)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    chat: FakeChat

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is nothing to print."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        chat = self.server.chat
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = self.body["messages"][-1]["content"]
        self.text = re.search(r"<instruction>\n(.*)\n</instruction>", question, re.S)[1]
        with chat.lock:
            chat.bodies.append(self.body)
            chat.headers.append({"path": self.path, **dict(self.headers)})
            chat.tries[self.text] += 1
            number = chat.tries[self.text]
        (chat.plan(self.text, number) or answer())(self)

    def reply(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def rewordings(text: str) -> list[str]:
    return [f"Wording {number}: {text}" for number in range(3)]


def say(content: str | None, tokens: tuple[int, int] = (100, 10)) -> Behaviour:
    """A reply as the protocol has it, with that text."""

    def act(handler: Handler) -> None:
        usage = dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True))
        choices = [{"message": {"role": "assistant", "content": content}}]
        handler.reply(json.dumps({"choices": choices, "usage": usage}).encode())

    return act


def answer() -> Behaviour:
    def act(handler: Handler) -> None:
        with handler.server.chat.lock:
            handler.server.chat.answered[handler.text] += 1
        say(json.dumps(rewordings(handler.text)))(handler)

    return act


def fail(status: int, message: str = "no", code: str | None = None, **headers: str) -> Behaviour:
    error = {"error": {"message": message, "code": code}}
    return lambda handler: handler.reply(json.dumps(error).encode(), status, **headers)


def raw(content: bytes) -> Behaviour:
    return lambda handler: handler.reply(content)


def hang_up(handler: Handler) -> None:
    """The connection ends before a reply."""
    handler.close_connection = True


def break_off(handler: Handler) -> None:
    """The connection ends in the middle of a reply."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def after(seconds: float, behaviour: Behaviour | None = None) -> Behaviour:
    def act(handler: Handler) -> None:
        time.sleep(seconds)
        (behaviour or answer())(handler)

    return act


def drip(seconds: float) -> Behaviour:
    """A reply that comes byte by byte, so that something always comes in."""

    def act(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            handler.wfile.write(b" ")
            time.sleep(0.02)
        handler.close_connection = True

    return act
