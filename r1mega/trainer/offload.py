"""Device memory put aside in host memory and back, bit for bit, while every tensor that lies in it stays what it is.

What moves are storages, not tensors: views of Megatron's buffers, which parameters and gradients are, keep their
places in them. Between the two moves nothing may be read. Host memory is pinned for a GPU, and kept for next time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class _Aside:
    storage: torch.UntypedStorage
    num_bytes: int
    values: Tensor | None
    """[num_bytes] uint8 on the host; None where all are zero, as gradients are between updates."""


class Aside:
    """What has been put aside."""

    def __init__(self) -> None:
        self._held: list[_Aside] = []
        self._hosts: dict[int, Tensor] = {}
        """Host memory, by the place in the order in which storages are put aside."""

    @property
    def num_bytes(self) -> int:
        """Device memory that is free meanwhile."""
        return sum(one.num_bytes for one in self._held)

    @torch.no_grad()
    def put(self, tensors: Iterable[Tensor]) -> None:
        """Move what the tensors lie in to the host, once each; some may be there already."""
        storages: dict[int, tuple[torch.UntypedStorage, torch.device]] = {}
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.size():
                storages[storage.data_ptr()] = storage, tensor.device
        begin = len(self._held)
        for storage, device in storages.values():
            whole = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
            values = None
            if whole.any():
                values = self._host(len(self._held), len(whole), pinned=device.type == "cuda")
                values.copy_(whole, non_blocking=True)
            self._held.append(_Aside(storage, len(whole), values))
        _wait(storages.values())
        for one in self._held[begin:]:
            one.storage.resize_(0)
        if any(device.type == "cuda" for _, device in storages.values()):
            torch.cuda.empty_cache()  # or another process on this device gains nothing

    @torch.no_grad()
    def take(self) -> None:
        """Move everything back."""
        devices = []
        for one in self._held:
            one.storage.resize_(one.num_bytes)
            device = one.storage.device
            whole = torch.empty(0, dtype=torch.uint8, device=device).set_(one.storage)
            if one.values is None:
                whole.zero_()
            else:
                whole.copy_(one.values, non_blocking=True)
            devices.append((one.storage, device))
        _wait(devices)
        self._held.clear()

    def _host(self, place: int, num_bytes: int, *, pinned: bool) -> Tensor:
        found = self._hosts.get(place)
        if found is None or len(found) != num_bytes:
            found = self._hosts[place] = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned)
        return found


class Loan:
    """Tensors that lie on the host and are lent their device for as long as they are used; nobody writes them."""

    @torch.no_grad()
    def __init__(self, tensors: Iterable[Tensor]) -> None:
        """Copies what the tensors lie in to the host, and frees it where it is."""
        places = {t.untyped_storage().data_ptr(): t for t in tensors if t.untyped_storage().size()}
        self._lent: list[tuple[Tensor, Tensor]] = []
        for tensor in places.values():
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
            self._lent.append((tensor, host_copy(whole)))
        self._free()

    @property
    def num_bytes(self) -> int:
        """Of the host's memory, always, and of the device's within `here`."""
        return sum(host.nbytes for _, host in self._lent)

    @contextmanager
    @torch.no_grad()
    def here(self) -> Iterator[None]:
        """With the tensors on their device."""
        for tensor, host in self._lent:
            storage = tensor.untyped_storage()
            storage.resize_(host.nbytes)
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            whole.copy_(host, non_blocking=True)
        try:
            yield
        finally:
            self._free()

    def _free(self) -> None:
        _wait((tensor.untyped_storage(), tensor.device) for tensor, _ in self._lent)
        for tensor, _ in self._lent:
            tensor.untyped_storage().resize_(0)


class DeviceMemory:
    """What of a policy lies on its device: all of it or nothing, and its optimiser's state always or in use only."""

    def __init__(self, chunks: Sequence[Any], optimizer: Any, *, optimizer_aside: bool) -> None:
        """
        Args:
            chunks: a rank's parts of the model, in Megatron's data-parallel wrapper.
            optimizer_aside: keep the optimiser's state on the host, but within `optimizer_here`.
        """
        self._chunks, self._optimizer, self._optimizer_aside = chunks, optimizer, optimizer_aside
        self._everything, self._state = Aside(), Aside()

    def check(self) -> None:
        """Refuse to go on with a policy that is offloaded."""
        if self._everything.num_bytes:
            raise RuntimeError("the policy is offloaded: call onload() first")

    def offload(self) -> None:
        """Put everything aside. Idempotent."""
        if self._everything.num_bytes == 0:
            self._everything.put([*weights_and_gradients(self._chunks), *optimizer_tensors(self._optimizer)])

    def onload(self) -> None:
        """Take back what `offload` put aside. Idempotent."""
        self._everything.take()

    def put_optimizer_aside(self) -> None:
        """Put the optimiser's state aside where it is kept on the host; main parameters that are weights stay."""
        if self._optimizer_aside:
            weights = {t.untyped_storage().data_ptr() for t in weights_and_gradients(self._chunks)}
            held = optimizer_tensors(self._optimizer)
            self._state.put(t for t in held if t.untyped_storage().data_ptr() not in weights)

    @contextmanager
    def optimizer_here(self) -> Iterator[None]:
        """With the optimiser's state on the device, where it is put aside otherwise."""
        self.check()
        self._state.take()
        try:
            yield
        finally:
            self.put_optimizer_aside()


def _wait(storages: Iterable[tuple[torch.UntypedStorage, torch.device]]) -> None:
    for device in {device for _, device in storages if device.type == "cuda"}:
        torch.cuda.synchronize(device)


def host_copy(tensor: Tensor) -> Tensor:
    """The values on the host, [as the tensor] of its dtype, pinned where they come from a GPU."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda).copy_(tensor.detach())


@contextmanager
def lent(state: Mapping[str, Tensor], values: Mapping[str, Tensor], own: dict[str, Tensor]) -> Iterator[None]:
    """Other values in the place of a state's, without gradients; the state's own come back in the end.

    Args:
        state: name -> [any shape] of any dtype, live; written in place.
        values: the same names and shapes, on the host.
        own: keeps the state's own values meanwhile, on the host, or the device would have to hold both. Filled at
            the first use and written again at every other.
    """
    with torch.no_grad():
        if own:
            _copy(state, own)
        else:
            own |= {name: host_copy(tensor) for name, tensor in state.items()}
        _copy(values, state)
        try:
            yield
        finally:
            _copy(own, state)


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])


def weights_and_gradients(chunks: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors, [any shape] of any dtype, of a rank's parts of the model in Megatron's data-parallel wrapper."""
    for chunk in chunks:
        yield from (t for t in (*chunk.module.parameters(), *chunk.module.buffers()) if t.numel())
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
            yield from (t for t in (buffer.param_data, buffer.grad_data) if t is not None)


def optimizer_tensors(optimizer: Any) -> Iterator[Tensor]:
    """Moments and main parameters, [any shape], fp32 or moments bf16; parameters lie where fp32 weights do."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        for group in part.optimizer.param_groups:
            for param in group["params"]:
                yield param
                yield from part.optimizer.state[param].values()
