"""The group over which the gloo transport sends, for both of its ends. Imports torch alone."""

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore

from r1mega.weights.stream import Tally

_LOOK = timedelta(seconds=0.02)
"""Between two looks at whether the other side has given up."""
LARGEST_BUCKET_BYTES = 8 * 2**20
"""Most of one broadcast: packing, sending and loading go on side by side, the sooner the smaller they are."""


class Wire:
    """A gloo group of one sender (rank 0) and the workers, apart from any default group of either side."""

    device = torch.device("cpu")

    def __init__(self, store: TCPStore, rank: int, world_size: int, timeout_s: float, address: str) -> None:
        """address: of this host, as the others reach it."""
        options = ProcessGroupGloo._Options()  # pyright: ignore[reportAttributeAccessIssue]
        options._timeout = timedelta(seconds=timeout_s)
        # The default device listens on whatever this host's name resolves to, which may be nothing at all.
        options._devices = [ProcessGroupGloo.create_device(hostname=address)]
        self._group: Any = ProcessGroupGloo(PrefixStore("r1mega_weights", store), rank, world_size, options)
        self._store = store  # the sender's store must live as long as the group
        self.rank, self.world_size, self.timeout_s = rank, world_size, timeout_s

    def begin(self, buffer: torch.Tensor) -> Any:
        """Begin to send rank 0's buffer, [num_bytes] uint8, to all; `wait` for what this returns."""
        options = BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        return self._group.broadcast([buffer], options)

    def wait(self, begun: Any, given_up: Callable[[], bool] = lambda: False) -> None:
        """Until a buffer is sent, or received."""
        self._wait(begun, given_up, "a buffer of weights")

    def compare(self, tally: Tally, given_up: Callable[[], bool] = lambda: False) -> None:
        """Exchange tallies; every rank must have seen what the sender sent.

        Raises:
            RuntimeError: naming each rank that saw something else.
        """
        mine = tally.as_tensor()
        seen = [torch.empty_like(mine) for _ in range(self.world_size)]
        self._wait(self._group.allgather([seen], [mine]), given_up, "the checksums")
        sent, *received = [tuple(t.tolist()) for t in seen]
        wrong = [f"worker {i} received {r}" for i, r in enumerate(received) if r != sent]
        if wrong:
            raise RuntimeError(f"(tensors, bytes, checksum) of this push: sent {sent}, but {'; '.join(wrong)}")

    def _wait(self, work: Any, given_up: Callable[[], bool], what: str) -> None:
        # In small parts: gloo's wait cannot be ended from outside when the other side gives up.
        deadline = time.monotonic() + self.timeout_s
        while not work.is_completed():
            if given_up():
                raise RuntimeError(f"the other side gave up while rank {self.rank} waited for {what}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank {self.rank} waited {self.timeout_s:g} s for {what}")
            with contextlib.suppress(RuntimeError):  # that time is over; what it failed with is raised below
                work.wait(_LOOK)
        work.wait()

    def close(self) -> None:
        """Leave the group; who still waits for this rank gets an error at once."""
        if self._group is None:
            return
        group, self._group = [self._group], None
        group[0].abort()  # alone it leaves gloo's sockets open, and the other side waiting: the group must go as well
        # With a frozen rank in the group that takes until this rank's wait for it times out or the frozen one is
        # killed, which is what comes next; so it is not waited for.
        leaving = threading.Thread(target=group.clear)
        leaving.start()
        leaving.join(1.0)


class Buffers:
    """Memory to receive in, which is used again once no view of it is left.

    The layer-wise reload keeps views until a layer is complete, so nothing may be written over before; memory that is
    new each time takes longer to be touched first than the weights to come.
    """

    NUM_KEPT = 4
    """Free ones."""

    def __init__(self) -> None:
        self._given = list[torch.Tensor]()
        self._users_of_free = _users(torch.empty(1))

    def take(self, num_bytes: int) -> torch.Tensor:
        """[num_bytes] uint8, which nobody else sees."""
        free = [whole for whole in self._given if _users(whole) == self._users_of_free]
        fitting = [whole for whole in free if whole.numel() >= num_bytes]
        whole = fitting[-1] if fitting else torch.empty(num_bytes, dtype=torch.uint8)
        kept = [other for other in free if other is not whole][: self.NUM_KEPT]
        in_use = [other for other in self._given if not any(other is one for one in free)]
        self._given = [*in_use, *kept, whole]
        return whole[:num_bytes]


def _users(tensor: torch.Tensor) -> int:
    """Tensors and others that share its memory."""
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)  # pyright: ignore[reportAttributeAccessIssue]
