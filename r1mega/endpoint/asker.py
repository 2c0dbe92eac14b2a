"""Asks an endpoint from any thread, without keeping it: a future for each question.

    with EndpointAsker(Client(settings, key), ReplyCache(run_dir.path / "judge.jsonl")) as asker:
        said = asker.ask([{"role": "user", "content": "1 + 1 ="}], seed=7, temperature=0.7, max_tokens=64)
        ...
        said.result()

Who waits for whom: a thread of its own runs an event loop with the client's session in it. `ask` hands it a coroutine
and returns; the coroutine looks into the cache, waits for whoever asks the very same at the moment, or asks the
client and keeps what comes. Callbacks of the futures run in that thread and must not wait in it.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from r1mega.endpoint.cache import ReplyCache, key_of
from r1mega.endpoint.client import Client
from r1mega.endpoint.replies import CUT, Told, read
from r1mega.errors import EndpointError, EndpointLostError

log = logging.getLogger(__name__)

MAX_LOST = 64
"""Requests that are given up one after the other, with no answer between them, before nothing more is sent: a server
that hangs would otherwise keep a rollout for the time-outs of all its answers."""
CLOSE_S = 30.0


class EndpointAsker:
    """Of one client. Started by the first question; `close` gives up what is under way."""

    def __init__(self, client: Client, cache: ReplyCache | None = None) -> None:
        """cache: of what was said before; None: one in memory."""
        self.client = client
        self.cache = cache if cache is not None else ReplyCache()
        self.asked = self.cached = self.unreadable = 0
        """Questions so far; those of them that were answered out of the cache or by another's answer; answers of
        which whoever asked could make nothing."""
        self._figured: dict[str, int] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Event | None = None
        self._ready = threading.Event()
        self._closed = False
        self._under_way: dict[str, asyncio.Future[Any]] = {}
        self._lost = 0
        """Requests given up since the last answer."""

    @property
    def address(self) -> str:
        """Who is asked, for people."""
        return f"{self.client.settings.model} at {self.client.settings.url}"

    def ask(
        self, messages: Sequence[Mapping[str, Any]], *, seed: int, temperature: float, max_tokens: int
    ) -> Future[str]:
        """What the model says to a conversation; a thought that the server takes out of it is left out, and an answer
        that is cut ends with `replies.CUT`.

        Args:
            seed: tells questions of equal words apart, where the server takes no seeds as well: a further vote is
                another request.

        The future raises EndpointError, EndpointLostError: as `Client.ask`.
        """
        settings = self.client.settings
        body: dict[str, Any] = {
            "messages": [dict(message) for message in messages],
            "n": 1,
            "temperature": temperature,
            settings.length_field: max_tokens,
        }
        key = self._key("chat/completions", body, seed)
        if settings.seeds:
            body["seed"] = seed

        def text(content: bytes) -> Told:
            reply = read(content, 1, chat=True)
            (said,) = reply.choices
            ended = CUT if said.finish == "length" else ""
            return Told(said.text + ended, reply.input_tokens, reply.output_tokens)

        return self._submit(self._told(key, "chat/completions", body, text))

    def call(self, route: str, body: Mapping[str, Any], read: Callable[[bytes], Told]) -> Future[Any]:
        """What `read` makes of the answer to a request of another form: its `value`, JSON.

        The future raises as `ask`'s.
        """
        return self._submit(self._told(self._key(route, body, 0), route, body, read))

    def _key(self, route: str, body: Mapping[str, Any], seed: int) -> str:
        settings = self.client.settings
        return key_of(settings.url, settings.model, settings.extra, route, body, seed)

    async def _told(self, key: str, route: str, body: Mapping[str, Any], read: Callable[[bytes], Told]) -> Any:
        self.asked += 1
        if (kept := self.cache.get(key)) is not None:
            self.cached += 1
            return kept
        if (other := self._under_way.get(key)) is not None:
            self.cached += 1
            return await asyncio.shield(other)
        mine = self._under_way[key] = asyncio.get_running_loop().create_future()
        mine.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else may be waiting
        try:
            told = await self.client.ask(route, body, read)
            self._lost = 0
            self.cache.put(key, told.value)
        except EndpointLostError as error:
            self._lost += 1
            if self._lost == MAX_LOST:
                self.client.stop(EndpointLostError(f"{self.address}: {MAX_LOST} requests in a row came to nothing"))
            mine.set_exception(error)
            raise
        except OSError as error:
            broken = EndpointError(f"{self.address}: its answer cannot be kept: {error}")
            mine.set_exception(broken)
            raise broken from error
        except BaseException as error:
            mine.set_exception(
                error if isinstance(error, Exception) else EndpointError("given up: the run is ending")
            )
            raise
        else:
            mine.set_result(told.value)
            return told.value
        finally:
            del self._under_way[key]

    # ---- the thread --------------------------------------------------------------------------------------------

    def _submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        with self._lock:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="endpoint", daemon=True)
                self._thread.start()
                self._ready.wait()
            if not self._closed and self._loop is not None:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        refused: Future[Any] = Future()
        refused.set_exception(EndpointError(f"{self.address}: is not asked any more: the run is ending"))
        return refused

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            self._loop, self._closing = runner.get_loop(), asyncio.Event()
            try:
                runner.run(self._session(self._closing))
            finally:  # where it could not even begin, nobody may wait for ever
                self._closed = True
                self._ready.set()

    async def _session(self, closing: asyncio.Event) -> None:
        async with self.client.session():
            self._ready.set()
            await closing.wait()
            asked = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    def close(self) -> None:
        """Give up what is under way, whose futures are cancelled; what was answered is on the disk."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None and self._loop is not None and self._closing is not None:
            self._loop.call_soon_threadsafe(self._closing.set)
            thread.join(CLOSE_S)
        self.cache.close()

    def count_unreadable(self) -> None:
        """An answer came to nothing where it was read; it may be asked for again, with another seed."""
        self.unreadable += 1

    def take_figures(self) -> dict[str, int]:
        """What has become of questions since the last call."""
        counts = self.client.counts
        now = {
            "asked": self.asked,
            "cached": self.cached,
            "unreadable": self.unreadable,
            "tried_again": counts.retried.total(),
            "given_up": counts.failed,
            "tokens": counts.input_tokens + counts.output_tokens,
        }
        before, self._figured = self._figured, now
        return {name: num - before.get(name, 0) for name, num in now.items()}

    def tell(self) -> None:
        """Log what was asked and tried again."""
        unread = f", {self.unreadable:,} that could not be read" if self.unreadable else ""
        log.info("%s: %s; %s out of the cache%s", self.address, self.client.counts.told(), f"{self.cached:,}", unread)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self.asked:
            self.tell()
