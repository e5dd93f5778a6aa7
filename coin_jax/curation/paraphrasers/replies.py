"""What a chat endpoint's replies mean: an answer, a reason to try again, or one to stop."""

from __future__ import annotations

import email.utils
import json
import time
from typing import Any, NamedTuple

import httpx2

from coin_jax.curation.config import ChatConfig

PASSING = frozenset({408, 409, 425, 429})
"""Client errors that a later try may not meet; those of the server, from 500 on, are so too."""
OF_ONE_QUESTION = frozenset({"content_filter", "context_length_exceeded"})
"""Error codes that say nothing about the other questions."""


class ChatError(ValueError):
    """An endpoint that cannot be asked at all, with what to change."""


class NoAnswerError(Exception):
    """A try that gave nothing. `wait`: seconds the endpoint asks for; `again`: whether to retry."""

    def __init__(self, problem: str, wait: float = 0.0, again: bool = True):
        super().__init__(problem)
        self.wait, self.again = wait, again


class Reply(NamedTuple):
    text: str
    """Empty where it has none."""
    input_tokens: int
    output_tokens: int


def read_reply(response: httpx2.Response, settings: ChatConfig, key: str) -> Reply:
    """The text of an answer and what it cost.

    Raises: NoAnswerError where another try may help, ChatError where none will; neither says the
    key, though some endpoints repeat it.
    """
    try:
        content = response.json()
    except ValueError:
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
    tokens = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
    return Reply(text.strip(), *(count if isinstance(count, int) else 0 for count in tokens))


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
    text = message if isinstance(message, str) else json.dumps(message) if message else ""
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
