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

from r1mega.layout.turns import Stage

STAGES: tuple[Stage, ...] = ("optimizer", "gradients", "weights")
"""What of a policy can be put aside by itself, in the order in which an update ceases to need it."""

SEGMENT_BYTES = 1 << 30
"""Of a piece of pinned host memory. PyTorch rounds such an allocation up to a power of two: in one piece, what is put
aside could take up to twice its size."""


class HostRoom:
    """Host memory in segments, handed out in order and kept; pinned, where it is for a GPU."""

    def __init__(self) -> None:
        self._segments: list[Tensor] = []
        self._at = self._used = 0

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self._segments))

    def reserve(self, num_bytes: int, *, pinned: bool) -> None:
        """Have room for so many bytes beyond what is handed out."""
        missing = num_bytes - sum(map(len, self._segments[self._at :])) + self._used
        while missing > 0:
            size = min(SEGMENT_BYTES, 1 << (missing - 1).bit_length())
            self._segments.append(torch.empty(size, dtype=torch.uint8, pin_memory=pinned))
            missing -= size

    def take(self, num_bytes: int) -> list[Tensor]:
        """So many of the bytes that are reserved, as [n] uint8 of one segment each."""
        pieces: list[Tensor] = []
        while num_bytes:
            piece = self._segments[self._at][self._used : self._used + num_bytes]
            self._used += len(piece)
            num_bytes -= len(piece)
            if len(piece):
                pieces.append(piece)
            if self._used == len(self._segments[self._at]):
                self._at, self._used = self._at + 1, 0
        return pieces

    def clear(self) -> None:
        """All of it may be handed out anew."""
        self._at = self._used = 0


@dataclass
class _Aside:
    storage: torch.UntypedStorage
    num_bytes: int
    values: list[Tensor] | None
    """Pieces of `num_bytes` uint8 in all on the host; None where all are zero, as gradients are between updates."""


class Aside:
    """What has been put aside."""

    def __init__(self) -> None:
        self._held: list[_Aside] = []
        self._room = HostRoom()

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
        cuda = any(device.type == "cuda" for _, device in storages.values())
        whole = [_bytes(storage, device) for storage, device in storages.values()]
        filled = [bool(x.any()) for x in whole]
        self._room.reserve(sum(len(x) for x, some in zip(whole, filled, strict=True) if some), pinned=cuda)
        begin = len(self._held)
        for (storage, _), values, some in zip(storages.values(), whole, filled, strict=True):
            pieces = self._room.take(len(values)) if some else None
            for piece, part in _pairs(pieces or [], values):
                piece.copy_(part, non_blocking=True)
            self._held.append(_Aside(storage, len(values), pieces))
        del whole
        _wait(storages.values())
        for one in self._held[begin:]:
            one.storage.resize_(0)
        if cuda:
            torch.cuda.empty_cache()  # or another process on this device gains nothing

    @torch.no_grad()
    def take(self) -> None:
        """Move everything back."""
        devices = []
        for one in self._held:
            one.storage.resize_(one.num_bytes)
            device = one.storage.device
            whole = _bytes(one.storage, device)
            if one.values is None:
                whole.zero_()
            for piece, part in _pairs(one.values or [], whole):
                part.copy_(piece, non_blocking=True)
            devices.append((one.storage, device))
        _wait(devices)
        self._held.clear()
        self._room.clear()


def _bytes(storage: torch.UntypedStorage, device: torch.device) -> Tensor:
    """[n] uint8, all that a storage holds."""
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)  # type: ignore[call-overload]


def _pairs(pieces: Sequence[Tensor], whole: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each of the pieces, and its part of what they make up together."""
    return zip(pieces, whole.split([len(piece) for piece in pieces]) if pieces else (), strict=True)


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
    """What of a policy lies on its device, stage by stage, and its optimiser's state always or in use only."""

    def __init__(self, chunks: Sequence[Any], optimizer: Any, *, optimizer_aside: bool) -> None:
        """
        Args:
            chunks: a rank's parts of the model, in Megatron's data-parallel wrapper.
            optimizer_aside: keep the optimiser's state on the host, but within `optimizer_here`.
        """
        self._chunks, self._optimizer, self._optimizer_aside = chunks, optimizer, optimizer_aside
        self._aside: dict[Stage, Aside] = {}
        self._state = Aside()

    @property
    def aside(self) -> tuple[Stage, ...]:
        """The stages that are offloaded."""
        return tuple(stage for stage in STAGES if stage in self._away)

    @property
    def _away(self) -> set[Stage]:
        return {stage for stage, held in self._aside.items() if held.num_bytes}

    def check(self, *needed: Stage) -> None:
        """Refuse to go on with a policy of which something is offloaded that is needed; by default anything."""
        if gone := [stage for stage in self.aside if stage in (needed or STAGES)]:
            raise RuntimeError(f"the policy's {', '.join(gone)} are offloaded: call onload() first")

    def offload(self, *stages: Stage) -> None:
        """Put stages aside, by default all. Idempotent."""
        for stage in stages or STAGES:
            if stage not in self._away:
                self._aside.setdefault(stage, Aside()).put(self._of(stage))
        if "weights" in (stages or STAGES):
            drop_caches(chunk.module for chunk in self._chunks)

    def onload(self, *stages: Stage) -> None:
        """Take back what `offload` put aside. Idempotent."""
        for stage in stages or STAGES:
            if stage in self._aside:
                self._aside[stage].take()

    def put_optimizer_aside(self) -> None:
        """Put the optimiser's state aside where it is kept on the host; main parameters that are weights stay."""
        if self._optimizer_aside:
            self._state.put(self._of("optimizer"))

    @contextmanager
    def optimizer_here(self) -> Iterator[None]:
        """With the optimiser's state on the device, where it is put aside otherwise."""
        self.check()
        self._state.take()
        try:
            yield
        finally:
            self.put_optimizer_aside()

    def _of(self, stage: Stage) -> Iterator[Tensor]:
        if stage == "weights":
            return weights(self._chunks)
        if stage == "gradients":
            return gradients(self._chunks)
        others = (*weights(self._chunks), *gradients(self._chunks))
        there = {t.untyped_storage().data_ptr() for t in others if t.untyped_storage().size()}
        held = optimizer_tensors(self._optimizer)
        return (t for t in held if t.untyped_storage().data_ptr() not in there)


def drop_caches(networks: Iterable[torch.nn.Module]) -> None:
    """Let go of what kernels keep on the device beside the weights: Transformer Engine's FP8 copies of them, which
    the next pass makes anew, and cuBLAS's workspaces."""
    for module in (module for network in networks for module in network.modules()):
        if isinstance(kept := getattr(module, "_fp8_workspaces", None), dict):
            kept.clear()
    if torch.cuda.is_initialized():
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()


def device_used_bytes(device: torch.device) -> int | None:
    """What all processes together hold of a GPU's memory; None where there is no GPU.

    With contexts, libraries' workspaces and NCCL's buffers, which PyTorch's own count leaves out.
    """
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _wait(storages: Iterable[tuple[torch.UntypedStorage, torch.device]]) -> None:
    for device in {device for _, device in storages if device.type == "cuda"}:
        torch.cuda.synchronize(device)


def host_copy(tensor: Tensor) -> Tensor:
    """The values on the host, [as the tensor] of its dtype, pinned where they come from a GPU."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda).copy_(tensor.detach())


def host_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`host_copy` of each, by the same names, many in one allocation, in which they follow each other."""
    found: dict[str, Tensor] = {}
    for names in _by_allocation(tensors):
        first = tensors[names[0]]
        total = sum(tensors[name].numel() for name in names)
        whole = torch.empty(total, dtype=first.dtype, pin_memory=first.is_cuda)
        for name, part in zip(names, whole.split([tensors[name].numel() for name in names]), strict=True):
            found[name] = part.view(tensors[name].shape).copy_(tensors[name].detach())
    return {name: found[name] for name in tensors}


def _by_allocation(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Names of tensors of one dtype, `SEGMENT_BYTES` at most or a single larger one."""
    filling: dict[torch.dtype, tuple[list[str], int]] = {}
    for name, tensor in tensors.items():
        names, size = filling.get(tensor.dtype, ([], 0))
        if names and size + tensor.nbytes > SEGMENT_BYTES:
            yield names
            names, size = [], 0
        filling[tensor.dtype] = [*names, name], size + tensor.nbytes
    yield from (names for names, _ in filling.values())


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
            own |= host_copies(state)
        _copy(values, state)
        try:
            yield
        finally:
            _copy(own, state)


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])


def weights(chunks: Iterable[Any]) -> Iterator[Tensor]:
    """Parameters and buffers, [any shape] of any dtype, of a rank's parts of the model in Megatron's data-parallel
    wrapper, and what they lie in."""
    for chunk in chunks:
        yield from (t for t in (*chunk.module.parameters(), *chunk.module.buffers()) if t.numel())
        buffers = (*chunk.buffers, *chunk.expert_parallel_buffers)
        yield from (buffer.param_data for buffer in buffers if buffer.param_data is not None)


def gradients(chunks: Iterable[Any]) -> Iterator[Tensor]:
    """What the same parameters' gradients lie in, [n] of any dtype."""
    for chunk in chunks:
        yield from (buffer.grad_data for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers))


def optimizer_tensors(optimizer: Any) -> Iterator[Tensor]:
    """Moments and main parameters, [any shape], fp32 or moments bf16; parameters lie where fp32 weights do."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        for group in part.optimizer.param_groups:
            for param in group["params"]:
                yield param
                yield from part.optimizer.state[param].values()
