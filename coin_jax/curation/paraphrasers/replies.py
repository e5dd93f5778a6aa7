"""What a chat endpoint's replies mean: an answer, a reason to try again, or one to stop."""

from __future__ import annotations

import email.utils
import json
import time
from typing import Any, NamedTuple

import httpx2

from coin_jax.curation.config import ChatConfig
from coin_jax.untrusted import printable, shown

PASSING = frozenset({408, 409, 425, 429})
"""Client errors that a later try may not meet; those of the server, from 500 on, are so too."""
OF_ONE_QUESTION = frozenset({"content_filter", "context_length_exceeded"})
"""Error codes that say nothing about the other questions."""


MOST_TOKENS = 10**9
"""Of one answer, as its endpoint says."""
LARGEST_REPLY = 16 << 20
"""Bytes; ten wordings have a thousandth."""


class ChatError(ValueError):
    """An endpoint that cannot be asked at all, with what to change."""

    def __str__(self) -> str:
        return printable(super().__str__())


class NoAnswerError(Exception):
    """A try that gave nothing. `wait`: seconds the endpoint asks for; `again`: whether to retry."""

    def __init__(self, problem: str, wait: float = 0.0, again: bool = True):
        super().__init__(problem)
        self.wait, self.again = wait, again

    def __str__(self) -> str:
        return printable(super().__str__())


class Reply(NamedTuple):
    text: str
    """Empty where it has none."""
    input_tokens: int
    output_tokens: int


async def read_content(response: httpx2.Response) -> bytes:
    """What an endpoint sends. Raises: NoAnswerError for more than any answer has."""
    # Other ways of packing can make gigabytes of the few bytes that come at a time.
    if response.headers.get("content-encoding", "") not in ("", "identity", "gzip", "deflate"):
        raise NoAnswerError("an answer packed in a way that was not asked for", again=False)
    content = bytearray()
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > LARGEST_REPLY:
            raise NoAnswerError(f"an answer of more than {LARGEST_REPLY:,} bytes", again=False)
    return bytes(content)


def read_reply(response: httpx2.Response, sent: bytes, settings: ChatConfig, key: str) -> Reply:
    """The text of an answer and what it cost; `sent` is the response's content.

    Raises: NoAnswerError where another try may help, ChatError where none will; neither says the
    key, though some endpoints repeat it.
    """
    try:
        content = json.loads(sent)
    except (ValueError, RecursionError):
        content = None
    if response.status_code != 200:
        raise _refusal(response, content, settings, key)
    match content:
        case {"choices": [{"message": {"content": str(text)}}, *_]}:
            pass
        case {"error": error} if error:
            raise NoAnswerError(f"an error in place of an answer: {_message(content, key)}")
        case _:
            text = ""
    usage = content.get("usage") if isinstance(content, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    text = text.encode("utf-8", "replace").decode()  # JSON can spell half a character
    known = (isinstance(count, int) and 0 <= count < MOST_TOKENS for count in tokens)
    input_tokens, output_tokens = (
        count if is_count else 0 for count, is_count in zip(tokens, known, strict=True)
    )
    return Reply(text.strip(), input_tokens, output_tokens)


def _refusal(response: httpx2.Response, content: Any, settings: ChatConfig, key: str) -> Exception:
    """What a status other than 200 means."""
    status, says = response.status_code, _message(content, key) or response.reason_phrase
    problem = f"HTTP {status}: {says}".rstrip(": ")
    match content:
        case {"error": {"code": str(code)}}:
            pass
        case _:
            code = ""
    if code in OF_ONE_QUESTION:
        return NoAnswerError(problem, again=False)
    # OpenAI says 429 both for too many requests and for an account without credit.
    if code != "insufficient_quota" and (status in PASSING or status >= 500):
        return NoAnswerError(problem, wait=retry_after(response.headers.get("retry-after", "")))
    variable = settings.key_variable
    helps = {
        400: "look at chat.model and chat.temperature: some models take no temperature but 1",
        401: f"the environment variable {variable} must hold a valid key"
        + ("" if key else "; it is not set"),
        403: f"the key in {variable} may not use the model {settings.model!r}",
        404: f"look at chat.base_url, which often ends in /v1, and at chat.model, "
        f"{settings.model!r}",
        429: "the account has no credit left",
    }
    if location := response.headers.get("location"):
        location = location.replace(key, "***") if key else location
        helps[status] = f"chat.base_url has moved to {location}"
    help_ = helps.get(status, "trying again would not help")
    return ChatError(f"{response.request.url} answers {problem} ({help_})")


def _message(content: Any, key: str) -> str:
    """The endpoint's own words, in one line."""
    match content:
        case {"error": {"message": message}} | {"error": message} | {"detail": message}:
            pass
        case _:
            message = content
    text = message if isinstance(message, str) else shown(message, 300) if message else ""
    text = text.replace(key, "***") if key else text
    return " ".join(text.split())[:300].rstrip(".")


def retry_after(value: str) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 for anything else."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return seconds if seconds > 0 else 0.0  # not for nan
