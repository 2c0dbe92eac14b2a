"""Process groups of the trainer, and everything that must happen before megatron is imported."""

import random
import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from r1mega.config.schema import TrainerLayout
from r1mega.errors import ConfigError
from r1mega.runtime import env, shims


@dataclass(frozen=True)
class Mesh:
    """This process's place among the trainer's ranks."""

    layout: TrainerLayout
    device: torch.device
    rank: int
    world_size: int

    def barrier(self) -> None:
        """Wait for every rank of the trainer."""
        dist.barrier()


def start(layout: TrainerLayout, *, device: str, seed: int) -> Mesh:
    """Join the trainer's ranks (torchrun's, or a world of one), form Megatron's groups, seed every generator.

    Args:
        layout: axes of the mesh, threads and dtype.
        device: "cpu" (gloo).
        seed: of torch, numpy, python and Megatron's tracker.

    Raises:
        ConfigError: a layout that this version does not run, or another number of processes than it asks for.
    """
    if device != "cpu":
        raise ConfigError(f"device {device!r}: the trainer runs on cpu only")
    if layout.ranks != 1 or layout.ep != 1:
        raise ConfigError(
            f"trainer layout tp={layout.tp} pp={layout.pp} ep={layout.ep} dp={layout.dp}: only one rank is supported"
        )
    if layout.dtype != "fp32":
        raise ConfigError(f"trainer dtype {layout.dtype!r}: only fp32 is supported on cpu")
    torch.set_num_threads(layout.threads)
    # Megatron compiles small functions with torch.compile; on the CPU that costs minutes and gains nothing.
    torch._dynamo.config.disable = True
    # No apex, no Transformer Engine, its own deprecated arguments: nothing a user of this system can mend.
    warnings.filterwarnings("ignore", module=r"megatron\.")
    shims.install_megatron_cpu()
    from megatron.core import parallel_state, tensor_parallel

    launch = env.launch()
    if not dist.is_initialized():
        if launch is None:
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        else:
            dist.init_process_group("gloo", rank=launch.rank, world_size=launch.world_size)
    if dist.get_world_size() != layout.ranks:
        raise ConfigError(f"the layout has {layout.ranks} ranks, but {dist.get_world_size()} processes were started")
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tp,
            pipeline_model_parallel_size=layout.pp,
            expert_model_parallel_size=layout.ep,
            # Megatron's default is tp, which would multiply the ranks that experts need.
            expert_tensor_parallel_size=1,
        )
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    return Mesh(layout, torch.device(device), dist.get_rank(), dist.get_world_size())


def stop() -> None:
    """Leave the process groups."""
    if dist.is_initialized():
        from megatron.core import parallel_state

        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
