"""The nccl transport: from the first rank's GPU to every worker's, by broadcasts over a communicator of our own.

    PackedSender(link, client, NcclMeeting(link.timeout_s))

The workers' end is vLLM's own `nccl` engine. The communicator is formed by a unique id that goes to them over HTTP
(`nccl_unique_id_b64`; vllm/distributed/weight_transfer/nccl_common.py): no store, and nothing of vLLM here. Sender
and workers must load the same NCCL.
"""

import base64
import time
from collections.abc import Callable
from typing import Any

import torch

from r1mega.errors import RolloutError
from r1mega.weights.libnccl import Communicator, Library
from r1mega.weights.packed import refuse_versions
from r1mega.weights.servers import ServerClient

_POLL_S = 0.0005


class Timeline:
    """Streams and events of the current CUDA device, where packing and sending go on side by side."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self.stream: int = self._stream.cuda_stream

    def follow(self) -> None:
        """What is begun on `stream` from here on waits for what this thread has asked of the device until now."""
        self._stream.wait_stream(torch.cuda.current_stream())

    def mark(self) -> Callable[[], bool]:
        """Whether all that was begun on `stream` until now is done."""
        event = torch.cuda.Event()
        event.record(self._stream)
        return event.query


class NcclMeeting:
    """Forms the group by a unique id. See `weights.packed.Meeting`."""

    def __init__(
        self, timeout_s: float, library: Library | None = None, make_timeline: Callable[[], Any] = Timeline
    ) -> None:
        """
        Raises:
            RolloutError: there is no CUDA device here, or no NCCL.
        """
        if library is None:
            if not torch.cuda.is_available():
                raise RolloutError(
                    "weights.transport = 'nccl' sends from a GPU of this process, the trainer's first rank, which "
                    "has none; run it where there is one, or choose a cluster file with device = 'cpu'"
                )
            try:
                library = Library()
            except OSError as error:
                raise RolloutError(
                    f"weights.transport = 'nccl' needs NCCL in the trainer's environment: {error}"
                ) from error
        self._library, self._timeout_s, self._make_timeline = library, timeout_s, make_timeline
        self._unique_id = library.unique_id()
        self.told = {"nccl_unique_id_b64": base64.b64encode(self._unique_id).decode()}

    def check(self, client: ServerClient) -> None:
        found = {server.url: set(map(str, said)) for server, said in client.on_workers("r1mega_nccl").items()}
        remedy = (
            f"Let the servers' environment set VLLM_NCCL_SO_PATH to the trainer's ({self._library.path}), or install "
            "the same nvidia-nccl in both environments"
        )
        refuse_versions(self._library.version(), found, remedy)

    def join(self, world_size: int, given_up: Callable[[], bool], device: str = "cuda") -> "NcclGroup":
        comm = Communicator(self._library, self._unique_id, 0, world_size)
        return NcclGroup(comm, self._make_timeline(), self._timeout_s, given_up, device)


class NcclGroup:
    """The sender's end of the communicator. See `weights.packed.Group`."""

    def __init__(
        self, comm: Communicator, timeline: Any, timeout_s: float, given_up: Callable[[], bool], device: str
    ) -> None:
        """Wait for the others, then add up one number with them, as vLLM's communicators do when they are formed."""
        self._comm, self._timeline, self._timeout_s = comm, timeline, timeout_s
        self.device = torch.device(device)
        try:
            self._until(comm.done, given_up, "the workers to join")
            numbers = torch.zeros(2, device=self.device)
            timeline.follow()
            comm.all_reduce(numbers.data_ptr(), numbers[1:].data_ptr(), 1, timeline.stream)
            self._until(comm.done, given_up, "the workers' first sum")
            self._until(timeline.mark(), given_up, "the workers' first sum")
        except BaseException:
            comm.abort()
            raise

    def begin(self, buffer: torch.Tensor) -> tuple[torch.Tensor, Callable[[], bool]]:
        self._timeline.follow()
        self._comm.broadcast(buffer.data_ptr(), buffer.numel(), self._timeline.stream)
        # Until then NCCL may not have put it on the stream: the mark would be before it.
        self._until(self._comm.done, lambda: False, "NCCL to take a buffer of weights")
        return buffer, self._timeline.mark()

    def wait(self, begun: tuple[torch.Tensor, Callable[[], bool]], given_up: Callable[[], bool]) -> None:
        self._until(lambda: self._comm.done() and begun[1](), given_up, "a buffer of weights to be taken")

    def _until(self, done: Callable[[], bool], given_up: Callable[[], bool], what: str) -> None:
        # Polled rather than waited for: a wait for the device cannot be ended from outside.
        deadline = time.monotonic() + self._timeout_s
        while not done():
            if given_up():
                raise RuntimeError(f"the other side gave up while the sender waited for {what}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the sender waited {self._timeout_s:g} s for {what}")
            time.sleep(_POLL_S)

    def abort(self) -> None:
        self._comm.abort()
