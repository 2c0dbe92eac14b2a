"""The policy's weights under their Hugging Face names, one whole tensor at a time, for a push or a file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from r1mega.families.spec import Kind, Row
from r1mega.formats.mapping import to_hf
from r1mega.formats.one_to_one import check_state
from r1mega.layout.shards import Axis, axis, part_shape, pieces
from r1mega.trainer.network.initial import place_on
from r1mega.trainer.policy import Policy


@dataclass(frozen=True)
class _Held:
    """What one rank has of the model."""

    places: dict[Axis | None, int]
    shapes: dict[str, tuple[int, ...]]


class PolicySource:
    """A re-iterable stream of (Hugging Face name, tensor), in the order of the family's table.

    Has the shape of vLLM's `WeightSource` without importing it; the push wraps `metadata` entries. Every rank
    iterates at the same time: the tensors come together on rank 0, the others get nothing but empty ones.
    """

    def __init__(self, policy: Policy, *, include_mtp: bool) -> None:
        """include_mtp: whether the MTP layers come along (folders want them, rollout engines skip them).

        Raises:
            WeightMappingError: the model and its family's table disagree.
        """
        self._policy, self._mesh = policy, policy.mesh
        table = policy.spec.tensors()
        state = policy.state()
        self._dtypes = {row.megatron: torch.float32 for row in table if row.kind is Kind.BUFFER}
        shapes = {name: tuple(t.shape) for name, t in state.items()}
        axes: tuple[Axis | None, ...] = ("tp", "etp", None)
        ranks = self._mesh.gather(_Held({a: place_on(a)[0] for a in axes}, shapes))
        self._sizes: dict[Axis | None, int] = {a: place_on(a)[1] for a in axes}
        check_state(table, {name: shape for rank in ranks for name, shape in rank.shapes.items()}, self._sizes)
        self._table = [r for r in table if include_mtp or not r.mtp]
        self._holders = {row.megatron: self._first_holders(row, ranks) for row in self._table}

    def _first_holders(self, row: Row, ranks: list[_Held]) -> list[int]:
        """The rank that gives each part of the tensor."""
        holders = [r for r, rank in enumerate(ranks) if row.megatron in rank.shapes]
        parts = range(self._sizes[axis(row)])
        return [next(r for r in holders if ranks[r].places[axis(row)] == part) for part in parts]

    def metadata(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """(name, dtype, shape) of every tensor, in the order of iteration."""
        dtype = self._policy.network.config.params_dtype
        return [
            (name, self._dtypes.get(row.megatron, dtype), shape)
            for row in self._table
            for name, shape in zip(row.hf, row.hf_shapes, strict=True)
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Contiguous tensors on the host, views of live weights where those are; copy what must outlast a step."""
        return self.stream(self._policy.state())

    def stream(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Other tensors of the model's shapes, such as gradients, as `__iter__`; rows that no rank has are absent.

        Args:
            state: this rank's tensors, [as `Policy.state`] of any dtype, by its names.
        """
        for row in self._table:
            whole = self._collect(row, state.get(row.megatron))
            for name, tensor in to_hf(row, whole) if self._mesh.first else ((n, torch.empty(0)) for n in row.hf):
                yield name, tensor.contiguous()

    def _collect(self, row: Row, local: Tensor | None) -> Tensor:
        """[row.shape]: the whole Megatron tensor on rank 0; what other ranks get is of no use."""
        holders, rank = self._holders[row.megatron], self._mesh.rank
        if not self._mesh.first:
            if rank in holders:
                assert local is not None
                with self._mesh.waiting(f"the first rank to take {row.megatron}"):
                    dist.send(local.detach().contiguous().cpu(), 0)
            return torch.empty(0)
        if holders == [0]:
            assert local is not None
            return local.detach().cpu()
        dtype = self._dtypes.get(row.megatron, self._policy.network.config.params_dtype)
        whole = torch.empty(row.shape, dtype=dtype)
        for part, holder in enumerate(holders):
            dim, ranges = pieces(row, part, self._sizes[axis(row)])
            sizes = [stop - start for start, stop in ranges]
            if holder == 0:
                assert local is not None
                piece = local.detach()
            else:
                piece = torch.empty(part_shape(row, self._sizes[axis(row)]), dtype=dtype)
                with self._mesh.waiting(f"rank {holder}'s part of {row.megatron}"):
                    dist.recv(piece, holder)
            values_of = piece.narrow(dim, 0, sum(sizes)).split(sizes, dim)  # without padding
            for (start, stop), values in zip(ranges, values_of, strict=True):
                whole.narrow(dim, start, stop - start).copy_(values)
        return whole

    def __len__(self) -> int:
        return sum(len(row.hf) for row in self._table)

    @property
    def rows(self) -> list[Row]:
        """The table's rows behind the stream, copies included."""
        return list(self._table)
