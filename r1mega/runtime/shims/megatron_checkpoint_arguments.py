"""megatron-core 0.16.1: what is computed again may be given tensors and None alone.

What breaks: `tensor_parallel.checkpoint` hands all arguments to `save_for_backward`: a TypeError for ours, which
says with a dataclass which rows attend to each other (`trainer.network.attention.Segments`).
Not about CPUs. Goes when: `CheckpointFunction` keeps other arguments beside the saved tensors, as torch's own does.
"""

from collections.abc import Callable
from typing import Any

import torch

PACKAGE = "megatron-core"
VERSIONS = ("0.16.1",)


def checkpoint(function: Callable[..., Any], distribute_saved_activations: bool, *args: Any) -> Any:
    """As Megatron's; arguments that are no tensors reach `function` both times as they are."""
    from megatron.core.tensor_parallel import random

    places = [i for i, value in enumerate(args) if torch.is_tensor(value)]

    def run(*tensors: torch.Tensor) -> Any:
        whole = list(args)
        for place, tensor in zip(places, tensors, strict=True):
            whole[place] = tensor
        return function(*whole)

    return random.CheckpointFunction.apply(run, distribute_saved_activations, *(args[i] for i in places))


def apply() -> None:
    """Replace the function where layers look for it. Idempotent."""
    from megatron.core import tensor_parallel
    from megatron.core.tensor_parallel import random

    tensor_parallel.checkpoint = random.checkpoint = checkpoint
