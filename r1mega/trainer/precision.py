"""From a cluster file's dtypes and FP8 recipe to Megatron's configuration; the one place that knows both."""

from typing import Any, Literal

import torch

from r1mega.config.cluster import TrainerLayout
from r1mega.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

RECIPES: dict[str, dict[str, str]] = {
    # E4M3 throughout, gradients included, which fine scales make possible (V3 report 3.3.2).
    "blockwise": {"fp8": "e4m3", "fp8_recipe": "blockwise"},
    # One scale a tensor leaves gradients too little range in E4M3: E5M2 for them.
    "tensorwise": {"fp8": "hybrid", "fp8_recipe": "tensorwise"},
    "mxfp8": {"fp8": "e4m3", "fp8_recipe": "mxfp8"},
}
"""Megatron's words. Delayed scaling is not offered: its scales depend on the past, and so would a resumed run."""


def model_fields(layout: TrainerLayout) -> dict[str, Any]:
    """Fields of Megatron's TransformerConfig that say in which numbers to compute."""
    dtype, precision = DTYPES[layout.dtype], layout.precision
    fields: dict[str, Any] = {"params_dtype": dtype, "pipeline_dtype": dtype, "bf16": layout.dtype == "bf16"}
    if layout.deterministic:
        fields["deterministic_mode"] = True
    if precision.fp8 == "none":
        return fields
    fields |= RECIPES[precision.fp8]
    if precision.bf16_layers_at_start or precision.bf16_layers_at_end:
        fields |= {
            "first_last_layers_bf16": True,
            "num_layers_at_start_in_bf16": precision.bf16_layers_at_start,
            "num_layers_at_end_in_bf16": precision.bf16_layers_at_end,
        }
    return fields


def gradient_fields(layout: TrainerLayout) -> dict[str, Any]:
    """Fields of Megatron's DistributedDataParallelConfig for the same."""
    return {"grad_reduce_in_fp32": layout.precision.gradients == "fp32"}


def optimizer_fields(layout: TrainerLayout) -> dict[str, Any]:
    """Fields of Megatron's OptimizerConfig. Main parameters are fp32 whatever the weights are."""
    return {"params_dtype": DTYPES[layout.dtype], "bf16": layout.dtype == "bf16"}


def check_device(recipe: Literal["none", "blockwise", "tensorwise", "mxfp8"]) -> None:
    """Refuse a recipe that this GPU has no kernels for, in Transformer Engine's own words.

    Raises:
        ConfigError: with the device's name and the reason.
    """
    if recipe == "none":
        return
    from transformer_engine.pytorch import quantization  # pyright: ignore[reportMissingImports]

    ask = {
        "blockwise": quantization.is_fp8_block_scaling_available,
        "tensorwise": quantization.is_fp8_available,
        "mxfp8": quantization.is_mxfp8_available,
    }
    available, reason = ask[recipe](return_reason=True)
    if not available:
        raise ConfigError(
            f"cluster.trainer.precision.fp8 = {recipe!r} on {torch.cuda.get_device_name()}: {reason} Choose another "
            'recipe, or "none"'
        )


ATTENTION = {9: "Hopper", 10: "Blackwell"}
"""Compute capabilities, by their first number, for which cuDNN attends over packed rows (layout "thd"). 12, of
workstations' Blackwells, has it not."""


def check_attention(*, grouped: bool) -> None:
    """Refuse a GPU or a cuDNN without fused attention over packed rows, in whose place Transformer Engine would take
    its own unfused one without a word, quadratic in memory.

    Args:
        grouped: whether several query heads share a key-value head.

    Raises:
        ConfigError: with the device's name, or cuDNN's version.
    """
    remedy = "or set cluster.trainer.transformer_engine = 'off' for slow layers without FP8 and context parallelism"
    major, minor = torch.cuda.get_device_capability()
    if major not in ATTENTION:
        raise ConfigError(
            f"Transformer Engine's layers attend over packed rows, which cuDNN does on Hopper (9.0) and Blackwell "
            f"(10.x) alone; {torch.cuda.get_device_name()} is {major}.{minor}. Choose other GPUs, {remedy}"
        )
    wanted, found = (90600 if grouped else 90100), torch.backends.cudnn.version() or 0
    if found < wanted:
        raise ConfigError(
            f"attention over packed rows needs cuDNN {_dotted(wanted)}, PyTorch {torch.__version__} has "
            f"{_dotted(found) if found else 'none'}. Install a newer nvidia-cudnn, {remedy}"
        )


def _dotted(version: int) -> str:
    """cuDNN's number as it is written: 91900 is 9.19.0."""
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"
