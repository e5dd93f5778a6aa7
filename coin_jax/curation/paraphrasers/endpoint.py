"""Questions to an OpenAI-compatible chat endpoint: each until it is answered, none twice.

An answer is a file in the cache as soon as it is there, so whatever ends a run, the next one asks
only what is missing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pathlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import httpx2

from coin_jax.curation.config import ChatConfig
from coin_jax.curation.paraphrasers.paraphraser import Progress, Usage
from coin_jax.curation.paraphrasers.replies import (
    LARGEST_REPLY,
    ChatError,
    NoAnswerError,
    Reply,
    read_content,
    read_reply,
)
from coin_jax.untrusted import read_bytes

LONGEST_BACK_OFF = 60.0
LONGEST_WAIT = 600.0
"""Seconds; an endpoint that asks for more is out of service for now."""

Sleep = Callable[[float], Awaitable[None]]


class Question(NamedTuple):
    key: str
    """A digest of all that the answer depends on."""
    body: dict[str, Any]


class Pace:
    """When the next request may go out: evenly spaced, and later where the endpoint asks for it."""

    def __init__(self, per_minute: float, sleep: Sleep):
        self._between = 60 / per_minute if per_minute else 0.0
        self._sleep, self._next = sleep, 0.0

    async def turn(self) -> None:
        now = time.monotonic()
        start = max(now, self._next)
        self._next = start + self._between
        if start > now:
            await self._sleep(start - now)

    def hold(self, seconds: float) -> None:
        """Nothing goes out for so long."""
        self._next = max(self._next, time.monotonic() + seconds)


class Endpoint:
    """Asks, waits, asks again, and remembers. The key goes into the requests' header alone.

    `read` makes what is wanted of an answer's text; its ValueError has the question asked again.

    Raises: ChatError for an address or a key that cannot be one.
    """

    def __init__(
        self,
        settings: ChatConfig,
        read: Callable[[str], list[str]],
        usage: Usage,
        notes: list[str],
        sleep: Sleep = asyncio.sleep,
    ):
        self._settings, self._read, self._sleep = settings, read, sleep
        self._usage, self._notes = usage, notes
        self._url = _chat_address(settings.base_url)
        self._key = _read_key(settings.key_variable)
        self._cache = pathlib.Path(settings.cache).expanduser()
        self._pace = Pace(settings.requests_per_minute, sleep)
        self._failures: Counter[str] = Counter()
        self._trouble = ""

    def ask(
        self, conversations: Sequence[Sequence[Mapping[str, str]]], progress: Progress
    ) -> list[list[str] | None]:
        """An answer to each list of messages, in their order; None where all attempts failed.

        Raises: ChatError where the endpoint will answer nothing, such as for a wrong key. What was
        answered until then, or until Ctrl-C, is kept.
        """
        questions = [self._question(messages) for messages in conversations]
        different = {question.key: question for question in questions}
        answers = {key: self._recall(question) for key, question in different.items()}
        missing = [question for key, question in different.items() if answers[key] is None]
        finished = len(different) - len(missing)
        self._usage.cached += finished
        self._usage.asked += len(missing)

        def show(more: int = 0) -> None:
            nonlocal finished
            finished += more
            progress(finished, len(different), self._summary())

        show()
        if missing:
            try:
                asyncio.run(self._ask_all(missing, answers, show))
            except ExceptionGroup as group:
                raise group.exceptions[0] from None
            finally:
                self._note_failures()
        return [answers[question.key] for question in questions]

    async def _ask_all(
        self,
        missing: Sequence[Question],
        answers: dict[str, list[str] | None],
        show: Callable[..., None],
    ) -> None:
        waiting = iter(missing)

        async def work() -> None:
            for question in waiting:
                answers[question.key] = await self._ask(client, question, show)
                show(1)

        # No time limit of the client's: its own begins anew with each piece that comes in.
        client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            limits=httpx2.Limits(max_connections=self._settings.concurrency),
            timeout=None,
        )
        async with client, asyncio.TaskGroup() as workers:
            for _ in range(min(self._settings.concurrency, len(missing))):
                workers.create_task(work())

    async def _ask(
        self, client: httpx2.AsyncClient, question: Question, show: Callable[[], None]
    ) -> list[str] | None:
        """Tries until there is an answer or an end to the attempts."""
        for attempt in range(1, self._settings.attempts + 1):
            await self._pace.turn()
            try:
                answer = await self._try(client, question)
            except NoAnswerError as error:
                problem = error
            else:
                self._trouble = ""
                return answer
            if problem.wait > LONGEST_WAIT:
                raise ChatError(
                    f"{self._url} asks to wait for {problem.wait / 60:.0f} minutes: {problem}. "
                    f"What was answered is kept, so the same command goes on later."
                )
            self._pace.hold(problem.wait)
            if not problem.again or attempt == self._settings.attempts:
                break
            self._trouble = str(problem)
            show()
            # Spread, lest all that failed together come back together.
            back_off = min(LONGEST_BACK_OFF, 2.0 ** (attempt - 1)) * random.uniform(0.5, 1)
            await self._sleep(max(problem.wait, back_off))
        if isinstance(problem.__cause__, httpx2.ConnectError):
            raise ChatError(
                f"no connection to {self._url}: {problem}. Is the server running, and is "
                f"chat.base_url right?"
            )
        self._failures[str(problem)] += 1
        self._usage.failed += 1
        return None

    async def _try(self, client: httpx2.AsyncClient, question: Question) -> list[str]:
        """One request. Raises NoAnswerError or ChatError where nothing useful comes back."""
        self._usage.tries += 1
        try:
            async with asyncio.timeout(self._settings.timeout):
                sending = client.stream("POST", self._url, json=question.body)
                async with sending as response:
                    sent = await read_content(response)
        except TimeoutError:
            raise NoAnswerError(f"no answer within {self._settings.timeout:g} s") from None
        except httpx2.RequestError as error:
            name = type(error).__name__
            raise NoAnswerError(f"{name}: {error}".rstrip(": ")) from error
        reply = read_reply(response, sent, self._settings, self._key)
        self._count(reply)
        try:
            answer = self._read(reply.text)
        except ValueError as error:
            raise NoAnswerError(str(error)) from None
        self._remember(question, reply)
        return answer

    def _count(self, reply: Reply) -> None:
        """Adds up what was paid for, useless answers included."""
        usage, settings = self._usage, self._settings
        usage.input_tokens += reply.input_tokens
        usage.output_tokens += reply.output_tokens
        usage.dollars = 1e-6 * (
            usage.input_tokens * settings.dollars_per_million_input_tokens
            + usage.output_tokens * settings.dollars_per_million_output_tokens
        )

    def _summary(self) -> str:
        """What there is to say beside the number of questions."""
        usage = self._usage
        parts = [f"{usage.cached} cached"] * bool(usage.cached)
        parts += [f"{usage.failed} failed"] * bool(usage.failed)
        parts += [f"{usage.input_tokens:,} + {usage.output_tokens:,} tokens"] * bool(usage.tries)
        parts += [f"${usage.dollars:.2f}"] * bool(usage.dollars)
        parts += [f"trying again: {self._trouble}"] * bool(self._trouble)
        return ", ".join(parts)

    def _note_failures(self) -> None:
        self._notes.extend(
            f"{count} of {self._usage.asked} questions to {self._settings.model} failed for good: "
            f"{problem}. The same command asks them again."
            for problem, count in self._failures.most_common()
        )
        self._failures.clear()

    def _question(self, messages: Sequence[Mapping[str, str]]) -> Question:
        settings = self._settings
        body = {
            "model": settings.model,
            "messages": list(messages),
            "temperature": settings.temperature,
        }
        content = json.dumps([self._url, body], sort_keys=True)
        return Question(hashlib.sha256(content.encode()).hexdigest()[:40], body)

    def _recall(self, question: Question) -> list[str] | None:
        """A former answer; None where there is none, or none that is whole and useful."""
        try:
            content = read_bytes(self._cache / f"{question.key}.json", 2 * LARGEST_REPLY)
            return self._read(str(json.loads(content)["answer"]))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def _remember(self, question: Question, reply: Reply) -> None:
        record = {
            "request": question.body,
            "answer": reply.text,
            "input_tokens": reply.input_tokens,
            "output_tokens": reply.output_tokens,
        }
        # Under another name first: whoever reads finds a whole file or none.
        self._cache.mkdir(parents=True, exist_ok=True)
        partial = self._cache / f"{question.key}.{os.getpid()}.partial"
        try:
            partial.write_text(json.dumps(record, ensure_ascii=False, indent=1), encoding="utf-8")
            os.replace(partial, self._cache / f"{question.key}.json")
        finally:
            partial.unlink(missing_ok=True)


def _chat_address(base_url: str) -> str:
    """Where questions go. ChatError for what is no address, or holds a password."""
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL as error:
        raise ChatError(f"chat.base_url is no address: {error}") from None
    if url.userinfo or url.query:
        raise ChatError(
            "chat.base_url must hold neither a password nor a key: chat.key_variable names the "
            "environment variable that holds it"
        )
    if url.scheme not in ("http", "https") or not url.host:
        raise ChatError(
            f"chat.base_url {base_url!r}: expected http:// or https:// and a host, such as "
            f"http://localhost:8000/v1"
        )
    return f"{base_url.rstrip('/')}/chat/completions"


def _read_key(variable: str) -> str:
    """The key, empty where there is none. ChatError for one that no header can hold."""
    key = os.environ.get(variable, "").strip() if variable else ""
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ChatError(f"the key in {variable} has blanks or letters that no key has")
    return key
