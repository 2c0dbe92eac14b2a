"""The policy's weights under their Hugging Face names, one tensor at a time, for a push or a file."""

from collections.abc import Iterator

import torch
from torch import Tensor

from r1mega.families.spec import Row
from r1mega.trainer.policy import Policy
from r1mega.weights.convert import check_state, to_hf


class PolicySource:
    """A re-iterable stream of (Hugging Face name, tensor), in the order of the family's table.

    Has the shape of vLLM's `WeightSource` without importing it; the push wraps `metadata` entries.
    """

    def __init__(self, policy: Policy, *, include_mtp: bool) -> None:
        """include_mtp: whether the MTP layers come along (folders want them, rollout engines skip them).

        Raises:
            WeightMappingError: the model and its family's table disagree.
        """
        table = policy.spec.tensors()
        check_state(table, policy.state())
        self._policy = policy
        self._table = [r for r in table if include_mtp or not r.mtp]

    def metadata(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """(name, dtype, shape) of every tensor, in the order of iteration."""
        state = self._policy.state()
        return [
            (name, state[row.megatron].dtype, shape)
            for row in self._table
            for name, shape in zip(row.hf, row.hf_shapes, strict=True)
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Live, contiguous views of the weights; copy what must outlast the next optimiser step."""
        state = self._policy.state()
        for row in self._table:
            for name, tensor in to_hf(row, state[row.megatron].detach()):
                yield name, tensor.contiguous()

    def __len__(self) -> int:
        return sum(len(row.hf) for row in self._table)

    @property
    def rows(self) -> list[Row]:
        """The table's rows behind the stream, copies included."""
        return list(self._table)
