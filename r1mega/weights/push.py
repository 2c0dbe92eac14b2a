"""The live push: the trainer's weights into every vLLM server, through vLLM's own weight-transfer API.

    pusher = Pusher(source, [server])
    report = pusher.push(version)

`source` has `metadata()` -> [(name, dtype, shape)] and iterates over (name, tensor), Hugging Face names both,
in the same order. The pusher lives in the trainer's first rank, and knows vLLM by its routes alone: no transport
imports it. Where reading the source is a collective of all ranks, `announce` calls the others to it: once for each
pass over the source, and each pass goes to its end, whatever becomes of the servers.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from r1mega.errors import RanksLostError, RolloutError, ServerLostError
from r1mega.rollout.recovery import Recovery, Restarts
from r1mega.rollout.server import Server
from r1mega.runtime import network
from r1mega.weights.sender import Link, PushedWeights, Sender
from r1mega.weights.servers import ServerClient, Watch, unhealthy
from r1mega.weights.stream import SourceError
from r1mega.weights.verify import Ledger, Proof, ProofError, Result


@dataclass(frozen=True)
class PushReport:
    """What one push took. Bytes are those of one copy, whatever the number of servers and of tries."""

    seconds: float
    bytes: int
    num_tensors: int
    checksum: int | None
    """Of the bytes sent (`weights.stream.Tally`); None where they did not pass through the host."""
    recoveries: tuple[Recovery, ...]
    """Servers that failed on the way and were brought back."""
    proof: Result | None
    """That all servers hold what was sent, where that was looked at (`weights.verify`)."""


def _gloo(link: Link, client: ServerClient, source: Any) -> Sender:
    from r1mega.weights.gloo import GlooSender

    return GlooSender(link, client)


def _nccl(link: Link, client: ServerClient, source: Any) -> Sender:
    from r1mega.weights.nccl import NcclMeeting
    from r1mega.weights.packed import PackedSender

    return PackedSender(link, client, NcclMeeting(link.timeout_s))


def _ipc(link: Link, client: ServerClient, source: Any) -> Sender:
    from r1mega.weights.ipc import IpcSender

    return IpcSender(link, client, source.ranks)


def _read_along(source: PushedWeights, bucket_bytes: int) -> None:
    for _ in source:
        pass


def _pack_along(source: Any, bucket_bytes: int) -> None:
    from r1mega.weights.ipc import follow

    follow(source, bucket_bytes)


@dataclass(frozen=True)
class Backend:
    """A transport."""

    connect: Callable[[Link, ServerClient, Any], Sender]
    """Makes the first rank's sender to the workers, for a source; the servers must be started for the same."""
    follow: Callable[[Any, int], None] = _read_along
    """What the other ranks do meanwhile: given the source and the bytes of a bucket."""
    everywhere: bool = False
    """Whether every rank sends, and so needs every tensor."""


BACKENDS = {
    "gloo": Backend(_gloo),
    "nccl": Backend(_nccl),
    "ipc": Backend(_ipc, _pack_along, everywhere=True),
}


class Pusher:
    """Keeps a set of servers at the trainer's weights, and restarts those that fail to take them."""

    def __init__(
        self,
        source: PushedWeights,
        servers: Sequence[Server],
        *,
        announce: Callable[[], None] = lambda: None,
        backend: str = "gloo",
        bucket_mib: int = 1024,
        address: str = "",
        timeout_s: float | None = None,
        verify: int = 0,
        restarts: bool = True,
        breakable: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Nothing is connected yet.

        Args:
            servers: to keep at the source's weights; started, ready by the first push.
            announce: called before each pass over the source, in the thread that pushes.
            backend, bucket_mib: the cluster file's `transport` and `weights.bucket_mib`.
            address: of this host, or a name of it, as the servers reach it; empty: the one on the route to them.
            timeout_s: longest wait for any one answer or any one broadcast; twice the servers' `health_timeout_s`
                where not given, since a server that is gone or frozen is noticed by its health before.
            verify: the first push and each so-manieth is proven (`weights.verify.Proof`); 0: none is.
            restarts: whether there is room to start a server anew in the middle of a push; there is none where
                trainer and engine share their GPUs, since the trainer's weights are on them.
            breakable: entered while servers restart, the one part of a push that no other rank waits for; what it
                raises ends the push.
        """
        self._source, self._servers, self._announce = source, tuple(servers), announce
        self._breakable, self._may_restart = breakable, restarts
        self._address = address
        self._timeout_s = timeout_s or 2 * max(server.layout.health_timeout_s for server in self._servers)
        self._connect_sender, self._bucket_bytes = BACKENDS[backend].connect, bucket_mib * 2**20
        self._sender: Sender | None = None
        self._client: ServerClient | None = None
        self._connected_to: tuple[tuple[Server, int], ...] = ()
        self._restarts = Restarts()
        self._proof = Proof(verify)
        # One push at a time: recovery may push from the thread of a request while the stage pushes from its own, and
        # engine, connection and the source's collectives are one for all.
        self._lock = threading.Lock()

    def push(self, version: int, servers: Sequence[Server] | None = None) -> PushReport:
        """Replace the weights of all servers, or of some; returns once all of them sample from the new ones.

        A server that is gone, frozen, refuses the weights or received something else than was sent is restarted,
        and the push begins again; once, where a proof finds that it holds something else. May be called from
        several threads; they take turns.

        Raises:
            ServerLostError: a server failed and may not be restarted here (`restarts`).
            RolloutError: a server failed `layout.max_restarts` + 1 times in a row, or holds something else than was
                sent after its restart as well, or the source itself fails or disagrees with its metadata. The
                servers' weights are undefined then, and their version says so: `Fleet.generate` refuses to sample
                from them.
        """
        targets = self._servers if servers is None else tuple(servers)
        begin, recoveries = time.perf_counter(), list[Recovery]()
        with self._lock:
            doubted = set[Server]()
            while (failed := self._try(version, targets, doubted)) is not None:
                if not self._may_restart:
                    raise _lost(*failed)
                recoveries += self._bring_back(*failed)
            for server in targets:
                self._restarts.succeeded(server)
            assert self._sender is not None
            sent, proof = self._sender.sent, self._proof.succeeded()
        seconds = time.perf_counter() - begin
        return PushReport(seconds, sent.num_bytes, sent.num_tensors, sent.checksum, tuple(recoveries), proof)

    def read_back(self) -> Result | None:
        """Whether all servers still hold what the last push has sent; None where that push was not proven.

        Raises:
            ServerLostError: one does not answer.
            RolloutError: one holds something else.
        """
        with self._lock:
            try:
                return self._proof.again()
            except ProofError as error:
                raise RolloutError(f"the weights that were pushed are not read back: {error}") from error
            except RuntimeError as error:
                raise _lost(self._servers, f"the weights that were pushed are not read back: {error}") from error

    def _try(
        self, version: int, servers: Sequence[Server], doubted: set[Server]
    ) -> tuple[Sequence[Server], str] | None:
        """One push; None where it succeeded, else the servers that failed, and how.

        Args:
            doubted: those that a proof has found to hold something else in an earlier try; more are put in.
        """
        if gone := unhealthy(servers):
            return gone, f"found gone, frozen or broken before the push of weights {version}"
        with Watch(servers) as watch:
            try:
                client = self._connect(servers, watch)
                ledger = self._proof.begin(client) if self._proof.due(servers) else None
                client.set_version(f"incomplete push of {version}")
                self._send(ledger)
                if ledger is not None:
                    self._proof.check(client, ledger)
                client.reset_prefix_cache()  # blocks computed with the old weights
                client.set_version(str(version))
                client.check_version(str(version))
            except RanksLostError:
                self.close()
                raise
            except Exception as error:
                refused = tuple(self._client.refused) if self._client else ()
                logs = ", ".join(str(server.log_file) for server in servers)
                failure = f"the push of weights {version} failed: {error}. Server logs: {logs}"
                self.close()
                if isinstance(error, ProofError):
                    if doubted.isdisjoint(error.faults):
                        doubted.update(error.faults)
                        return tuple(error.faults), failure
                    failure += ". That was so before its restart too: weights.verify = 0 would go on all the same"
                if isinstance(error, RolloutError | SourceError | ProofError):
                    raise RolloutError(failure) from error
                # A server's death makes the others' part of the push fail as well, and they are none the worse.
                suspects = tuple(watch.silent) or unhealthy(servers) or refused or servers
                return suspects, failure
        return None

    def _connect(self, servers: Sequence[Server], watch: Watch) -> ServerClient:
        """The sender's client; the group is formed anew where it was of other servers, or of earlier starts."""
        wanted = tuple((server, server.incarnation) for server in servers)
        if self._client is None or self._connected_to != wanted:
            self.close()
            self._client, self._connected_to = ServerClient(servers, self._timeout_s), wanted
        self._client.watch, self._client.refused = watch, set()
        if self._sender is None:
            self._sender = self._connect_sender(self._link(servers), self._client, self._source)
        return self._client

    def _send(self, ledger: Ledger | None) -> None:
        """One pass over the source, to its end even where sending fails: other ranks read along."""
        assert self._sender is not None
        with _blamed():
            self._announce()
        reading = _Pass(self._source, ledger)
        try:
            self._sender.send(reading)
        except Exception:
            reading.finish()
            raise

    def _bring_back(self, servers: Sequence[Server], reason: str) -> list[Recovery]:
        """Restart servers, all at once; what breaks off the wait for them stops them for good."""

        def bring_back(server: Server) -> Recovery:
            begin, url = time.perf_counter(), server.url
            self._restarts.bring_back(server, reason)
            return Recovery(url, reason, time.perf_counter() - begin, requests_reissued=0)

        with ThreadPoolExecutor(len(servers)) as executor:
            pending = [executor.submit(bring_back, server) for server in servers]
            try:
                with self._breakable():
                    return [future.result() for future in pending]
            except KeyboardInterrupt:  # StopNow is one
                for server in servers:  # or leaving the executor would wait for their start
                    server.stop()
                raise

    def _link(self, servers: Sequence[Server]) -> Link:
        address = _address_towards([server.host for server in servers])
        num_workers = sum(server.world_size for server in servers)
        return Link(address, self._address or address, num_workers, self._timeout_s, self._bucket_bytes)

    def close(self) -> None:
        """Leave the group; the next push connects again."""
        if self._sender is not None:
            self._sender.close()
        self._sender = self._client = None


def _lost(servers: Sequence[Server], what: str) -> ServerLostError:
    """Where no server can be started in the place of one that failed: the run ends, and is started again."""
    who = ", ".join(server.url for server in servers)
    return ServerLostError(
        f"{who}: {what}. Trainer and engine share their GPUs, where no other server can take its place halfway: go "
        "on with --resume; no answer that was given is lost"
    )


def _address_towards(hosts: Sequence[str]) -> str:
    """This host's address on the route to servers' hosts: one that those on other hosts reach, where there are any.

    Raises:
        RolloutError: a host does not resolve, or there is no route to it.
    """
    found = list[str]()
    for host in hosts:
        try:
            found.append(network.local_address(host))
        except OSError as error:
            raise RolloutError(
                f"rollout.host = {host!r} cannot be reached from {socket.gethostname()}: {error.strerror}"
            ) from None
    return next((address for address in found if not network.is_loopback(address)), found[0])


@contextmanager
def _blamed() -> Iterator[None]:
    """What fails inside is the trainer's own fault, and no server's; a lost rank is told as such."""
    try:
        yield
    except RanksLostError:
        raise
    except Exception as error:
        raise SourceError(f"{type(error).__name__}: {error}") from error


class _Pass:
    """One pass over a source, whose errors are its own; a ledger looks at it, where there is one."""

    def __init__(self, source: PushedWeights, ledger: Ledger | None) -> None:
        self._source, self._ledger = source, ledger
        self._stream: Iterator[Any] | None = None

    def metadata(self) -> Sequence[tuple[str, Any, Sequence[int]]]:
        with _blamed():
            return self._source.metadata()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with _blamed():
            if self._stream is None:
                stream = iter(self._source)
                self._stream = stream if self._ledger is None else self._ledger.watch(stream)
            item = next(self._stream, None)
        if item is None:
            raise StopIteration
        return item

    def finish(self) -> None:
        """Read what has not been read."""
        for _ in self:
            pass
