"""What an OpenAI-compatible server sends: answers read out of it, whatever it is, and why it is to be asked again."""

import datetime
import email.utils
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

RETRIED = frozenset({408, 409, 425, 429})
"""Codes of a client's error after which the same request may succeed, beside all of the server's (5xx)."""
NO_MONEY = "insufficient_quota"
"""A 429 that no waiting mends, by the error's code."""
ALONE = frozenset({400, 413, 422})
"""Codes that may be of this request's text alone: too long for the model, or not to be read."""
CUT = "\n(cut at the length limit)"
"""Behind the words of a reply that has no end of its own: whatever stands last in them is no conclusion."""
SHOWN_CHARS = 400
"""Of what a server said, in messages."""


class TryAgain(Exception):
    """A request came to nothing, and the same one may succeed: which kind of fault, and what the server asks for."""

    def __init__(self, kind: str, said: str, wait_s: float = 0.0) -> None:
        super().__init__(said)
        self.kind, self.wait_s = kind, wait_s


class Refused(Exception):
    """The same request will never succeed; `alone`: another one may."""

    def __init__(self, said: str, *, alone: bool = False) -> None:
        super().__init__(said)
        self.alone = alone


@dataclass(frozen=True)
class Said:
    """One answer."""

    text: str
    thought: str | None
    """What a server that takes the model's thinking out of the answer says that it was."""
    finish: str
    """"stop", "length", "content_filter" or whatever else the server says."""
    stop_reason: str | int | None
    """The stop string that ended it, where the server says so."""
    says_stop_reason: bool
    """Whether it does: else an answer's own end and a stop string look alike."""


@dataclass(frozen=True)
class Reply:
    """What came for one request."""

    choices: tuple[Said, ...]
    input_tokens: int | None
    output_tokens: int | None
    """Of all choices, as the server counts them; None where it counts nothing."""


@dataclass(frozen=True)
class Told:
    """What is made, and kept, of an answer of any other form: a JSON value."""

    value: Any
    input_tokens: int | None
    output_tokens: int | None


def refuse_status(code: int, headers: Mapping[str, str], content: bytes) -> None:
    """Raises TryAgain or Refused on any status but 200."""
    if code == 200:
        return
    said = f"{code}: {shown(content)}"
    if code in RETRIED or code >= 500:
        if _error_code(content) == NO_MONEY:
            raise Refused(f"answered {said}")
        raise TryAgain(str(code), f"answered {said}", retry_after_s(headers))
    hint = {
        401: "; is the key that endpoint.api_key_env names the right one?",
        403: "; is the key that endpoint.api_key_env names the right one?",
        404: "; are endpoint.url and endpoint.model right?",
    }.get(code, "")
    moved = f", to {headers['location']}" if code in range(300, 400) and "location" in headers else ""
    raise Refused(f"answered {said}{moved}{hint}", alone=code in ALONE)


def retry_after_s(headers: Mapping[str, str]) -> float:
    """What a Retry-After header asks for: seconds, or a date; 0 where there is none that can be read."""
    asked = headers.get("retry-after", "")
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(asked)
    except ValueError:
        return 0.0
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.UTC)
    return max(0.0, date.timestamp() - time.time())


def read(content: bytes, n: int, *, chat: bool) -> Reply:
    """The n answers of a body, in order of their indices.

    Raises:
        TryAgain: it is not JSON, or JSON of another kind.
    """

    def answers(body: Mapping[str, Any]) -> tuple[Said, ...]:
        choices = sorted(body["choices"], key=lambda choice: choice.get("index", 0))
        if len(choices) != n:
            raise ValueError(f"{len(choices)} answers where {n} were asked for")
        return tuple(_choice(choice, chat=chat) for choice in choices)

    return Reply(*_made(content, answers))


def read_score(content: bytes) -> Told:
    """The one number of a body as vLLM's /pooling and /classify send it for one text: that of a model of one label.

    Raises:
        TryAgain: it is not JSON, or JSON of another kind, or no finite number.
    """

    def score(body: Mapping[str, Any]) -> float:
        (found,) = body["data"]
        values = found["probs" if "probs" in found else "data"]
        while isinstance(values, list) and values and isinstance(values[0], list):  # [[x]]: a row a text
            (values,) = values
        if len(values) != 1:
            raise ValueError(f"{len(values)} numbers, where a reward model has one")
        if not isinstance(values[0], int | float) or not math.isfinite(values[0]):
            raise ValueError("no finite number")
        return float(values[0])

    return Told(*_made(content, score))


def _made(content: bytes, make: Callable[[Mapping[str, Any]], T]) -> tuple[T, int | None, int | None]:
    """What is made of a body, and the tokens that it counts of prompts and answers. Raises TryAgain."""
    try:
        body = json.loads(content)
        if not isinstance(body, dict):
            raise TypeError("no object")
        if body.get("error"):
            raise ValueError(f"an error: {json.dumps(body['error'])[:SHOWN_CHARS]}")
        made = make(body)
        usage = body.get("usage") or {}
        counts = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = f"{type(error).__name__}: {error}"[:SHOWN_CHARS]
        raise TryAgain("malformed", f"sent something else than answers ({said}): {shown(content)}") from error
    return made, counts[0], counts[1]


def _choice(choice: Mapping[str, Any], *, chat: bool) -> Said:
    said = choice["message"] if chat else choice
    text, thought = said["content" if chat else "text"], None
    if chat:  # the names by which vLLM, SGLang and DeepSeek's API call it
        thought = said.get("reasoning_content") or said.get("reasoning")
    text = "" if text is None else text  # an answer that was cut while the model still thought
    if not isinstance(text, str) or not isinstance(thought, str | None):
        raise TypeError("an answer that is no text")
    text, thought = sendable(text), None if thought is None else sendable(thought)
    finish = choice["finish_reason"]
    if not isinstance(finish, str) or finish in ("tool_calls", "function_call", "error", "abort"):
        raise ValueError(f"an answer that ended with {finish!r}")
    named = next((name for name in ("stop_reason", "matched_stop") if name in choice), None)
    return Said(text, thought, finish, choice[named] if named else None, named is not None)


def sendable(text: str) -> str:
    """With "?" for half a surrogate pair, which JSON can spell and neither UTF-8 nor a tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _error_code(content: bytes) -> Any:
    try:
        return json.loads(content)["error"]["code"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def shown(content: bytes) -> str:
    """The beginning of a body, as a line of a message."""
    text = " ".join(content[: 4 * SHOWN_CHARS].decode("utf-8", "replace").split())
    return (text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}...") or "nothing"
