"""The client of one or more vLLM servers: tokens in, tokens and logprobs out, over /v1/completions.

A request is one prompt with n answers; answer i is drawn with seed + i. All servers hold the same weights and draw
the same answers, so which one is asked does not matter: `dispatch.py` decides it. A server that fails is restarted
and gets its weights again while the others take over what it had not answered; an answer that has come stays.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx

from r1mega.data.special_tokens import ends
from r1mega.data.tokenizer import load_tokenizer
from r1mega.errors import RolloutError
from r1mega.rollout import calls
from r1mega.rollout.calls import Dropped, Failed
from r1mega.rollout.completions import Job, Parts, Reader, body, describe, num_draws
from r1mega.rollout.dispatch import Dispatch, Portion
from r1mega.rollout.engine import OnAnswer, Request, SamplingParams
from r1mega.rollout.recovery import Recovery, Restarts
from r1mega.rollout.server import Server
from r1mega.samples import Completion

log = logging.getLogger(__name__)

_POLL_S = 1.0
"""Between two looks at a server's health."""


class _Todo:
    """One `generate`: what is asked of whom, and what has come."""

    def __init__(
        self, requests: Sequence[Request], job: Job, on_answer: OnAnswer | None, servers: Sequence[Server]
    ) -> None:
        self.requests, self.job, self._on_answer = requests, job, on_answer
        wanted = [num_draws(request, job) for request in requests]
        self.dispatch = Dispatch(wanted, [server.layout.max_num_seqs * server.layout.dp for server in servers])
        self._come: list[dict[int, Completion]] = [{} for _ in requests]
        self._num_open = len(requests)
        self.complete = asyncio.Event()
        self._changed = asyncio.Event()

    def portion(self, portion: Portion) -> Request:
        """A part of a request, as a request of its own."""
        request = self.requests[portion.index]
        return replace(request, n=portion.n, seed=request.seed + portion.first)

    def accept(self, server: int, index: int, completion: Completion) -> None:
        """Take an answer, which comes once."""
        self.dispatch.came(server, index, completion.index)
        come, request = self._come[index], self.requests[index]
        come[completion.index] = completion
        if len(come) == num_draws(request, self.job):
            if self._on_answer is not None:
                self._on_answer(index, self.answers(index))
            self._num_open -= 1
            if not self._num_open:
                self.complete.set()
        self.tell()

    def answers(self, index: int) -> tuple[Completion, ...]:
        """All n of a request; a greedy one n times."""
        come, request = self._come[index], self.requests[index]
        drawn = [come[i] for i in sorted(come)]
        if len(drawn) == request.n:
            return tuple(drawn)
        return tuple(replace(drawn[0], index=i, seed=request.seed + i) for i in range(request.n))

    def tell(self) -> None:
        """Have all who wait for a change look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        await self._changed.wait()


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
        todo = _Todo(requests, job, on_answer, self._servers)
        # Not asyncio's own threads: it would wait for a restart to end before an error or Ctrl-C gets through.
        threads = ThreadPoolExecutor(len(self._servers))
        try:
            await _together(self._serve(number, todo, threads) for number in range(len(self._servers)))
        finally:
            threads.shutdown(wait=False)
        return [todo.answers(index) for index in range(len(requests))]

    async def _serve(self, number: int, todo: _Todo, threads: ThreadPoolExecutor) -> None:
        """Keep a server at work until every request is answered, restarting it when it fails."""
        while not todo.complete.is_set():
            try:
                await self._session(number, todo)
            except Failed as failure:
                reissued = todo.dispatch.lost(number)
                todo.tell()
                await self._recover(self._servers[number], str(failure), reissued, todo.job.version, threads)
                todo.dispatch.back(number)

    async def _session(self, number: int, todo: _Todo) -> None:
        """Ask a server for its share until every request is answered.

        Raises:
            Failed: whatever restarting it may mend.
        """
        server = self._servers[number]
        failures = _Failures()
        async with (
            calls.client(server, server.layout.request_timeout_s) as http,
            calls.client(server, server.layout.health_timeout_s) as health,
        ):
            await _check_version(server, health, todo.job.version)
            feed = self._feed(number, http, todo, failures)
            await _until(todo.complete, [_watch(server, health), failures.first(), feed])

    async def _feed(self, number: int, http: httpx.AsyncClient, todo: _Todo, failures: "_Failures") -> None:
        """Send a server what it has room for, for ever."""
        asked = set[asyncio.Task[None]]()
        try:
            while True:
                while (portion := todo.dispatch.take(number)) is not None:
                    asked.add(task := asyncio.create_task(self._ask(number, http, todo, portion)))
                    task.add_done_callback(asked.discard)
                    task.add_done_callback(failures.see)
                    todo.tell()
                await todo.changed()
        finally:
            await _cancel(tuple(asked))

    async def _ask(self, number: int, http: httpx.AsyncClient, todo: _Todo, portion: Portion) -> None:
        """Have a portion answered, by a second request where the connection of the first one is dropped.

        On a busy machine a request can be held up for longer than the server keeps an idle connection, and so meet
        one that is being closed.
        """
        server = self._servers[number]
        try:
            await self._take_answers(number, http, todo, portion)
        except Dropped as dropped:
            log.warning("%s; asked again over a new connection", dropped)
            async with calls.client(server, server.layout.request_timeout_s) as new:
                for rest in todo.dispatch.left_of(number, portion):
                    await self._take_answers(number, new, todo, rest)

    async def _take_answers(self, number: int, http: httpx.AsyncClient, todo: _Todo, portion: Portion) -> None:
        """Ask once, and take each answer when it has come."""
        server, request = self._servers[number], todo.portion(portion)
        asked, parts = describe(request, todo.job), Parts(portion.n)
        async for event in calls.events(server, http, body(request, todo.job), asked):
            with _judged(server, asked):
                ended = [
                    self._reader.completion(portion.first + i, choice, todo.requests[portion.index], todo.job)
                    for i, choice in parts.add(event)
                ]
            for completion in ended:
                self._restarts.succeeded(server)
                todo.accept(number, portion.index, completion)
        with _judged(server, asked):
            parts.end()

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


@contextmanager
def _judged(server: Server, asked: str) -> Iterator[None]:
    """What is read of an answer inside, and cannot be used, is told with what was asked, and of whom."""
    refused = f"asked {server.url} for {asked}; its answer cannot be used"
    try:
        yield
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise Failed(f"{refused}: {type(error).__name__}: {error}. Its log: {server.log_file}") from error
    except RolloutError as error:
        raise RolloutError(f"{refused}: {error}. Its log: {server.log_file}") from error


class _Failures:
    """The first error of many tasks."""

    def __init__(self) -> None:
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def see(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self._first.done():
            self._first.set_exception(error)

    async def first(self) -> None:
        """Raise it, once there is one."""
        await self._first


async def _check_version(server: Server, http: httpx.AsyncClient, version: int) -> None:
    """The weights asked for must be the ones the server has."""
    found = (await calls.get(server, http, "/weight_info", "its weight version")).get("weight_version")
    if found != str(version):
        raise Failed(
            f"asked {server.url} to sample from version {version} of the weights, but it has {found!r}: "
            f"push them first (weights.push). Its log: {server.log_file}"
        )


async def _watch(server: Server, http: httpx.AsyncClient) -> None:
    """Look at a server's health for ever: a frozen one would keep its requests until they time out."""
    while True:
        await calls.get(server, http, "/health", "its health")
        await asyncio.sleep(min(_POLL_S, server.layout.health_timeout_s / 4))


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
