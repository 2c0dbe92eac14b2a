"""Grouped-query attention with rotary positions that restart with every document.

Megatron's own counts positions from a chunk's start, and knows of Llama 3's scaling one factor alone.

Shapes: S tokens, B chunks, H hidden size, N query heads, G key-value heads (both of this rank), D channels of a head.
"""

from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor

from r1mega.families.spec import Rope
from r1mega.formats.rotary import frequencies
from r1mega.trainer.network.attention import Segments
from r1mega.trainer.network.thd import Packed


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
