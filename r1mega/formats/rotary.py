"""By how much rotary positions turn each pair of channels."""

import math

import torch
from torch import Tensor

from r1mega.families.spec import Llama3Scaling, Rope, Yarn


def frequencies(rope: Rope, dim: int) -> tuple[Tensor, float]:
    """Angle by which each pair of channels turns from one position to the next, and a factor on cosine and sine.

    Args:
        dim: channels of a head, even.

    Returns:
        ([dim / 2] fp32, factor), as transformers' `modeling_rope_utils` computes them.
    """
    powers = rope.theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim)
    plain, scaling = 1.0 / powers, rope.scaling
    if scaling is None:
        return plain, 1.0
    if isinstance(scaling, Yarn):
        return _yarn(plain, 1.0 / (scaling.factor * powers), scaling, rope.theta, dim)
    return _llama3(plain, scaling), 1.0


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Wavelengths up to length / high_freq_factor stay, those from length / low_freq_factor on are slowed."""
    length = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelengths = 2 * math.pi / plain
    smooth = (length / wavelengths - low) / (high - low)
    between = (1 - smooth) * plain / scaling.factor + smooth * plain
    slowed = torch.where(wavelengths > length / low, plain / scaling.factor, plain)
    middle = ~(wavelengths < length / high) & ~(wavelengths > length / low)
    return torch.where(middle, between, slowed)


def _yarn(plain: Tensor, slowed: Tensor, scaling: Yarn, theta: float, dim: int) -> tuple[Tensor, float]:
    """Pairs that turn more than beta_fast times in the original length stay, those below beta_slow are slowed."""

    def pair(turns: float) -> float:
        length = scaling.original_max_position_embeddings
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = max(math.floor(pair(scaling.beta_fast)), 0), min(math.ceil(pair(scaling.beta_slow)), dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - first) / (last - first or 0.001)
    kept = 1 - ramp.clamp(0, 1)
    factor = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    return slowed * (1 - kept) + plain * kept, factor
