"""megatron-core 0.16.1: the random states of the model-parallel tracker are CUDA's alone.

What breaks: `model_parallel_cuda_manual_seed` and every `fork()` read and set a CUDA generator that is not there.
Goes when: the tracker takes its generator's device from the model.
"""

import logging

import torch

PACKAGE = "megatron-core"
VERSIONS = ("0.16.1",)


def apply() -> None:
    """Let the tracker keep states of the CPU generator. Imports megatron, hence after megatron_cuda_device."""
    torch.cuda.manual_seed = lambda seed: torch.default_generator.manual_seed(int(seed))
    torch.cuda.get_rng_state = torch.cuda.random.get_rng_state = lambda device="cuda": torch.get_rng_state()
    torch.cuda.set_rng_state = torch.cuda.random.set_rng_state = lambda state, device="cuda": torch.set_rng_state(
        state
    )
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state()
    random._set_cuda_rng_state = lambda new_state, device=-1, graph_safe=False: torch.set_rng_state(new_state)
    # It warns at every fork that the CPU state changed inside a CUDA context, which is now the purpose.
    logging.getLogger(random.__name__).setLevel(logging.ERROR)
