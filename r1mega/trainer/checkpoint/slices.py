"""Which slices of the whole model's state a rank has, in coordinates that no layout changes.

Every tensor has a key and a shape of the whole model's (Megatron's own, experts stacked). A rank has boxes of it: its
tensor-, pipeline- and expert-parallel part of the weights, and of that part a range for the optimiser, which the
data-parallel ranks divide. What is saved are boxes, and what is loaded are boxes, so that any layout can load what
any other has saved, and no rank needs to hear of another to save.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from r1mega.formats.reader import Box
from r1mega.trainer.network.names import by_whole_model_names
from r1mega.trainer.policy import Policy

REFERENCE = "reference."
MOMENTS = "optimizer.state."
"""Before the name of a state of the optimiser's, which stands before a weight's key, as Megatron has it."""


@dataclass(frozen=True)
class Slice:
    """A part of one of this rank's tensors that is one box of the whole model. Ranges count the flattened part.

    At tp 2 and two data-parallel ranks that divide the optimiser, rank 0 has of a [6, 4] matrix cut by rows
    `offset` (0, 0) and `sizes` (3, 4), and of these 12 elements `to_save` and `trained` (0, 6).
    """

    name: str
    """The tensor's in the family's table."""
    key: str
    """Megatron's, under which a checkpoint has it."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    offset: tuple[int, ...]
    sizes: tuple[int, ...]
    start: int
    """Where the part begins in the flattened tensor of this rank."""
    to_save: tuple[int, int]
    """The range that this rank saves: over all ranks, every element is in one; empty where another rank saves it."""
    trained: tuple[int, int]
    """The range that `states` cover, which this rank's share of the optimiser decides."""
    states: dict[str, Tensor]
    """[trained range] fp32 or bf16: the optimiser's flat tensors, by their names."""
    padded: bool = False
    """As in `Box`."""

    def whole(self, tensor: Tensor) -> Box:
        """The slice as one box.

        Args:
            tensor: [this rank's part] of any dtype: the weight of that name, or another of its shape.
        """
        flat = tensor.detach().view(-1)[self.start : self.start + math.prod(self.sizes)]
        return Box(self.key, self.shape, self.offset, flat.view(self.sizes), self.padded)

    def saved(self, tensor: Tensor, prefix: str = "") -> Iterator[Box]:
        """What this rank saves of a tensor, which is as in `whole`; its keys begin with `prefix`."""
        begin, end = self.to_save
        flat = tensor.detach().view(-1)[self.start + begin : self.start + end]
        yield from self._boxes(flat, self.to_save, prefix)

    def moments(self) -> Iterator[Box]:
        """The optimiser's states that this rank updates."""
        for name, flat in self.states.items():
            yield from self._boxes(flat.detach(), self.trained, f"{MOMENTS}{name}.")

    def _boxes(self, flat: Tensor, span: tuple[int, int], prefix: str) -> Iterator[Box]:
        at = 0
        for offset, sizes in boxes(self.sizes, *span):
            values = flat[at : at + math.prod(sizes)].view(sizes)
            at += values.numel()
            place = tuple(a + b for a, b in zip(self.offset, offset, strict=True))
            yield Box(prefix + self.key, self.shape, place, values, self.padded)


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(offset, sizes) of boxes that make up the range [start, stop) of a flattened tensor, in order.

    Each is contiguous in the tensor: the rest of a row, whole rows, the beginning of a row.
    """
    if start >= stop:
        return
    if len(shape) == 0:
        yield (), ()
        return
    if len(shape) == 1:
        yield (start,), (stop - start,)
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:  # within one row
        for offset, sizes in boxes(shape[1:], start - last * row, stop - last * row):
            yield (last, *offset), (1, *sizes)
        return
    for offset, sizes in boxes(shape[1:], start - (first - 1) * row, row) if start < first * row else ():
        yield (first - 1, *offset), (1, *sizes)
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    for offset, sizes in boxes(shape[1:], 0, stop - last * row):
        yield (last, *offset), (1, *sizes)


@dataclass(frozen=True)
class Slices:
    """All of a rank's."""

    parts: list[Slice]
    objects: list[str]
    """Keys of the empty objects that Megatron looks for with its tensors, where this rank saves them."""
    live: list[Box]
    """Views of the weights and of the optimiser's states that this rank saves."""

    def weights(self, policy: Policy) -> list[Box]:
        """All weights that this rank has a part of, whichever rank saves them, as views."""
        tensors = policy.state()
        return [part.whole(tensors[part.name]) for part in self.parts]

    def moments(self) -> list[Box]:
        """All of the optimiser's states that this rank updates, as views."""
        return [box for part in self.parts for box in part.moments()]

    def expected(self, policy: Policy) -> dict[str, tuple[int, ...]]:
        """Key and shape of every whole tensor that this rank has a part of, whichever rank saves it."""
        found: dict[str, tuple[int, ...]] = {}
        for part in self.parts:
            prefixes = ["", *(f"{MOMENTS}{name}." for name in part.states)]
            prefixes += [REFERENCE] if policy.reference is not None else []
            found |= {prefix + part.key: part.shape for prefix in prefixes}
        return found

    def reference(self, policy: Policy) -> list[Box]:
        """All of the reference that this rank has a part of, as views; it must have one."""
        assert policy.reference is not None
        boxes_of = (part.whole(policy.reference[part.name]) for part in self.parts)
        return [replace(box, key=REFERENCE + box.key) for box in boxes_of]

    def saved_reference(self, policy: Policy) -> Iterator[Box]:
        """What this rank saves of the reference, which is never written to in place; nothing where there is none."""
        for part in self.parts if policy.reference is not None else ():
            assert policy.reference is not None
            yield from part.saved(policy.reference[part.name], REFERENCE)


def places_in_memory(policy: Policy) -> tuple[int, ...]:
    """Where weights and optimiser states lie: slices found before these have changed are views of old memory."""
    chain: Any = policy.optimizer
    tensors = [t for network in policy.networks for t in (*network.parameters(), *network.buffers())]
    for part in getattr(chain, "chained_optimizers", [chain]):
        tensors += [t for state in part.optimizer.state.values() for t in state.values()]
    return tuple(t.data_ptr() for t in tensors)


def find_slices(policy: Policy) -> Slices:
    """What this rank has, of a policy whose optimiser's state is on the device (`Policy.optimizer_here`)."""
    metadata = {
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "singleton_local_shards": False,
        "non_homogeneous_layers": True,  # each layer under its own name, in every family (`layout.sharded`)
    }
    shards: dict[str, Any] = {}
    for network in policy.networks:
        found: dict[str, Any] = network.sharded_state_dict(metadata=metadata)  # type: ignore[assignment]
        shards |= by_whole_model_names(network, found)
    trained = _trained(policy)
    parts: list[Slice] = []
    objects: list[str] = []
    for name, shard in shards.items():
        if isinstance(shard, ShardedObject):
            if not any(_replica(shard)):
                objects.append(shard.unique_key)
            continue
        pieces: list[Any] = list(shard.build()) if isinstance(shard, ShardedTensorFactory) else [shard]
        parts += [_slice(name, shard.data, piece, trained.get(shard.data)) for piece in pieces]
    tensors = policy.state()
    live: list[Box] = []
    for part in parts:
        live += part.saved(tensors[part.name])
        # Ranks that keep all of a parameter's states have the same ones: who saves the weight saves them.
        if part.to_save == part.trained:
            live += part.moments()
    return Slices(parts, objects, live)


@dataclass(frozen=True)
class _Share:
    """The range of a flattened parameter that this rank's optimiser has, and its states there."""

    start: int
    stop: int
    states: dict[str, Tensor]
    divided: bool
    """Whether the data-parallel ranks have a range each; otherwise each has all."""


def _trained(policy: Policy) -> dict[Tensor, _Share]:
    found: dict[Tensor, _Share] = {}
    chain: Any = policy.optimizer
    params = [p for network in policy.networks for p in network.parameters()]
    for part in getattr(chain, "chained_optimizers", [chain]):
        if not isinstance(part, DistributedOptimizer):
            mains = [(p, getattr(p, "main_param", p)) for p in params]
            mains = [(p, main) for p, main in mains if main in part.optimizer.state]
            for param, main in mains:
                states: dict[str, Tensor] = dict(part.optimizer.state[main])
                states |= {} if main is param else {"param": main}
                found[param] = _Share(0, param.numel(), states, divided=False)
            continue
        for param in part.model_param_group_index_map:
            span = part._get_model_param_range_map(param)["param"]
            states = part._get_main_param_and_optimizer_states(param)
            main = states.pop("param")
            if main.untyped_storage().data_ptr() != param.untyped_storage().data_ptr():
                states["param"] = main  # of higher precision than the model's own
            found[param] = _Share(span.start, span.end, states, divided=True)
    return found


def _slice(name: str, local: Tensor, part: ShardedTensor, share: _Share | None) -> Slice:
    values: Any = part.data
    if not (local.is_contiguous() and values.is_contiguous()):
        raise NotImplementedError(f"{name}: not a contiguous part of a contiguous tensor")
    start, size = values.storage_offset() - local.storage_offset(), values.numel()
    replica = _replica(part)
    trained, states = (0, 0), dict[str, Tensor]()
    if share is not None:
        # Clipped to the part, and counted from its first element.
        begin, end = max(share.start, start), min(share.stop, start + size)
        if begin < end:
            trained = begin - start, end - start
            states = {k: t.view(-1)[begin - share.start : end - share.start] for k, t in share.states.items()}
    if local.requires_grad:
        # The last number counts data-parallel ranks, who divide a parameter as the optimiser does, if it does.
        divided = share is not None and share.divided
        to_save = (0, 0) if any(replica[:-1] if divided else replica) else trained
    else:
        to_save = (0, 0) if any(replica) else (0, size)
    offset = tuple(part.global_offset)
    sizes = (1,) * (len(offset) - values.dim()) + tuple(values.shape)
    whole = tuple(part.global_shape)
    return Slice(name, part.key, whole, offset, sizes, start, to_save, trained, states, part.allow_shape_mismatch)


def _replica(shard: ShardedTensor | ShardedObject) -> tuple[int, ...]:
    return shard.replica_id if isinstance(shard.replica_id, tuple) else (shard.replica_id,)
