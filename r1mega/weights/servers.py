"""The control side of a push: what the servers are told over HTTP, and who of them stops answering."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from itertools import accumulate
from types import TracebackType
from typing import Any, Self

from r1mega.errors import RolloutError
from r1mega.rollout.server import Server

_POLL_S = 1.0
"""Between two looks at a server's health, and thus the longest push that goes without one."""


class Watch:
    """While entered, looks at the servers' health from threads of its own."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.silent: set[Server] = set()
        """Those that were gone, or did not answer within their `layout.health_timeout_s`."""
        self._servers, self._over = servers, threading.Event()

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=self._look_at, args=(server,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    def check(self) -> None:
        """Raises RuntimeError once a server is silent."""
        for server in tuple(self.silent):
            limit = f"{server.layout.health_timeout_s:g} s (rollout.health_timeout_s)"
            raise RuntimeError(f"{server.url} is gone, or did not answer /health within {limit}")

    def _look_at(self, server: Server) -> None:
        limit_s = server.layout.health_timeout_s
        while not self._over.wait(min(_POLL_S, limit_s / 4)):
            # The server's front alone: its engine answers nothing while it takes weights in.
            if not server.healthy(limit_s, engine=False):
                self.silent.add(server)
                return


def unhealthy(servers: Sequence[Server]) -> list[Server]:
    """Those that are gone, frozen or broken; the engines must be idle."""
    with ThreadPoolExecutor(len(servers)) as executor:
        answers = executor.map(lambda server: server.healthy(server.layout.health_timeout_s), servers)
        return [server for server, healthy in zip(servers, answers, strict=True) if not healthy]


class ServerClient:
    """vLLM's HTTP client for several servers at once, with the routes that it lacks.

    Every call raises RuntimeError at the first error of a server or of the watch, without waiting for the other
    servers, and RolloutError where a server refuses what it is asked (4xx).
    """

    def __init__(self, servers: Sequence[Server], timeout_s: float) -> None:
        """timeout_s: for each answer but that to `update_weights`, which takes as long as the weights do."""
        from vllm.distributed.weight_transfer import HTTPVLLMWeightSyncClient as Client

        self.watch = Watch(())
        """Set by each push."""
        self.refused: set[Server] = set()
        """Those whose answers were errors."""
        self._clients = {Client(server.url, timeout=timeout_s): server for server in servers}
        self._patient = {c: Client(c.base_url, timeout=None) for c in self._clients}  # pyright: ignore[reportArgumentType]
        self._timeout_s = timeout_s

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each server's workers follow those of the servers before it."""
        sizes = [server.world_size for server in self._clients.values()]
        ranks = dict(zip(self._clients, accumulate(sizes, initial=init_info["rank_offset"]), strict=False))
        self._all(lambda c: c.init_weight_transfer_engine({**init_info, "rank_offset": ranks[c]}))

    def start_weight_update(self) -> None:
        self._all(lambda c: c.start_weight_update())

    def update_weights(self, update_info: Any) -> None:
        self._all(lambda c: self._patient[c].update_weights(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all(lambda c: c.finish_weight_update(weight_version))

    def reset_prefix_cache(self) -> None:
        self._all(self._reset_prefix_cache)

    def _reset_prefix_cache(self, client: Any) -> None:
        if not self._call(client, "post", "reset_prefix_cache").get("success"):
            raise RuntimeError("its prefix cache cannot be emptied: requests still run")

    def set_version(self, version: str) -> None:
        self._all(lambda c: self._call(c, "post", "update_weight_version", {"new_version": version}))

    def check_version(self, version: str) -> None:
        self._all(lambda c: self._check_version(c, version))

    def _check_version(self, client: Any, version: str) -> None:
        found = self._call(client, "get", "weight_info").get("weight_version")
        if found != version:
            raise RuntimeError(f"its weights are of version {found!r} after the push of {version!r}")

    def _call(self, client: Any, verb: str, route: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        import requests

        answer = requests.request(verb, f"{client.base_url}/{route}", json=body, timeout=self._timeout_s)
        answer.raise_for_status()
        return answer.json()

    def _all(self, call: Callable[[Any], object]) -> None:
        """Call every server at once; the first error, with its server and what it answered, is raised."""
        executor = ThreadPoolExecutor(len(self._clients))
        calls = {executor.submit(call, client): client for client in self._clients}
        executor.shutdown(wait=False)  # a call to a frozen server ends when that is killed
        pending = set(calls)
        while pending:
            done, pending = wait(pending, timeout=0.05, return_when=FIRST_EXCEPTION)
            for answer in done:
                if error := answer.exception():
                    self.refused.add(self._clients[calls[answer]])
                    raise _told(calls[answer].base_url, error) from error
            self.watch.check()


def _told(url: str, error: BaseException) -> Exception:
    """A server's error with what it answered; RolloutError where restarting it would change nothing."""
    response = getattr(error, "response", None)
    what = f"{url}: {error} {getattr(response, 'text', '')[:2000]}".strip()
    refused = response is not None and 400 <= response.status_code < 500
    return RolloutError(what) if refused else RuntimeError(what)
