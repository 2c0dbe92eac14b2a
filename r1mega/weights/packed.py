"""The sender to vLLM's own `nccl` engine: packed broadcasts, whatever carries them.

The workers unpack with vLLM's `packed_nccl_broadcast_consumer`, which knows no more of what carries the buffers than
that it has a `broadcast`. So does this end: on GPUs NCCL carries them (`weights.nccl`).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from r1mega.errors import RolloutError
from r1mega.weights.sender import (
    NUM_BUFFERS,
    Carrier,
    Link,
    PushedWeights,
    Sent,
    answered,
    pump,
    receiving,
    with_answer,
)
from r1mega.weights.servers import ServerClient
from r1mega.weights.stream import Param, checked, evened, evened_stream, packed

_LOOK_S = 0.2
"""Between two looks at whether a server has given up."""


class Abortable(Carrier, Protocol):
    """A group that can be ended."""

    def abort(self) -> None:
        """From any thread; whoever waits in it gets an error."""
        ...


class Meeting(Protocol):
    """How the group is formed: the workers are told something over HTTP, and then all join at once."""

    told: dict[str, Any]
    """Where they meet, in the words of vLLM's `NCCLWeightTransferInitInfo`."""

    def check(self, client: ServerClient) -> None:
        """Raises RolloutError where workers and sender cannot be in one group."""
        ...

    def join(self, world_size: int, given_up: Callable[[], bool]) -> Abortable:
        """Raises RuntimeError where the others do not come, TimeoutError if it takes too long."""
        ...


class PackedSender:
    """The trainer's end. `Sender` says what its methods do."""

    def __init__(self, link: Link, client: ServerClient, meeting: Meeting) -> None:
        """Form the group with all workers of the client's servers.

        Raises:
            RolloutError: a server refuses, or its workers cannot be in the sender's group.
            RuntimeError: a server fails, or does not come within `link.timeout_s`.
        """
        self.sent, self._client, self._link = Sent(), client, link
        self._group: Abortable | None = None
        meeting.check(client)
        client.shutdown_weight_transfer_engine()  # or what is left of an earlier group would go to waste
        world_size = 1 + link.num_workers
        told = {
            **meeting.told, "rank_offset": 1, "world_size": world_size, "packed": True,
            "packed_buffer_size_bytes": link.bucket_bytes, "packed_num_buffers": NUM_BUFFERS,
        }  # fmt: skip
        answer = answered(client.init_weight_transfer_engine, told)
        try:
            self._group = meeting.join(world_size, lambda: answer.done() and answer.exception() is not None)
            answer.result(link.timeout_s)
        except Exception as error:
            self.close()
            raise with_answer(error, answer) from error

    def send(self, source: PushedWeights) -> None:
        if (group := self._group) is None:
            raise RuntimeError("weights are to be sent over a group that has ended")
        said = [Param(name, dtype, tuple(shape)) for name, dtype, shape in source.metadata()]
        params = evened(said)
        with receiving(self._client, params, self.close) as servers, _ended_when(servers.refused, group):
            cut = packed(params, self._link.bucket_bytes)
            pump(group, cut, evened_stream(checked(iter(source), said), said), servers.refused)
            servers.wait(self._link.timeout_s)
        self.sent = Sent(len(params), sum(bucket.num_bytes for bucket in cut))

    def close(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            group.abort()


@contextmanager
def _ended_when(given_up: Callable[[], bool], group: Abortable) -> Iterator[None]:
    """While inside, end the group once a server has given up, from another thread.

    The thread that sends may be inside a call that waits for the device, where a broadcast that a dead worker never
    joins would keep it for ever: allocating memory can be one.
    """
    over = threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_S):
            if given_up():
                group.abort()
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def refuse_versions(ours: int, theirs: dict[str, set[str]], remedy: str) -> None:
    """Raises RolloutError where workers of a server, by its URL, have another NCCL than the trainer."""
    if others := {url: found for url, found in theirs.items() if found != {str(ours)}}:
        said = "; ".join(f"{url}: {', '.join(sorted(found))}" for url, found in others.items())
        raise RolloutError(
            f"trainer and engine load different NCCLs, which refuse each other: trainer {ours}; {said}. {remedy}"
        )
