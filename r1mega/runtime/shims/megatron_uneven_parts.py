"""megatron-core 0.16.1: expert tensor parallelism hands parts of unequal sizes to collectives that gloo lacks.

What breaks: with the all-to-all dispatcher, ranks that share experts gather each other's tokens by `all_gather` into
parts of their true sizes, and scatter sums by `reduce_scatter` of such parts. gloo takes equal parts only:
"Invalid argument" in the first forward pass of ep > 1 with etp > 1.
Goes when: torch's gloo takes uneven parts, or the dispatcher pads.
"""

from typing import Any

import torch
import torch.distributed as dist

PACKAGE = "megatron-core"
VERSIONS = ("0.16.1",)


def gather(input_: torch.Tensor, group: Any, sizes: list[int]) -> torch.Tensor:
    """Every rank's rows, one rank's after the other's. input_: [sizes[rank], ...]; returns [sum(sizes), ...]."""
    longest = max(*sizes, 1)
    padded = input_.new_zeros(longest, *input_.shape[1:])
    padded[: len(input_)] = input_
    found = input_.new_empty(longest * len(sizes), *input_.shape[1:])
    dist.all_gather_into_tensor(found, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(found.split(longest), sizes, strict=True)])


def reduce_scatter(input_: torch.Tensor, group: Any, sizes: list[int]) -> torch.Tensor:
    """This rank's rows of the sum over ranks. input_: [sum(sizes), ...]; returns [sizes[rank], ...]."""
    longest = max(*sizes, 1)
    padded = input_.new_zeros(len(sizes), longest, *input_.shape[1:])
    for i, part in enumerate(input_.split(sizes)):
        padded[i, : len(part)] = part
    found = input_.new_empty(longest, *input_.shape[1:])
    dist.reduce_scatter_tensor(found, padded.flatten(0, 1), group=group)
    return found[: sizes[dist.get_rank(group)]].contiguous()


def apply() -> None:
    """Let both functions pad where sizes are given; without, they are as they were. Idempotent."""
    from megatron.core.tensor_parallel import mappings

    if getattr(mappings, "r1mega_uneven_parts", False):
        return
    even_gather, even_scatter = mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim

    def gather_parts(input_: Any, group: Any, output_split_sizes: Any = None, use_global_buffer: bool = False) -> Any:
        if output_split_sizes is None or group.size() == 1:
            return even_gather(input_, group, None, use_global_buffer)
        return gather(input_, group, output_split_sizes)

    def scatter_parts(input_: Any, group: Any, input_split_sizes: Any = None, use_global_buffer: bool = False) -> Any:
        if input_split_sizes is None or group.size() == 1:
            return even_scatter(input_, group, None, use_global_buffer)
        return reduce_scatter(input_, group, input_split_sizes)

    mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim = gather_parts, scatter_parts
    mappings.r1mega_uneven_parts = True  # type: ignore[attr-defined]
