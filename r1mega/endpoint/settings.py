"""Settings of an endpoint: a server that speaks OpenAI's chat completions or completions. Imports pydantic alone."""

import json
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from r1mega.config.section import OnResume, Section

OURS = frozenset(
    {
        "model", "messages", "prompt", "n", "seed", "temperature", "top_p", "max_tokens", "max_completion_tokens",
        "stop", "stream",
    }
)  # fmt: skip
"""Fields of a request that other settings decide."""


class Endpoint(Section):
    """Which server is asked for which model, how hard, and how much of it."""

    url: str
    """Of the API, up to what `/chat/completions` follows: "https://api.deepseek.com/v1", "http://127.0.0.1:8000/v1"."""
    model: str
    """As the server calls it."""
    api_key_env: Annotated[str, OnResume.FREE] = ""
    """Name of the environment variable that holds the API key, where the server wants one. The key itself is read
    when the run starts, sent as a bearer token, and written nowhere."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """More fields of every request, as they are: { top_k = 20 }, { reasoning_effort = "high" }."""
    seeds: bool = True
    """Whether requests carry a seed; off for a server that refuses the field. Its answers are then not repeatable."""
    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """By which name a request limits an answer's length; OpenAI's newer models take the second alone."""
    concurrency: Annotated[int, OnResume.FREE] = Field(default=32, gt=0)
    """Requests under way at once."""
    attempts: Annotated[int, OnResume.FREE] = Field(default=8, gt=0)
    """Of one request, before the run stops."""
    first_wait_s: Annotated[float, OnResume.FREE] = Field(default=1.0, gt=0)
    """Before the second attempt; doubled for each further one, and drawn between half of it and all. What the
    server asks for (Retry-After) is waited at least."""
    longest_wait_s: Annotated[float, OnResume.FREE] = Field(default=60.0, gt=0)
    """Where the doubling ends."""
    timeout_s: Annotated[float, OnResume.FREE] = Field(default=1800.0, gt=0)
    """Longest wait for one answer, which comes as a whole."""
    deadline_s: Annotated[float, OnResume.FREE] = Field(default=7200.0, gt=0)
    """Longest time for a request with all its attempts and waits."""
    budget_requests: Annotated[int | None, OnResume.FREE] = Field(default=None, gt=0)
    """Requests that one start of the run may send, those that fail included; then it stops, and may be resumed."""
    budget_tokens: Annotated[int | None, OnResume.FREE] = Field(default=None, gt=0)
    """Tokens that one start may use, prompts and answers, as the server counts them. Checked before a request is
    sent: those under way then are still paid for."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            wrong = parts.scheme not in ("http", "https") or not parts.hostname or (parts.port or 1) < 1
        except ValueError:
            raise ValueError("should be an address such as http://127.0.0.1:8000/v1") from None
        if wrong or " " in url or not url.isprintable():
            raise ValueError("should be an address such as http://127.0.0.1:8000/v1")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("holds more than an address; a key is named by api_key_env, and further fields by extra")
        if parts.path.rstrip("/").endswith("/completions"):
            raise ValueError("is given up to what /chat/completions or /completions follows; take that off")
        return url.rstrip("/")

    @field_validator("extra")
    @classmethod
    def _is_more(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if ours := sorted(OURS & extra.keys()):
            raise ValueError(f"{', '.join(ours)}: decided by other settings; take it out")
        try:
            json.dumps(extra, allow_nan=False)
        except (TypeError, ValueError) as error:  # a date, inf, nan
            raise ValueError(f"is sent as JSON, which has no such value: {error}") from None
        return extra

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if name and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("should be the name of an environment variable; the key itself stands in no config")
        return name
