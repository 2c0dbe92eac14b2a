"""Runs in a vLLM worker: the values of a layer's weights as it computes with them, whatever its kernel's layout.

On a CPU a kernel computes from a packed copy of its own, and the parameter is empty, or an older one that nobody
reads. Such a copy is asked for instead: a matrix multiplied with unit vectors gives its columns, exactly, since one
product and zeros are summed; and a permutation of a layer's experts is found by packing their places. Where neither
is possible the answer is None: `held.Loading` has then seen the values when they were loaded.
"""

import functools
from typing import Any

import torch
from torch import Tensor

UNIT_VECTORS = 512
"""As many as are multiplied at once."""
_PLAIN_EXPERTS = {"TRITON", "BATCHED_TRITON"}
"""Kernels of experts, by vLLM's name, that compute from weights as they are loaded."""


def matrix(layer: Any, *, loading: bool = False) -> Tensor | None:
    """The weight of a linear layer or an output head of vLLM, [rows, columns] of this rank.

    Args:
        loading: just loaded, and not yet in the kernel's layout.
    """
    if loading:
        return layer.weight
    if not _unquantized(layer):
        return None
    if layer.weight.device.type == "cpu":
        return _through_unit_vectors(layer)
    return layer.weight if layer.weight.ndim == 2 else None


def has_own_copy(layer: Any) -> bool:
    """Whether an output head computes from something else than its table."""
    return layer.weight.device.type == "cpu" and _unquantized(layer)


def gives_back(layer: Any) -> bool:
    """Whether the values of a layer's weights can be had after its kernel has made its own layout of them."""
    if hasattr(layer, "w13_weight"):
        name = getattr(getattr(layer.quant_method, "unquantized_backend", None), "name", "")
        return _unquantized(layer) and name in (*_PLAIN_EXPERTS, "CPU")
    return _unquantized(layer)


def scale_block(layer: Any) -> tuple[int, int] | None:
    """Rows and columns of 8-bit weights that share a scale; None for weights without scales."""
    block = getattr(layer.quant_method, "weight_block_size", None)
    return (block[0], block[1]) if block else None


def _unquantized(layer: Any) -> bool:
    return type(layer.quant_method).__name__.startswith("Unquantized")


def columns_of(layer: Any) -> int:
    """Columns of a linear layer's weight on this rank."""
    return getattr(layer, "input_size_per_partition", layer.input_size)


def _through_unit_vectors(layer: Any) -> Tensor:
    columns, dtype = columns_of(layer), layer.weight.dtype
    parts = []
    for first in range(0, columns, UNIT_VECTORS):
        number = min(UNIT_VECTORS, columns - first)
        unit = torch.zeros(number, columns, dtype=dtype)
        unit[torch.arange(number), torch.arange(first, first + number)] = 1
        parts.append(layer.cpu_linear(unit, layer.weight, None).to(dtype))
    return torch.cat(parts).t()


def experts(layer: Any, *, loading: bool = False) -> tuple[Tensor, Tensor] | None:
    """The matrices w13 [experts, 2 x rows, columns] and w2 [experts, columns, rows] of this rank's experts.

    w13 has each expert's gate over its up projection, which may both be followed by rows of padding, w2 columns.
    """
    weights = layer.w13_weight, layer.w2_weight
    if loading:
        return weights
    method = layer.quant_method
    if not _unquantized(layer):
        return None
    if method.unquantized_backend.name in _PLAIN_EXPERTS:
        return weights
    kernel = getattr(method.moe_kernel, "fused_experts", None)
    isa = getattr(kernel, "isa", None)
    if method.unquantized_backend.name != "CPU" or isa is None or getattr(kernel, "_use_zentorch", False):
        return None
    w13, w2 = (_unpacked(weight, isa) for weight in weights)
    return w13, w2


def _unpacked(packed: Tensor, isa: str) -> Tensor:
    """[experts, rows, columns] as they were before vLLM packed them for `isa`."""
    places = _places(packed.shape[1], packed.shape[2], packed.dtype, isa)
    return packed.flatten(1)[:, places].view(packed.shape)


@functools.lru_cache(maxsize=8)
def _places(rows: int, columns: int, dtype: torch.dtype, isa: str) -> Tensor:
    """[rows x columns] int64: where an element of an expert is after packing, found by packing the places themselves.

    In digits below 128, which every dtype holds exactly.
    """
    from vllm import _custom_ops

    left, origin, weight = torch.arange(rows * columns), torch.zeros(rows * columns, dtype=torch.int64), 1
    while bool((left > 0).any()):
        digit = (left % 128).to(dtype).view(1, rows, columns)
        origin += weight * _custom_ops.cpu_prepack_moe_weight(digit, isa).flatten().to(torch.int64)
        left, weight = left // 128, weight * 128
    places = torch.empty_like(origin)
    places[origin] = torch.arange(rows * columns)
    return places
