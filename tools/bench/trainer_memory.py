"""How much memory a variant of tools/bench/trainer.py needs, from shapes alone, so that one that does not fit says so
before anything is made."""

import math
from typing import Any

from r1mega.config.cluster import TrainerLayout
from r1mega.families.spec import Kind, Latent, ModelSpec
from r1mega.trainer.logprob import TILE_BYTES

WIDTH = {"fp32": 4, "bf16": 2}
CONTEXT_BYTES = 3 << 30
"""CUDA's context, cuBLAS's and NCCL's buffers, and what the allocator cannot use."""
HOST_BYTES = 8 << 30
"""A process with torch and Megatron imported, CUDA's libraries mapped."""
SLACK = 1.5
"""Activations are counted as the tensors that autograd keeps; kernels' own memory comes on top."""


def num_parameters(spec: ModelSpec) -> int:
    """Trained ones."""
    return sum(math.prod(row.shape) for row in spec.tensors() if row.kind not in (Kind.COPY, Kind.BUFFER))


def plan(spec: ModelSpec, layout: TrainerLayout, *, micro_batch_tokens: int) -> dict[str, int]:
    """Bytes by what they are for, at the worst moment of a step on one device.

    Args:
        micro_batch_tokens: tokens that are on their way through the model at one time.

    Returns:
        weights, gradients, optimizer (main parameters and moments), fp8 (copies of weights, both ways round), step
        (what TE's Adam widens where moments are bf16), activations, context: their sum is the device's; host is the
        process's own.
    """
    count, width = num_parameters(spec), WIDTH[layout.dtype]
    moment = WIDTH[layout.precision.moments]
    return {
        "weights": count * width,
        "gradients": count * WIDTH[layout.precision.gradients],
        # Main parameters are the weights themselves where those are fp32.
        "optimizer": count * (2 * moment + (4 if width < 4 else 0)),
        "fp8": 0 if layout.precision.fp8 == "none" else 2 * count,
        "step": 0 if moment == 4 else 8 * count,
        "activations": int(SLACK * micro_batch_tokens * _kept_a_token(spec) * width) + 4 * TILE_BYTES,
        "context": CONTEXT_BYTES,
        "host": HOST_BYTES,
    }


def _kept_a_token(spec: ModelSpec) -> int:
    """Numbers that autograd keeps of a token in all layers."""
    heads, hidden = spec.num_heads, spec.hidden_size
    if isinstance(spec.attention, Latent):
        head = spec.attention.qk_nope_dim + spec.attention.qk_rope_dim
        attention = heads * (4 * head + 3 * spec.attention.v_dim)  # before and after the rotation; values, output
    else:
        attention = 7 * heads * spec.attention.head_dim
    dense = 3 * spec.ffn_size
    layers = spec.num_layers * (6 * hidden + attention)
    if spec.moe is None:
        return layers + spec.num_layers * dense
    of_experts = spec.moe.top_k * (3 * spec.moe.ffn_size + 3 * hidden) + 3 * spec.moe.shared_ffn_size
    mixtures = spec.num_layers - spec.moe.num_dense_layers
    return layers + spec.moe.num_dense_layers * dense + mixtures * of_experts


def refusal(needed: dict[str, int], *, device_bytes: int, host_bytes: int) -> str:
    """Why it does not fit, in a sentence with the remedy; empty where it does."""
    on_device = sum(size for part, size in needed.items() if part != "host")
    for where, wanted, there in (("device", on_device, device_bytes), ("host", needed["host"], host_bytes)):
        if wanted > there:
            parts = ", ".join(f"{part} {size / 2**30:.1f}" for part, size in needed.items())
            return (
                f"needs {wanted / 2**30:.1f} GiB of {where} memory, and there are {there / 2**30:.1f} ({parts}); "
                "take fewer --layers, --tokens or a smaller --chunk"
            )
    return ""


def host_bytes() -> int:
    """Memory that this machine can still give to a process."""
    with open("/proc/meminfo") as lines:  # noqa: PTH123 (no file of ours)
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def peaks(device: str) -> dict[str, Any]:
    """What this process has used so far, in bytes: of the device by torch's allocator, of the host resident."""
    import harness
    import torch

    found: dict[str, Any] = {"host_peak_bytes": harness.memory_bytes("VmHWM")}
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        found |= {"device_peak_bytes": torch.cuda.max_memory_allocated(), "device_used_bytes": total - free}
    return found
