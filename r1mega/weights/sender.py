"""What every transport's sender has in common: who it sends to, what it has sent, and the servers' part of a push.

Nothing here or in what it imports knows vLLM: a trainer needs its routes alone.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from r1mega.errors import RolloutError
from r1mega.weights.servers import ServerClient
from r1mega.weights.stream import Param, SourceError, described

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


class Sent(NamedTuple):
    """What one push has sent, once, whatever the number of servers."""

    num_tensors: int = 0
    num_bytes: int = 0
    """Padding between tensors included."""
    crc: int | None = None
    """CRC-32 of the bytes; None where they did not pass through host memory."""


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
    executor = ThreadPoolExecutor(1)
    answer = executor.submit(client.update_weights, described(params))
    try:
        yield Receiving(answer)
    except Exception as error:
        give_up()
        raise with_answer(error, answer) from error
    finally:
        executor.shutdown(wait=False)  # a worker that waits for ever in a collective never answers
    client.finish_weight_update()


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
