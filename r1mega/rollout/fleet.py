"""The client of one or more vLLM servers: tokens in, tokens and logprobs out, over /v1/completions.

A request is one prompt with n answers; the server draws answer i with seed + i. All servers hold the same
weights, so which one answers does not matter; each gets enough requests to stay busy and no more. A server that
fails is restarted and gets its weights again while the others take over what it had not answered; a request is
answered whole or not at all.
"""

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from r1mega.data.special_tokens import ends
from r1mega.data.tokenizer import load_tokenizer
from r1mega.errors import RolloutError
from r1mega.rollout.completions import Job, Reader, body, describe
from r1mega.rollout.engine import OnAnswer, Request, SamplingParams
from r1mega.rollout.recovery import Recovery, Restarts
from r1mega.rollout.server import Server
from r1mega.samples import Completion

log = logging.getLogger(__name__)

_BACKLOG = 2
"""Sequences sent to a server per sequence that it can run: the next ones must already wait there."""
_COMPLETIONS = "/v1/completions"
_KEEPALIVE_S = 2.0
"""Less than vLLM's 5 s: a request on a connection that the server is closing would look like its death."""
_DROPPED = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)
"""A connection that ended before its answer did."""
_POLL_S = 1.0
"""Between two looks at a server's health."""


class _Failed(Exception):
    """A server did not do what any server should: it is restarted."""


class _Todo:
    """One `generate`: all servers take requests from one queue, and those of a server that fails return there."""

    def __init__(self, requests: Sequence[Request], job: Job, on_answer: OnAnswer | None) -> None:
        self.requests, self.job, self._on_answer = requests, job, on_answer
        self.waiting: asyncio.Queue[int] = asyncio.Queue()
        self.give_back(range(len(requests)))
        self.answers: dict[int, tuple[Completion, ...]] = {}
        self.complete = asyncio.Event()

    def give_back(self, indices: Iterable[int]) -> None:
        for index in indices:
            self.waiting.put_nowait(index)

    def accept(self, index: int, completions: tuple[Completion, ...]) -> None:
        self.answers[index] = completions
        if self._on_answer is not None:
            self._on_answer(index, completions)
        if len(self.answers) == len(self.requests):
            self.complete.set()


class Fleet:
    """An `Engine` over vLLM servers."""

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        reload: Callable[[Server, int], None] | None = None,
        on_recovery: Callable[[Recovery], None] | None = None,
    ) -> None:
        """Nothing is asked of the servers yet.

        Args:
            servers: of one model, ready (`Server.wait_ready`) by the first `generate`.
            reload: gives a restarted server the weights of a version and returns once it samples from them; called
                from other threads, for several servers at once. Without it only version 0 survives a failure.
            on_recovery: called after each recovery, from the thread of `generate`.
        """
        self._servers, self._reload = tuple(servers), reload
        self._on_recovery = on_recovery or (lambda _: None)
        tokenizer = load_tokenizer(self._servers[0].model_dir)
        self._ends = ends(tokenizer)
        self._reader = Reader(tokenizer.backend_tokenizer, min(server.vocab_size for server in self._servers))
        self._restarts = Restarts()

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        version: int,
        on_answer: OnAnswer | None = None,
    ) -> list[tuple[Completion, ...]]:
        """See `Engine.generate`."""
        job = Job(params, version, self._ends)
        return asyncio.run(self._generate(requests, job, on_answer)) if requests else []

    async def _generate(
        self, requests: Sequence[Request], job: Job, on_answer: OnAnswer | None
    ) -> list[tuple[Completion, ...]]:
        todo = _Todo(requests, job, on_answer)
        # Not asyncio's own threads: it would wait for a restart to end before an error or Ctrl-C gets through.
        threads = ThreadPoolExecutor(len(self._servers))
        try:
            await _together(self._serve(server, todo, threads) for server in self._servers)
        finally:
            threads.shutdown(wait=False)
        return [todo.answers[i] for i in range(len(requests))]

    async def _serve(self, server: Server, todo: _Todo, threads: ThreadPoolExecutor) -> None:
        """Keep a server at work until every request is answered, restarting it when it fails."""
        while not todo.complete.is_set():
            asked: set[int] = set()
            try:
                await self._session(server, todo, asked)
            except _Failed as failure:
                todo.give_back(sorted(asked))
                await self._recover(server, str(failure), len(asked), todo.job.version, threads)

    async def _session(self, server: Server, todo: _Todo, asked: set[int]) -> None:
        """Ask a server until every request is answered; `asked` holds the indices that it has not answered yet.

        Raises:
            _Failed: whatever restarting it may mend.
        """
        limit_s = server.layout.health_timeout_s
        most = max(request.n for request in todo.requests)
        width = min(math.ceil(_BACKLOG * server.layout.max_num_seqs / most), len(todo.requests))

        async def work(http: httpx.AsyncClient) -> None:
            while True:
                index = await todo.waiting.get()
                asked.add(index)
                completions = await self._answer(server, http, todo.requests[index], todo.job)
                asked.remove(index)
                self._restarts.succeeded(server)
                todo.accept(index, completions)

        async with (
            _client(server, server.layout.request_timeout_s) as http,
            _client(server, limit_s) as health,
        ):
            await _check_version(server, health, todo.job.version)
            await _until(todo.complete, [_watch(server, health), *(work(http) for _ in range(width))])

    async def _recover(
        self, server: Server, reason: str, reissued: int, version: int, threads: ThreadPoolExecutor
    ) -> None:
        """Bring a failed server back to the weights of `version`.

        Raises:
            RolloutError: it failed too often, or there is nobody to give it these weights.
        """
        if version and self._reload is None:
            raise RolloutError(
                f"{reason}. A restarted server has version 0 of the weights, and nobody gives it others"
            )
        begin, url = time.monotonic(), server.url
        await asyncio.get_running_loop().run_in_executor(threads, self._bring_back, server, reason, version)
        self._on_recovery(Recovery(url, reason, time.monotonic() - begin, reissued))

    def _bring_back(self, server: Server, reason: str, version: int) -> None:
        self._restarts.bring_back(server, reason)
        if self._reload is not None:
            self._reload(server, version)

    async def _answer(
        self, server: Server, http: httpx.AsyncClient, request: Request, job: Job
    ) -> tuple[Completion, ...]:
        """One request's answers, checked."""
        asked = describe(request, job)
        answer = await _call(server, http, "POST", _COMPLETIONS, body(request, job), asked)
        refused = f"asked {server.url} for {asked}; its answer cannot be used"
        try:
            return self._reader.completions(answer, request, job)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise _Failed(f"{refused}: {type(error).__name__}: {error}. Its log: {server.log_file}") from error
        except RolloutError as error:
            raise RolloutError(f"{refused}: {error}. Its log: {server.log_file}") from error


async def _check_version(server: Server, http: httpx.AsyncClient, version: int) -> None:
    """The weights asked for must be the ones the server has."""
    found = (await _call(server, http, "GET", "/weight_info", None, "its weight version")).get("weight_version")
    if found != str(version):
        raise _Failed(
            f"asked {server.url} to sample from version {version} of the weights, but it has {found!r}: "
            f"push them first (weights.push). Its log: {server.log_file}"
        )


async def _watch(server: Server, http: httpx.AsyncClient) -> None:
    """Look at a server's health for ever: a frozen one would keep its requests until they time out."""
    while True:
        await _call(server, http, "GET", "/health", None, "its health")
        await asyncio.sleep(min(_POLL_S, server.layout.health_timeout_s / 4))


def _client(server: Server, timeout_s: float) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=server.url,
        timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 30.0)),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEPALIVE_S),
        trust_env=False,
        verify=False,  # plain http; reading the certificates takes longer than most calls
    )


async def _call(
    server: Server, http: httpx.AsyncClient, verb: str, route: str, body: Any, asked: str
) -> dict[str, Any]:
    """A JSON object, empty where the server sent nothing.

    Raises:
        _Failed: no answer, a server error, or something else than JSON.
        RolloutError: the server refuses the request itself (4xx).
    """
    try:
        response = await _sent(server, http, verb, route, body, asked)
    except httpx.HTTPError as error:
        state = "it still runs" if server.alive() else "its process has ended"
        setting = "request_timeout_s" if route == _COMPLETIONS else "health_timeout_s"
        limit = f" within {http.timeout.read:g} s (rollout.{setting})"
        late = limit if isinstance(error, httpx.TimeoutException) else ""
        raise _Failed(
            f"asked {server.url} for {asked}: no answer{late} ({type(error).__name__}); {state}. "
            f"Its log: {server.log_file}"
        ) from error
    said = f"asked {server.url} for {asked}: it answered {response.status_code} {response.text[:500]}"
    if response.is_client_error:
        raise RolloutError(f"{said}. Its log: {server.log_file}")
    try:
        answer = json.loads(response.content or b"{}")
    except ValueError:
        answer = None
    if response.status_code != httpx.codes.OK or not isinstance(answer, dict):
        raise _Failed(f"{said}. Its log: {server.log_file}")
    return answer


async def _sent(
    server: Server, http: httpx.AsyncClient, verb: str, route: str, body: Any, asked: str
) -> httpx.Response:
    """What comes back. Asked once more, on a new connection, where a server that still runs has dropped this one.

    On a busy machine a request can be held up for longer than the server keeps an idle connection, and so meet one
    that is being closed. A restart would take a minute, and the same request has the same answer.

    Raises:
        HTTPError: no answer.
    """
    try:
        return await http.request(verb, route, json=body)
    except _DROPPED as error:
        if not server.alive():
            raise
        log.warning(
            "%s dropped the connection (%s) over which it was asked for %s: asked again over a new one", server.url,
            type(error).__name__, asked,
        )  # fmt: skip
        async with _client(server, http.timeout.read or server.layout.request_timeout_s) as new:
            return await new.request(verb, route, json=body)


async def _until(event: asyncio.Event, endless: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all of them until the event; the first error cancels the others and is raised as it is."""
    tasks = [asyncio.create_task(coroutine) for coroutine in (_wait(event), *endless)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not event.is_set():
            for task in done:
                task.result()
    finally:
        await _cancel(tasks)


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _together(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all to their end; the first error cancels the others and is raised as it is."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
