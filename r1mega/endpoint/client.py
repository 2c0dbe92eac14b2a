"""A client of one OpenAI-compatible server: many requests at once, each tried again while that may help.

    client = Client(settings, key)
    async with client.session():
        reply = await client.chat([{"role": "user", "content": "1 + 1 ="}], temperature=0.6, max_tokens=64)
        reply = await client.complete("1 + 1 =", max_tokens=64)

Tried again, after waits that double and that chance spreads: 408, 409, 425, 429, 5xx, time-outs, connections that
break, bodies that are no answers. A 429 or 503 with Retry-After holds all requests back for so long. 400, 413 and 422
refuse one request, whose text may be what the server cannot read. Any other status ends all at once, and so does a
budget that is used up: nothing more is sent then, for anybody. A request that is given up is its caller's matter
alone (`stop` makes it everybody's).

This is httpx with its own loop around, as in rollout/fleet.py, and not the `openai` package: that is vLLM's
dependency, absent where a model is asked over the network alone; it does not try again after a broken body, counts
no retries and knows no deadline over all attempts.
"""

import asyncio
import contextlib
import ipaddress
import itertools
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import httpx

from r1mega.endpoint.replies import Refused, Reply, TryAgain, read, refuse_status
from r1mega.endpoint.settings import Endpoint
from r1mega.errors import EndpointError, EndpointLostError

log = logging.getLogger(__name__)

MAX_BYTES = 64 * 2**20
"""Of a response; more is no answer."""
CONNECT_S = 30.0


class Counted(Protocol):
    """What is read out of an answer's body: it knows what the server counts of it, None where that is nothing."""

    @property
    def input_tokens(self) -> int | None: ...

    @property
    def output_tokens(self) -> int | None: ...


R = TypeVar("R", bound=Counted)


@dataclass
class Traffic:
    """What a client has done so far."""

    sent: int = 0
    """Requests, every attempt counted."""
    answered: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    retried: Counter[str] = field(default_factory=Counter)
    """Attempts that came to nothing and were made again, by kind: "429", "timeout", "connection", "malformed"."""
    failed: int = 0
    """Requests that were given up."""

    def told(self) -> str:
        """In a line."""
        again = ", ".join(f"{num} after {kind}" for kind, num in sorted(self.retried.items()))
        return (
            f"{self.sent:,} requests sent, {self.answered:,} answered ({self.input_tokens:,} tokens of prompts, "
            f"{self.output_tokens:,} of answers), {self.retried.total():,} tried again"
            + (f" ({again})" if again else "")
            + (f", {self.failed} given up" if self.failed else "")
        )


class Client:
    """Of one server; used by one event loop at a time."""

    def __init__(self, settings: Endpoint, key: str | None = None) -> None:
        """
        Args:
            key: the API key, sent as a bearer token; it stands in no message.
        """
        self.settings, self.counts = settings, Traffic()
        self._key = key
        self._http: httpx.AsyncClient | None = None
        self._places = asyncio.Semaphore(settings.concurrency)
        self._not_before = 0.0
        self._over: EndpointError | None = None

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        """Connections, for the event loop that runs."""
        local = _is_local(self.settings.url)
        self._places = asyncio.Semaphore(self.settings.concurrency)
        self._over = None
        async with httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(self.settings.timeout_s, connect=min(self.settings.timeout_s, CONNECT_S)),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=not local,  # a proxy that the environment names is for what is not on this machine
            verify=not local or self.settings.url.startswith("https"),
        ) as self._http:
            try:
                yield
            finally:
                self._http = None

    async def chat(self, messages: Sequence[Mapping[str, Any]], *, n: int = 1, **fields: Any) -> Reply:
        """n answers to a conversation. Raises as `ask`."""
        return await self.ask(
            "chat/completions", {"messages": list(messages), "n": n, **fields}, lambda body: read(body, n, chat=True)
        )

    async def complete(self, prompt: str, *, n: int = 1, **fields: Any) -> Reply:
        """n continuations of a text. Raises as `ask`."""
        return await self.ask(
            "completions", {"prompt": prompt, "n": n, **fields}, lambda body: read(body, n, chat=False)
        )

    async def ask(self, route: str, body: Mapping[str, Any], read: Callable[[bytes], R]) -> R:
        """What the server answers to `body`, a request without its model, within the deadline.

        Args:
            read: makes it of an answer's body; raises `replies.TryAgain` of one that is none.

        Raises:
            EndpointError: the server refuses it, or a budget is used up.
            EndpointLostError: it failed `attempts` times, or past the deadline.
        """
        body = {"model": self.settings.model, **body, **self.settings.extra}
        try:
            return await self._attempts(route, body, read)
        except Refused as refused:
            error = EndpointError(self._told(route, str(refused)))
            if refused.alone:
                self.counts.failed += 1
                raise error from refused
        except EndpointLostError:
            self.counts.failed += 1
            raise
        except EndpointError as over:
            error = over
        self.counts.failed += 1
        self.stop(error)
        raise error

    @property
    def over(self) -> EndpointError | None:
        """Why nothing more is sent in this session; None while it is."""
        return self._over

    def stop(self, error: EndpointError) -> None:
        """Send nothing more in this session; whoever asks, or would try again, gets this error."""
        self._over = self._over or error

    async def _attempts(self, route: str, body: Mapping[str, Any], read: Callable[[bytes], R]) -> R:
        """Raises Refused, EndpointLostError, and what is over already."""
        deadline: float | None = None
        for attempt in itertools.count(1):
            async with self._places:
                deadline = deadline or time.monotonic() + self.settings.deadline_s
                try:
                    return await self._attempt(route, body, read, deadline)
                except TryAgain as again:
                    fault = again
            wait = self._wait_s(attempt, fault)
            late = time.monotonic() + wait >= deadline
            if late or attempt == self.settings.attempts or self._over is not None:
                then = f"; the next would be in {wait:.0f} s, past endpoint.deadline_s" if late else ""
                raise EndpointLostError(self._told(route, f"{fault}. Given up after {attempt} attempt(s){then}"))
            self.counts.retried[fault.kind] += 1
            log.debug("%s", self._told(route, f"{fault}; attempt {attempt + 1} in {wait:.1f} s"))
            await asyncio.sleep(wait)
        raise AssertionError("endless")

    async def _attempt(self, route: str, body: Mapping[str, Any], read: Callable[[bytes], R], deadline: float) -> R:
        """Raises TryAgain, Refused, and what is over already."""
        while (held := self._not_before - time.monotonic()) > 0 and self._over is None:
            if time.monotonic() + held >= deadline:
                raise TryAgain("held back", "asked for a wait past the deadline", held)
            await asyncio.sleep(held)
        self._refuse_if_over()
        assert self._http is not None, "within `session` alone"
        self.counts.sent += 1
        limit = min(self.settings.timeout_s, max(deadline - time.monotonic(), 0.001))
        try:
            async with asyncio.timeout(limit):
                code, headers, content = await self._sent(route, body)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise TryAgain("timeout", f"no answer within {limit:g} s (endpoint.timeout_s)") from error
        except httpx.InvalidURL as error:
            raise Refused(f"is no address: {error}") from error
        except httpx.RequestError as error:
            raise TryAgain("connection", f"no answer: {type(error).__name__}: {error}") from error
        refuse_status(code, headers, content)
        reply = read(content)
        self.counts.answered += 1
        self.counts.input_tokens += reply.input_tokens or 0
        self.counts.output_tokens += reply.output_tokens or 0
        if self.settings.budget_tokens is not None and reply.output_tokens is None:
            raise Refused("counts no tokens (no usage in its answers), so that endpoint.budget_tokens cannot hold")
        return reply

    async def _sent(self, route: str, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        assert self._http is not None
        pieces, size = [], 0
        async with self._http.stream("POST", f"{self.settings.url}/{route}", json=body) as response:
            async for piece in response.aiter_bytes():
                pieces.append(piece)
                if (size := size + len(piece)) > MAX_BYTES:
                    raise TryAgain("malformed", f"sent more than {MAX_BYTES:,} bytes")
            return response.status_code, response.headers, b"".join(pieces)

    def _refuse_if_over(self) -> None:
        if self._over is not None:
            raise self._over
        settings, counts = self.settings, self.counts
        used = counts.input_tokens + counts.output_tokens
        for name, limit, so_far in (
            ("budget_requests", settings.budget_requests, counts.sent),
            ("budget_tokens", settings.budget_tokens, used),
        ):
            if limit is not None and so_far >= limit:
                raise EndpointError(
                    f"{settings.url}: endpoint.{name} = {limit:,} is used up: {so_far:,}; --resume begins another"
                )

    def _wait_s(self, attempt: int, again: TryAgain) -> float:
        """Before the next attempt; what the server asks for holds all requests back."""
        if again.wait_s:
            self._not_before = max(self._not_before, time.monotonic() + again.wait_s)
        doubled = self.settings.first_wait_s * 2.0 ** min(attempt - 1, 30)
        return max(min(doubled, self.settings.longest_wait_s) * random.uniform(0.5, 1.0), again.wait_s)

    def _told(self, route: str, what: str) -> str:
        """Without the key, which a server may send back."""
        text = f"{self.settings.url}/{route}: {what}"
        return text.replace(self._key, "[key]") if self._key else text


def _is_local(url: str) -> bool:
    """Whether an address is this machine's own."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
