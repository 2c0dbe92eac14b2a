"""What layers are made of: Transformer Engine on a GPU, Megatron's local modules with this package's own on the CPU.

Both kinds have the same modules in the same places, and so the same weights under the same names: norms stand apart
from the matrices after them, and one table of names serves either. Alone the experts differ, whose matrices
Transformer Engine multiplies together (`trainer.network.names` knows). Queries and keys are rotated by code of this
package in both.
"""

import importlib.util
import logging
from importlib.metadata import version
from typing import Any, Literal

import torch
from megatron.core.extensions import transformer_engine as te
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_gpt_decoder_layer_specs,
    get_gpt_mtp_block_spec,
)
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import TEGroupedMLP
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig

from r1mega.config.cluster import TrainerLayout
from r1mega.errors import ConfigError
from r1mega.families.spec import Latent, ModelSpec
from r1mega.trainer.balance import count_in
from r1mega.trainer.network.attention import Attention
from r1mega.trainer.network.grouped import GroupedAttention
from r1mega.trainer.network.latent import LatentAttention
from r1mega.trainer.network.norm import RMSNorm

Layers = Literal["local", "transformer_engine"]

VERSIONS = ((2, 9), (2, 12))
"""Transformer Engine from the first to below the second, as megatron-core 0.16.1 asks for."""

log = logging.getLogger(__name__)


def choose_layers(device: str, layout: TrainerLayout) -> Layers:
    """What this process's layers are made of; the log tells.

    Args:
        device: type of the device, "cpu" or "cuda".

    Raises:
        ConfigError: on a GPU without a Transformer Engine that serves, unless the layout does without.
    """
    if device == "cpu":
        return "local"
    if layout.transformer_engine == "off":
        log.warning("layers: local ones, as cluster.trainer.transformer_engine asks: slow, no FP8")
        return "local"
    if layout.token_dispatcher == "flex" and importlib.util.find_spec("deep_ep") is None:
        raise ConfigError(
            'cluster.trainer.dispatcher = "flex" calls DeepEP\'s kernels, and the package deep_ep is not installed; '
            'build it, or set "alltoall"'
        )
    found = installed_engine()
    low, high = (".".join(map(str, v)) for v in VERSIONS)
    if found is None or not VERSIONS[0] <= found < VERSIONS[1]:
        have = "is not installed" if found is None else f"is {'.'.join(map(str, found))}"
        raise ConfigError(
            f"layers on CUDA are Transformer Engine's, >= {low} and < {high}, which {have} here. Build it "
            "(docs/measurements/README.md says how), or set cluster.trainer.transformer_engine = 'off' for slow "
            "layers without FP8 and context parallelism"
        )
    log.info("layers: Transformer Engine %s", ".".join(map(str, found)))
    return "transformer_engine"


def installed_engine() -> tuple[int, int] | None:
    """Version of the Transformer Engine that Megatron has found; None without one that imports."""
    if not te.HAVE_TE:
        return None
    major, minor, *_ = version("transformer-engine").split(".")
    return int(major), int(minor)


def layer_fields(layers: Layers, device: str, *, mixture: bool) -> dict[str, Any]:
    """Fields of Megatron's TransformerConfig that follow from it: where weights are made, which kernels are fused.

    Args:
        mixture: whether the model has a mixture of experts.
    """
    fused = layers == "transformer_engine"
    return {
        "use_cpu_initialization": device == "cpu",
        "moe_grouped_gemm": fused and mixture,
        "moe_permute_fusion": fused and mixture,
        "bias_activation_fusion": fused,
        "gradient_accumulation_fusion": False,  # of Megatron's own layers, with apex's kernel; see `add_in_products`
        # What is kept of a weight between micro-batches takes 2 bytes of a parameter in FP8, and its first one then
        # overwrites a gradient to which it should add.
        "disable_parameter_transpose_cache": fused,
        "apply_rope_fusion": False,  # queries and keys are rotated in this package's attention
        "masked_softmax_fusion": False,
        "bias_dropout_fusion": False,
        "cross_entropy_loss_fusion": False,
    }


def add_in_products(network: torch.nn.Module) -> int:
    """Have Transformer Engine's matrix products add weight gradients to the main gradients themselves.

    So each micro-batch's is added in their dtype, fp32 (V3 report 3.3.2), and not rounded to the weights' first.

    Megatron's setting for it is of its own output layer too, which would ask for apex's kernel.

    Returns:
        The number of modules that do.
    """
    products = [module for module in network.modules() if hasattr(module, "fuse_wgrad_accumulation")]
    for module in products:
        module.fuse_wgrad_accumulation = True  # type: ignore[assignment]
    return len(products)


def decoder_spec(spec: ModelSpec, config: TransformerConfig, layers: Layers, chunk: int | None = None) -> Any:
    """The layers of this pipeline stage; `chunk`: which of this rank's, where it has several."""
    block: Any = get_gpt_decoder_block_spec(
        config, use_transformer_engine=False, normalization="RMSNorm", vp_stage=chunk
    )
    block.layer_norm = _norm(layers)
    for layer in block.layer_specs:
        _mend(layer, spec, layers)
    return block


def mtp_spec(
    spec: ModelSpec, config: TransformerConfig, layers: Layers, module: type, chunk: int | None = None
) -> Any:
    """The MTP layers of this pipeline stage, each a `module`; None where it has none."""
    if not spec.num_mtp_layers:
        return None
    specs: Any = get_gpt_decoder_layer_specs(config, False, "RMSNorm")
    last = _mend(specs[-1], spec, layers)
    block: Any = get_gpt_mtp_block_spec(config, last, use_transformer_engine=False, vp_stage=chunk)
    for layer in block.layer_specs if block else ():
        parts = layer.submodules
        layer.module = module
        parts.enorm = parts.hnorm = parts.layer_norm = _norm(layers)
        if layers == "transformer_engine":
            parts.eh_proj = te.TEColumnParallelLinear
    return block


def _norm(layers: Layers) -> Any:
    return te.TENorm if layers == "transformer_engine" else RMSNorm


def _mend(layer: Any, spec: ModelSpec, layers: Layers) -> Any:
    """Replace the parts of Megatron's local layer that do not serve, or all for Transformer Engine's."""
    count_in(layer)
    parts = layer.submodules
    engine = layers == "transformer_engine"
    norm = _norm(layers)
    parts.input_layernorm = parts.pre_mlp_layernorm = norm
    attention = parts.self_attention.submodules
    attention.core_attention = te.TEDotProductAttention if engine else Attention
    if isinstance(spec.attention, Latent):
        parts.self_attention.module = LatentAttention
        attention.q_layernorm = attention.kv_layernorm = norm
    else:
        parts.self_attention.module = GroupedAttention
        parts.self_attention.params = {**parts.self_attention.params, "rope": spec.rope}
        if spec.attention.qk_norm:
            attention.q_layernorm = attention.k_layernorm = norm
    if engine:
        _use_engine(attention, parts.mlp.submodules, latent=isinstance(spec.attention, Latent))
    return layer


def _use_engine(attention: Any, mlp: Any, *, latent: bool) -> None:
    """Transformer Engine's linear layers for an attention's and an MLP's, or a mixture's."""
    columns, rows = te.TEColumnParallelLinear, te.TERowParallelLinear
    attention.linear_proj = rows
    if latent:
        attention.linear_q_proj = attention.linear_q_up_proj = attention.linear_kv_up_proj = columns
        attention.linear_q_down_proj = attention.linear_kv_down_proj = te.TELinear  # whole on every rank
    else:
        attention.linear_qkv = columns
    if not hasattr(mlp, "experts"):
        mlp.linear_fc1, mlp.linear_fc2 = columns, rows
        return
    grouped = MLPSubmodules(linear_fc1=te.TEColumnParallelGroupedLinear, linear_fc2=te.TERowParallelGroupedLinear)
    mlp.experts = ModuleSpec(module=TEGroupedMLP, submodules=grouped)
    mlp.shared_experts.submodules = MLPSubmodules(linear_fc1=columns, linear_fc2=rows)
