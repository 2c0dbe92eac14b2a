"""Grouped-query attention with rotary positions that restart with every document.

Megatron's own counts positions from a chunk's start, and knows of Llama 3's scaling one factor alone.

Shapes: S tokens, B chunks, H hidden size, N query heads, G key-value heads (both of this rank), D channels of a head.
"""

import math
from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor

from r1mega.families.spec import Llama3Scaling, Rope, Yarn
from r1mega.trainer.attention import Segments
from r1mega.trainer.thd import Packed


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


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel i with channel i + D / 2. x: [S, B, N, D]; cos, sin: [S, B, 1, D / 2] fp32."""
    first, second = x.float().chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).type_as(x)


class GroupedAttention(SelfAttention):
    """SelfAttention for training, with Megatron's weights."""

    def __init__(self, config: Any, *arguments: Any, rope: Rope, **others: Any) -> None:
        super().__init__(config, *arguments, **others)
        self._frequencies, self._factor = frequencies(rope, config.kv_channels)
        self._table = torch.empty(2, 0, config.kv_channels // 2)
        self._segments: Segments | Packed | None = None

    def forward(self, hidden_states: Tensor, attention_mask: Any, **others: Any) -> Any:  # type: ignore[override]
        """As Megatron's, with `Segments` or `Packed` as mask; no rotary embedding is given, since queries and keys
        come here already turned."""
        self._segments = attention_mask
        mask: Any = None if isinstance(attention_mask, Packed) else attention_mask
        return super().forward(hidden_states, mask, **others)

    def get_query_key_value_tensors(self, *arguments: Any, **others: Any) -> Any:  # type: ignore[override]
        """Queries [S, B, N, D], keys and values [S, B, G, D]; queries and keys normed and turned."""
        found: Any = super().get_query_key_value_tensors(*arguments, **others)
        query, key, value = found
        cos, sin = self._turns()
        return rotate_halves(query, cos, sin), rotate_halves(key, cos, sin), value

    def _turns(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine, [S, B, 1, D / 2] fp32, of each position."""
        assert self._segments is not None
        positions, length = self._segments.positions, self._segments.longest
        if self._table.size(1) < length:
            angles = torch.arange(length).float()[:, None] * self._frequencies
            self._table = (torch.stack([angles.cos(), angles.sin()]) * self._factor).to(positions.device)
        cos, sin = self._table[:, positions].unsqueeze(3)
        return cos, sin
