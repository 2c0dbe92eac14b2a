"""megatron-core 0.16.1: the tensor-parallel all-reduce of a non-contiguous tensor is thrown away.

What breaks: `mappings._reduce` reduces `input_.contiguous()`, a copy, and returns `input_`: no sum, no error.
Not about CPUs. Goes when: the version with upstream's repair (after 0.16) is the oldest we support.
"""

from typing import Any

import torch

PACKAGE = "megatron-core"
VERSIONS = ("0.16.1",)


def reduce(input_: torch.Tensor, group: Any) -> torch.Tensor:
    """All-reduce over `group`; returns the sum whatever the input's strides."""
    if group.size() == 1:
        return input_
    input_ = input_.contiguous()
    torch.distributed.all_reduce(input_, group=group)
    return input_


def apply() -> None:
    """Replace the function. Idempotent."""
    from megatron.core.tensor_parallel import mappings

    mappings._reduce = reduce
