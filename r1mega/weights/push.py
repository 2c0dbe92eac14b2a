"""The live push: the trainer's weights into every vLLM server, through vLLM's own weight-transfer API.

    pusher = Pusher(source, [server])
    pusher.prepare()            # imports vLLM (seconds): call it while the servers start
    report = pusher.push(version)

`source` has `metadata()` -> [(name, dtype, shape)] and iterates over (name, tensor), Hugging Face names both,
in the same order. Every rank of the trainer pushes, since reading the source is a collective; only rank 0 sends.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

from r1mega.errors import RolloutError
from r1mega.rollout.server import Server
from r1mega.runtime import env


class Source(Protocol):
    """What can be pushed; see the module."""

    def metadata(self) -> Sequence[tuple[str, Any, Sequence[int]]]: ...

    def __iter__(self) -> Iterator[tuple[str, Any]]: ...


@dataclass(frozen=True)
class PushReport:
    """What one push took. Bytes are those of one copy, whatever the number of servers."""

    seconds: float
    bytes: int
    num_tensors: int


@dataclass(frozen=True)
class Link:
    """Where the sender listens, for whom, and how long either side waits for the other."""

    address: str
    num_workers: int
    rank: int
    timeout_s: float


def _gloo(link: Link) -> Any:
    from r1mega.weights import gloo

    return gloo.GlooTrainerInitInfo(link.address, link.num_workers, link.timeout_s, rank=link.rank)


BACKENDS: dict[str, Callable[[Link], Any]] = {"gloo": _gloo}
"""Name -> what tells vLLM's factory to make that backend's sender; the servers must run the same."""


class Pusher:
    """Keeps a set of servers at the trainer's weights."""

    def __init__(
        self,
        source: Source,
        servers: Sequence[Server],
        *,
        rank: int = 0,
        backend: str = "gloo",
        address: str = "127.0.0.1",
        timeout_s: float = 120.0,
    ) -> None:
        """Nothing is connected yet.

        Args:
            servers: to keep at the source's weights; started, ready by the first push. Ranks but 0 may give none.
            rank: of this process in the trainer.
            address: of this host, as the servers reach it.
            timeout_s: longest wait for any one answer or any one broadcast.
        """
        self._source, self._servers, self._rank, self._timeout_s = source, tuple(servers), rank, timeout_s
        self._link = Link(address, sum(server.world_size for server in servers), rank, timeout_s)
        self._init_info = BACKENDS[backend]
        self._engine: Any = None

    def prepare(self) -> None:
        """Import what pushing needs, which is most of the first push's time."""
        if self._rank == 0:
            self._init_info(self._link)

    def push(self, version: int) -> PushReport:
        """Replace every server's weights; returns once all of them sample from the new ones.

        Raises:
            RolloutError: a server that fails, does not answer in time or received something else than was sent,
                or a source that disagrees with its metadata. The servers' weights are undefined then, and their
                version says so: `Fleet.generate` refuses to sample from them.
        """
        start = time.perf_counter()
        if self._rank != 0:
            metadata = list(self._source.metadata())
            for _ in self._source:
                pass
            return PushReport(time.perf_counter() - start, 0, len(metadata))
        try:
            engine = self._connected()
            servers: ServerClient = engine.client
            servers.set_version(f"incomplete push of {version}")
            engine.send_weights()
            servers.reset_prefix_cache()  # blocks computed with the old weights
            servers.set_version(str(version))
            servers.check_version(str(version))
        except Exception as error:
            self.close()
            logs = ", ".join(str(server.log_file) for server in self._servers)
            raise RolloutError(f"the push of weights {version} failed: {error}. Server logs: {logs}") from error
        return PushReport(time.perf_counter() - start, engine.tally.num_bytes, engine.tally.num_tensors)

    def _connected(self) -> Any:
        """The sender, connected at its first use."""
        if self._engine is None:
            for server in self._servers:
                env.bypass_proxy(server.host)  # vLLM's client would ask a proxy for it
            from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

            self._engine = WeightTransferTrainerFactory.trainer_init(
                self._init_info(self._link),
                client=ServerClient(self._servers, self._timeout_s),
                source=_VllmSource(self._source),  # pyright: ignore[reportArgumentType]
            )
        return self._engine

    def close(self) -> None:
        """Leave the group; the next push connects again, to restarted servers as well."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None


class _VllmSource:
    """Our source with vLLM's own metadata type."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer import ParamMeta

        return [ParamMeta(name, dtype, tuple(shape)) for name, dtype, shape in self._source.metadata()]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self._source)


class ServerClient:
    """vLLM's HTTP client for several servers at once, with the routes that it lacks."""

    def __init__(self, servers: Sequence[Server], timeout_s: float) -> None:
        from vllm.distributed.weight_transfer import HTTPVLLMWeightSyncClient

        self._clients = [HTTPVLLMWeightSyncClient(server.url, timeout=timeout_s) for server in servers]
        self._world_sizes = [server.world_size for server in servers]
        self._timeout_s = timeout_s

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each server's workers follow those of the servers before it."""
        offsets = accumulate(self._world_sizes, initial=init_info["rank_offset"])
        ranks = dict(zip(self._clients, offsets, strict=False))
        self._all(lambda c: c.init_weight_transfer_engine({**init_info, "rank_offset": ranks[c]}))

    def start_weight_update(self) -> None:
        self._all(lambda c: c.start_weight_update())

    def update_weights(self, update_info: Any) -> None:
        self._all(lambda c: c.update_weights(update_info))

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
        with ThreadPoolExecutor(len(self._clients)) as executor:
            answers = [executor.submit(call, client) for client in self._clients]
            for client, answer in zip(self._clients, answers, strict=True):
                if error := answer.exception():
                    text = getattr(getattr(error, "response", None), "text", "")
                    raise RuntimeError(f"{client.base_url}: {error} {text[:2000]}".strip()) from error
