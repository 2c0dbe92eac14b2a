"""What every transport's sender has in common: who it sends to, what it has sent, and the servers' part of a push.

Nothing here or in what it imports knows vLLM: a trainer needs its routes alone.
"""

import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import torch

from r1mega.config.cluster import Cluster
from r1mega.errors import RolloutError
from r1mega.weights.servers import ServerClient
from r1mega.weights.stream import Bucket, Param, SourceError, described

NUM_BUFFERS = 2
"""One is filled while the one before travels; workers hold as many."""
_ANSWER_S = 10.0
"""How long an answer is waited for that may say why sending failed."""


@dataclass(frozen=True)
class Link:
    """Where the sender listens, for whom, and how long either side waits for the other."""

    address: str
    """Of this host, on the route to the servers."""
    name: str
    """The address, or another name of this host that the servers know it by."""
    num_workers: int
    timeout_s: float
    bucket_bytes: int
    """Most of one message, but where a single tensor is larger."""


@dataclass(frozen=True)
class Transfer:
    """How a policy's weights go to servers, as a cluster file says."""

    transport: str = "gloo"
    bucket_mib: int = 1024
    """Most of one message, but where a single tensor is larger."""
    address: str = ""
    """Of this host as the servers know it; empty: the one on the route to them."""
    verify: int = 0
    """The first push and each so-manieth is proven; 0: none is."""
    fp8: bool = False
    """Whether matrices travel as FP8 codes and scales."""

    @classmethod
    def of(cls, machine: Cluster) -> Self:
        weights = machine.weights
        return cls(machine.transport, weights.bucket_mib, machine.address, weights.verify, weights.fp8)


class Sent(NamedTuple):
    """What one push has sent, once, whatever the number of servers."""

    num_tensors: int = 0
    num_bytes: int = 0
    """Padding between tensors included."""
    checksum: int | None = None
    """Of the bytes (`weights.stream.Tally`); None where they did not pass through host memory."""


class PushedWeights(Protocol):
    """What can be pushed: Hugging Face names, dtypes and shapes, and the tensors in the same order.

    Iterated over again for each push. An iteration may be a collective of all ranks: it goes to its end.
    """

    def metadata(self) -> Sequence[tuple[str, Any, Sequence[int]]]: ...

    def __iter__(self) -> Iterator[Any]: ...


class Sender(Protocol):
    """One transport's end in the trainer's first rank, connected to a set of servers."""

    sent: Sent
    """By the last push."""

    def send(self, source: PushedWeights) -> None:
        """One pass over the source, and the servers' weights are those; it may end early where sending fails.

        Raises:
            SourceError: the source fails or disagrees with its metadata.
            RolloutError: a server refuses what it is asked.
            RuntimeError: a worker that failed, a time-out, or a difference between what was sent and received. The
                sender is closed then.
        """
        ...

    def close(self) -> None:
        """Leave the group; who still waits for this rank gets an error as soon as the transport can tell."""
        ...


class Carrier(Protocol):
    """What carries buffers from the sender, rank 0, to the workers."""

    device: torch.device
    """Where the sender's buffers are."""

    def begin(self, buffer: torch.Tensor) -> Any:
        """Begin to send a buffer, [num_bytes] uint8, which stays as it is until `wait` for what this returns."""
        ...

    def wait(self, begun: Any, given_up: Callable[[], bool]) -> None:
        """Until the buffer is sent. Raises RuntimeError where it cannot be, or `given_up`, TimeoutError if it takes
        too long."""
        ...


def pump(
    group: Carrier,
    cut: Sequence[Bucket],
    stream: Iterator[tuple[str, torch.Tensor]],
    given_up: Callable[[], bool],
    *,
    seen: Callable[[Bucket, torch.Tensor], None] = lambda bucket, buffer: None,
) -> None:
    """Send a stream of tensors in the buckets that it is cut into; returns when all of them are sent.

    Args:
        given_up: whether to wait no longer.
        seen: called with each bucket and its buffer, [num_bytes] uint8, while that is under way.
    """
    largest = max((bucket.num_bytes for bucket in cut), default=0)
    free = list[torch.Tensor]()
    under_way = deque[tuple[torch.Tensor, Any]]()
    for bucket in cut:
        if len(under_way) == NUM_BUFFERS:
            whole, begun = under_way.popleft()
            group.wait(begun, given_up)
            free.append(whole)
        # Memory that was touched before: the first touch takes as long as several copies.
        whole = free.pop() if free else torch.empty(largest, dtype=torch.uint8, device=group.device)
        buffer = whole[: bucket.num_bytes]
        for gap in bucket.gaps:
            buffer[gap].zero_()  # so that equal weights are equal bytes
        for _, view in bucket.views(buffer):
            view.copy_(next(stream)[1])
        under_way.append((whole, group.begin(buffer)))
        seen(bucket, buffer)
    for _ in stream:  # runs its check for what is left over
        pass
    while under_way:
        group.wait(under_way.popleft()[1], given_up)


class Receiving:
    """The servers' answer to `update_weights`, which comes when they have received all."""

    def __init__(self, answer: Future[None]) -> None:
        self._answer = answer

    def refused(self) -> bool:
        """Whether a server has answered already, with an error."""
        return self._answer.done() and self._answer.exception() is not None

    def wait(self, timeout_s: float) -> None:
        """Until all have received everything. Raises what a server answered, or TimeoutError."""
        self._answer.result(timeout_s)


@contextmanager
def receiving(client: ServerClient, params: Sequence[Param], give_up: Callable[[], None]) -> Iterator[Receiving]:
    """The servers receive while the body sends what `params` describe; their update ends with it.

    After an error of the body the servers' wait is ended with `give_up`, and what they answer then, which often is
    the cause, is raised with it.
    """
    client.start_weight_update()
    answer = answered(client.update_weights, described(params))
    try:
        yield Receiving(answer)
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # which hold messages under way, and those their group's sockets
        give_up()
        raise with_answer(error, answer) from error
    client.finish_weight_update()


def answered(ask: Callable[..., None], *what: Any) -> Future[None]:
    """What becomes of a call in a thread of its own, which the end of the process does not wait for: a worker that
    waits for ever in a collective never answers."""
    answer: Future[None] = Future()

    def run() -> None:
        try:
            answer.set_result(ask(*what))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer


def with_answer(error: Exception, answer: Future[None]) -> Exception:
    """The error, and what the servers answered if they did: often that is the cause."""
    try:
        said = answer.exception(timeout=_ANSWER_S)
    except TimeoutError:
        said = None
    text = f"{error}; the server said: {said}" if said else str(error)
    if isinstance(error, SourceError):
        return SourceError(text)
    return RolloutError(text) if isinstance(said, RolloutError) else RuntimeError(text)
