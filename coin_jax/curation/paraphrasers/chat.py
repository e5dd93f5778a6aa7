"""Wordings by a chat model: what it is asked, and how its answer is read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from coin_jax.curation.config import ChatConfig
from coin_jax.curation.paraphrasers.endpoint import Endpoint, Sleep
from coin_jax.curation.paraphrasers.paraphraser import (
    Request,
    Usage,
    has_words,
    keep_sound,
)
from coin_jax.progress import Progress
from coin_jax.robustness.perturb import frozen_spans

SPARE = 2
"""Wordings asked for beyond those wanted; some lose a placeholder."""
MOST_NAMED = 20
"""Answers that the prompt names at most."""

ROLE = (
    "You reword instructions that other people follow. Whoever follows your wording gives exactly "
    "the answer that the original asks for. You never carry out the instruction yourself."
)

PROMPT = """\
Write {count} different wordings of the instruction between the <instruction> tags.

- Ask for the same thing and leave out no condition.
- Differ in structure and in words: ask, command, put the material before or after the request. \
Write in the language of the original, correctly, and about as long.
- Text in braces stands for material that is put in later. The wording must make sense with it.\
{rules}
- Give neither answers nor examples nor comments.

<instruction>
{text}
</instruction>

Reply with nothing but a JSON array of {count} strings."""


class Chat:
    """Rewordings by any endpoint that speaks OpenAI's protocol; several with one question.

    Raises: ChatError for an address or a key that cannot be one.
    """

    name, origin = "chat", "chat"

    def __init__(
        self,
        settings: ChatConfig,
        wordings: int,
        sleep: Sleep = asyncio.sleep,
    ):
        self.usage, self.notes = Usage(), []
        self._count = wordings + SPARE
        self._endpoint = Endpoint(settings, self._read, self.usage, self.notes, sleep)

    def reword(self, requests: Sequence[Request], progress: Progress) -> list[list[str]]:
        """Raises: ChatError where the endpoint answers no question, such as for a wrong key."""
        asked = [request for request in requests if has_words(request.text)]
        answers = self._endpoint.ask(
            [messages(request, self._count) for request in asked], progress
        )
        given = iter(answers)
        results = []
        for request in requests:
            candidates = (next(given) if has_words(request.text) else None) or []
            results.append(keep_sound(request.text, candidates, request.frozen))
            self.usage.dropped += len(candidates) - len(results[-1])
        return results

    def _read(self, answer: str) -> list[str]:
        return read_rewordings(answer)[: self._count]


def messages(request: Request, count: int) -> list[dict[str, str]]:
    """The question, as messages of the chat protocol."""
    text = request.text
    kept = [text[start:end] for start, end in frozen_spans(text, request.frozen)]
    said = {" ".join(each.casefold().split()) for each in kept}
    unsaid = [word for word in request.frozen if " ".join(word.casefold().split()) not in said]
    rules = ""
    if kept:
        rules += "\n- Copy each of these letter by letter, exactly as often: " + _listed(kept)
    if unsaid:
        rules += "\n- Do not use these words: " + _listed(unsaid[:MOST_NAMED])
    return [
        {"role": "system", "content": ROLE},
        {"role": "user", "content": PROMPT.format(count=count, rules=rules, text=text)},
    ]


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(json.dumps(text, ensure_ascii=False) for text in texts)


def read_rewordings(content: str) -> list[str]:
    """The strings of the JSON array in an answer, whatever is said around it.

    Reasoning up to `</think>`, a fence, a sentence before or an object around the array do not
    matter. Raises: ValueError where there is no such array, where it is cut off, or holds anything
    else than texts.
    """
    content = content.rpartition("</think>")[2]
    try:
        # Models break lines inside strings, which strict JSON forbids.
        found = json.loads(content[content.index("[") : content.rindex("]") + 1], strict=False)
    except (ValueError, RecursionError):
        raise ValueError("no whole JSON array in the answer") from None
    if not found or not all(isinstance(each, str) and each.strip() for each in found):
        raise ValueError("a JSON array of something else than texts")
    return found
