"""megatron-core 0.16.1: split sizes of the all-to-all dispatcher are converted only when they are on a GPU.

What breaks: `maybe_move_tensor_to_cpu(..., as_numpy=True)` returns CPU tensors as they are, and the all-to-all of
expert parallelism then receives tensors where it needs numbers.
Goes when: the function converts by `as_numpy` alone.
"""

from typing import Any

import torch

PACKAGE = "megatron-core"
VERSIONS = ("0.16.1",)


def to_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """What the function says it does, for tensors on the CPU."""
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def apply() -> None:
    """Replace the function where the dispatcher imported it. Idempotent."""
    from megatron.core.transformer.moe import token_dispatcher

    token_dispatcher.maybe_move_tensor_to_cpu = to_host
