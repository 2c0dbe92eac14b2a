"""A rank's parts of a new model: built, given first weights, and wrapped for data parallelism."""

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

from r1mega.config.cluster import TrainerLayout
from r1mega.families.spec import Grouped, ModelSpec
from r1mega.trainer.mesh import Mesh
from r1mega.trainer.network.initial import First, initialise
from r1mega.trainer.network.layer_spec import Layers, add_in_products
from r1mega.trainer.network.model import MTP, PolicyModel, build_model, megatron_config
from r1mega.trainer.network.names import by_whole_model_names, own_tensors
from r1mega.trainer.precision import check_attention, check_device, gradient_fields


def build_model_chunks(
    spec: ModelSpec,
    mesh: Mesh,
    layers: Layers,
    *,
    mtp: MTP,
    expert_bias_rate: float,
    seed: int,
    first: First = "drawn",
) -> list[DistributedDataParallel]:
    """One for each virtual stage of the pipeline that the rank holds, in their order, with their first weights.

    Args:
        layers: what they are made of (`trainer.network.layer_spec.choose_layers`).
        mtp, expert_bias_rate, seed, first: as in `Policy.build`.

    Raises:
        ConfigError: the device has no such FP8, or no attention over packed rows.
    """
    layout = mesh.layout
    networks = build_networks(spec, layout, layers, mesh.device, mtp=mtp, expert_bias_rate=expert_bias_rate)
    for network in networks:
        add_in_products(network)
        initialise(spec, by_whole_model_names(network, own_tensors(network)), seed, first)
    ddp = DistributedDataParallelConfig(
        use_distributed_optimizer=layout.distributed_optimizer, overlap_grad_reduce=False, **gradient_fields(layout)
    )
    return [DistributedDataParallel(config=network.config, ddp_config=ddp, module=network) for network in networks]


def build_networks(
    spec: ModelSpec,
    layout: TrainerLayout,
    layers: Layers,
    device: torch.device,
    *,
    mtp: MTP = "off",
    expert_bias_rate: float = 0.0,
) -> list[PolicyModel]:
    """The same without weights that mean anything, and without the wrapper, which holds gradients.

    Args:
        layout: of the ranks that Megatron's groups are formed for; its stages may be another model's.

    Raises:
        ConfigError: as `build_model_chunks`.
    """
    if layers == "transformer_engine":
        check_attention(grouped=isinstance(spec.attention, Grouped))
    check_device(layout.precision.fp8)
    config = megatron_config(spec, layout, expert_bias_rate=expert_bias_rate, layers=layers, device=device.type)
    numbers = range(layout.vpp) if layout.vpp > 1 else (None,)
    # Megatron draws weights too, which are overwritten.
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        networks = [build_model(spec, config, mtp=mtp, layers=layers, chunk=chunk) for chunk in numbers]
    for network in networks:
        # Megatron makes routers on the host, our local layers norms and whole matrices. The distributed optimizer's
        # buffers would move what is trained; frozen layers, and everything without it, would stay behind.
        network.to(device)
    return networks
