"""The policy's weights under their Hugging Face names, one whole tensor at a time, for a push or a file.

Parts of a tensor go to one of the ranks that hold them, the first rank where it is among those, are put together
there, and go from there to the first rank, or to all where every rank wants them. So the first rank is sent each
tensor once, by one rank of a pipeline stage and of an expert's, and no rank has more than one whole tensor and one
part at a time: NCCL moves them between devices, gloo through the host.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from r1mega.families.spec import Kind, Row
from r1mega.formats.mapping import to_hf
from r1mega.formats.one_to_one import check_state
from r1mega.layout.shards import Axis, axis, part_shape, pieces
from r1mega.trainer.mesh import Mesh
from r1mega.trainer.policy import Policy


@dataclass(frozen=True)
class _Held:
    """What one rank has of the model."""

    peers: dict[Axis | None, tuple[int, ...]]
    """The ranks with which it shares tensors along an axis, itself included, in the order of their parts."""
    shapes: dict[str, tuple[int, ...]]


class PolicySource:
    """A re-iterable stream of (Hugging Face name, tensor), in the order of the family's table.

    Every rank iterates at the same time. Tensors are contiguous, on the trainer's device, and views of live weights
    where those are whole: copy what must outlast a step.
    """

    def __init__(self, policy: Policy, *, include_mtp: bool, everywhere: bool = False) -> None:
        """
        Args:
            include_mtp: whether the MTP layers come along (folders want them, rollout engines skip them).
            everywhere: every rank gets the tensors; otherwise the first one, and the others empty ones.

        Raises:
            WeightMappingError: the model and its family's table disagree.
        """
        self._policy, self._mesh = policy, policy.mesh
        self._takes = everywhere or self._mesh.first
        self._everywhere = everywhere and self._mesh.world_size > 1
        table = policy.spec.tensors()
        self._dtypes = {row.megatron: torch.float32 for row in table if row.kind is Kind.BUFFER}
        shapes = {name: tuple(t.shape) for name, t in policy.state().items()}
        self._groups: dict[Axis | None, Any] = {
            "tp": parallel_state.get_tensor_model_parallel_group(),
            "etp": parallel_state.get_expert_tensor_parallel_group(),
            None: None,
        }
        peers: dict[Axis | None, tuple[int, ...]] = {
            a: _members(group, self._mesh.rank) for a, group in self._groups.items()
        }
        ranks = self._mesh.gather(_Held(peers, shapes))
        self._sizes: dict[Axis | None, int] = {a: len(members) for a, members in peers.items()}
        check_state(table, {name: shape for rank in ranks for name, shape in rank.shapes.items()}, self._sizes)
        self._table = [r for r in table if include_mtp or not r.mtp]
        self._holders = {row.megatron: _holders(row, ranks) for row in self._table}
        if self._mesh.device.type != "cpu":
            # NCCL forms a communicator with its first collective, for which a message between two ranks is too few.
            with self._mesh.waiting("all ranks"):
                dist.all_reduce(torch.zeros(1, device=self._mesh.device))

    def metadata(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """(name, dtype, shape) of every tensor, in the order of iteration."""
        return [
            (name, self._dtype(row), shape)
            for row in self._table
            for name, shape in zip(row.hf, row.hf_shapes, strict=True)
        ]

    def _dtype(self, row: Row) -> torch.dtype:
        return self._dtypes.get(row.megatron, self._policy.network.config.params_dtype)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self.stream(self._policy.state())

    def stream(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Other tensors of the model's shapes, such as gradients, as `__iter__`; rows that no rank has are absent.

        Args:
            state: this rank's tensors, [as `Policy.state`] of any dtype, by its names.
        """
        for row in self._table:
            whole = self._whole(row, state.get(row.megatron))
            parts = list(to_hf(row, whole)) if self._takes else [(name, torch.empty(0)) for name in row.hf]
            parts.reverse()
            del whole
            while parts:  # none is held on to while the next row is put together
                yield _contiguous(*parts.pop())

    def _whole(self, row: Row, local: Tensor | None) -> Tensor:
        """[row.shape]: the whole Megatron tensor where it is wanted; elsewhere what is of no use."""
        holders, rank = self._holders[row.megatron], self._mesh.rank
        gatherer = 0 if 0 in holders else holders[0]
        whole = self._put_together(row, local.detach(), gatherer) if rank in holders and local is not None else None
        if rank != gatherer and self._takes:
            whole = torch.empty(row.shape, dtype=self._dtype(row), device=self._mesh.device)
        if self._everywhere:
            assert whole is not None
            whole = whole.contiguous()
            with self._mesh.waiting(f"all ranks to take {row.megatron}"):
                dist.broadcast(whole, gatherer)
        elif gatherer != 0 and rank == gatherer:
            assert whole is not None
            with self._mesh.waiting(f"the first rank to take {row.megatron}"):
                _exchange(dist.isend, whole.contiguous(), 0)
        elif gatherer != 0 and rank == 0:
            assert whole is not None
            with self._mesh.waiting(f"{row.megatron} of rank {gatherer}"):
                _exchange(dist.irecv, whole, gatherer)
        return torch.empty(0) if whole is None else whole

    def _put_together(self, row: Row, local: Tensor, gatherer: int) -> Tensor | None:
        """[row.shape] of the parts that the tensor's holders have, on `gatherer`, one of them; None on the others."""
        holders, group = self._holders[row.megatron], self._groups[axis(row)]
        if len(holders) == 1:
            return local
        if self._mesh.rank != gatherer:
            with self._mesh.waiting(f"rank {gatherer} to take a part of {row.megatron}"):
                _exchange(dist.isend, local.contiguous(), gatherer, group)
            return None
        whole = torch.empty(row.shape, dtype=local.dtype, device=local.device)
        for part, holder in enumerate(holders):
            dim, ranges = pieces(row, part, len(holders))
            if holder == gatherer:
                _fill(whole, dim, ranges, local)
                continue
            # A part that is a run of whole rows comes to its place at once; one with padding does not fit there.
            place, shape = whole[slice(*ranges[0])], part_shape(row, len(holders))
            in_place = dim == 0 and len(ranges) == 1 and place.shape == shape
            piece = place if in_place else local.new_empty(shape)
            with self._mesh.waiting(f"rank {holder}'s part of {row.megatron}"):
                _exchange(dist.irecv, piece, holder, group)
            if not in_place:
                _fill(whole, dim, ranges, piece)
        return whole

    @property
    def ranks(self) -> Mesh:
        """Those that iterate together."""
        return self._mesh

    def __len__(self) -> int:
        return sum(len(row.hf) for row in self._table)

    @property
    def rows(self) -> list[Row]:
        """The table's rows behind the stream, copies included."""
        return list(self._table)


def _contiguous(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    return name, tensor.contiguous()


def _members(group: dist.ProcessGroup | None, rank: int) -> tuple[int, ...]:
    return (rank,) if group is None else tuple(dist.get_process_group_ranks(group))


def _holders(row: Row, ranks: list[_Held]) -> tuple[int, ...]:
    """The ranks that give the tensor's parts, in their order: those of the first rank that has one."""
    first = next(rank for rank in ranks if row.megatron in rank.shapes)
    return first.peers[axis(row)]


def _fill(whole: Tensor, dim: int, ranges: list[tuple[int, int]], piece: Tensor) -> None:
    """Put what a rank holds into its places; padding behind it is left out."""
    sizes = [stop - start for start, stop in ranges]
    for (start, stop), values in zip(ranges, piece.narrow(dim, 0, sum(sizes)).split(sizes, dim), strict=True):
        whole.narrow(dim, start, stop - start).copy_(values)


def _exchange(way: Callable[..., object], tensor: Tensor, other: int, group: dist.ProcessGroup | None = None) -> None:
    """Send to (dist.isend) or receive from (dist.irecv) one rank of the run, over the group's own communicator."""
    for work in dist.batch_isend_irecv([dist.P2POp(way, tensor, other, group)]):  # type: ignore[arg-type]
        work.wait()
