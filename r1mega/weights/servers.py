"""The control side of a push: what the servers are told over HTTP, and who of them stops answering."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from itertools import accumulate
from types import TracebackType
from typing import Any, Self

import httpx

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
    """vLLM's routes for taking weights, on several servers at once.

    Every call raises RuntimeError at the first error of a server or of the watch, without waiting for the other
    servers, and RolloutError where a server refuses what it is asked (4xx).
    """

    def __init__(self, servers: Sequence[Server], timeout_s: float) -> None:
        """timeout_s: for each answer but that to `update_weights`, which takes as long as the weights do."""
        self.watch = Watch(())
        """Set by each push."""
        self.refused: set[Server] = set()
        """Those whose answers were errors."""
        self.servers, self._timeout_s = tuple(servers), timeout_s

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each server's workers follow those of the servers before it, from `rank_offset` on where that is said."""
        told = dict.fromkeys(self.servers, init_info)
        if "rank_offset" in init_info:
            sizes = [server.world_size for server in self.servers]
            ranks = zip(self.servers, accumulate(sizes, initial=init_info["rank_offset"]), strict=False)
            told = {server: {**init_info, "rank_offset": rank} for server, rank in ranks}
        self._all(lambda s: self._call(s, "init_weight_transfer_engine", {"init_info": told[s]}))

    def shutdown_weight_transfer_engine(self) -> None:
        """Workers leave the group that they are in, if any."""
        self._all(lambda s: self._call(s, "shutdown_weight_transfer_engine"))

    def start_weight_update(self) -> None:
        self._all(lambda s: self._call(s, "start_weight_update"))

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._all(lambda s: self._call(s, "update_weights", {"update_info": update_info}, patient=True))

    def finish_weight_update(self) -> None:
        self._all(lambda s: self._call(s, "finish_weight_update"))

    def reset_prefix_cache(self) -> None:
        self._all(self._reset_prefix_cache)

    def _reset_prefix_cache(self, server: Server) -> None:
        if not self._call(server, "reset_prefix_cache").get("success"):
            raise RuntimeError("its prefix cache cannot be emptied: requests still run")

    def set_version(self, version: str) -> None:
        self._all(lambda s: self._call(s, "update_weight_version", {"new_version": version}))

    def check_version(self, version: str) -> None:
        self._all(lambda s: self._check_version(s, version))

    def _check_version(self, server: Server, version: str) -> None:
        found = self._call(server, "weight_info", verb="GET").get("weight_version")
        if found != version:
            raise RuntimeError(f"its weights are of version {found!r} after the push of {version!r}")

    def prove(self, action: str) -> dict[Server, dict[str, str]]:
        """What every worker of each server has, by place (`weights.proof_worker`)."""
        found: dict[Server, dict[str, str]] = {}

        def ask(server: Server) -> None:
            self._call(server, "collective_rpc", {"method": "r1mega_prove", "args": [action]})
            found[server] = self._call(server, "weight_checker", {"action": "checksum"})["checksums"]

        self._all(ask)
        return found

    def on_workers(self, method: str, *args: str) -> dict[Server, list[Any]]:
        """What a method of `weights.worker.WorkerExtension` returns in each worker of each server."""
        body = {"method": method, "args": list(args)}
        found: dict[Server, list[Any]] = {}
        self._all(lambda s: found.update({s: self._call(s, "collective_rpc", body)["results"]}))
        return found

    def _call(
        self, server: Server, route: str, body: Any = None, *, verb: str = "POST", patient: bool = False
    ) -> dict[str, Any]:
        timeout_s = None if patient else self._timeout_s
        # Plain http, past any proxy: reading the certificates would take longer than the calls.
        with httpx.Client(base_url=server.url, timeout=timeout_s, trust_env=False, verify=False) as http:
            answer = http.request(verb, f"/{route}", json=body)
        if answer.is_error:
            what = f"/{route}: {answer.status_code} {answer.text[:2000]}".strip()
            # Restarting a server that was asked something wrong would change nothing.
            raise RolloutError(what) if answer.is_client_error else RuntimeError(what)
        return answer.json() if answer.content else {}

    def _all(self, call: Callable[[Server], object]) -> None:
        """Call every server at once; the first error, with its server and what it answered, is raised."""
        executor = ThreadPoolExecutor(len(self.servers))
        calls = {executor.submit(call, server): server for server in self.servers}
        executor.shutdown(wait=False)  # a call to a frozen server ends when that is killed
        pending = set(calls)
        while pending:
            done, pending = wait(pending, timeout=0.05, return_when=FIRST_EXCEPTION)
            for answer in done:
                if error := answer.exception():
                    self.refused.add(calls[answer])
                    raise _told(calls[answer].url, error) from error
            self.watch.check()


def _told(url: str, error: BaseException) -> Exception:
    what = f"{url}: {str(error) or type(error).__name__}"
    return RolloutError(what) if isinstance(error, RolloutError) else RuntimeError(what)
