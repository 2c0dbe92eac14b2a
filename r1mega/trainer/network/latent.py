"""Multi-head latent attention (V3 report 2.1.1) with the rotation as one complex product.

Megatron's own way rearranges the rotary channels three times and copies them twice. Attention sees only products
of queries with keys, so both may stay in the interleaved order in which DeepSeek's weights give them.

Shapes: S tokens, B chunks, H hidden size, N heads, R rotary channels.
"""

from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, gather_from_sequence_parallel_region
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from torch import Tensor

from r1mega.trainer.network.attention import Segments
from r1mega.trainer.network.thd import Packed


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels. x: [S, B, N, R]; turn: [S, B or 1, 1, R / 2] complex."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2).type_as(x)


class Duplicated(torch.nn.Module):
    """A linear layer that every tensor-parallel rank holds whole, applied to its part of the sequence.

    Megatron's local layers divide the down-projections by columns, and then never sum the gradient of the rotary
    key over the ranks. Transformer Engine's do it as here.
    """

    def __init__(self, input_size: int, output_size: int, config: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(output_size, input_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """x: [..., input_size]; returns ([..., output_size], no bias)."""
        return torch.nn.functional.linear(x, self.weight), None


class LatentAttention(MLASelfAttention):
    """MLASelfAttention for training: the same weights and the same attention scores.

    Positions restart with every document, as the engine counts them. Scores depend on differences alone, but a
    large angle has fewer digits in fp32: counted from a chunk's start, the two differ several times more.
    """

    _segments: Segments | Packed | None = None

    def __init__(self, config: Any, *arguments: Any, **others: Any) -> None:
        super().__init__(config, *arguments, **others)
        if not isinstance(self.linear_kv_down_proj, ColumnParallelLinear):
            return  # Transformer Engine's, whole on every rank
        if config.q_lora_rank is not None:
            self.linear_q_down_proj = Duplicated(config.hidden_size, config.q_lora_rank, config)
        compressed = config.kv_lora_rank + config.qk_pos_emb_head_dim
        self.linear_kv_down_proj = Duplicated(config.hidden_size, compressed, config)

    def forward(self, hidden_states: Tensor, attention_mask: Any, **others: Any) -> Any:  # type: ignore[override]
        """As Megatron's; `attention_mask` is `Segments`, or `Packed` with Transformer Engine's attention."""
        self._segments = attention_mask
        mask: Any = None if isinstance(attention_mask, Packed) else attention_mask
        return super().forward(hidden_states, mask, **others)

    def get_query_key_value_tensors(  # type: ignore[override]
        self, hidden_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values.

        Args:
            hidden_states: [S, B, H].

        Returns:
            query, key: [S, B, N, nope + R]; value: [S, B, N, v], all without B = 1 where documents are packed in one
            row; and the compressed query and key-value, which Megatron's caller wants and this attention does not
            use.
        """
        config = self.config
        if config.q_lora_rank is None:
            compressed = hidden_states
            query, _ = self.linear_q_proj(hidden_states)
        else:
            compressed, _ = self.linear_q_down_proj(hidden_states)
            compressed = self.q_layernorm(compressed)
            query, _ = self.linear_q_up_proj(compressed)
        latent, _ = self.linear_kv_down_proj(hidden_states)
        latent, shared_key = latent.split([config.kv_lora_rank, config.qk_pos_emb_head_dim], -1)
        if config.sequence_parallel:
            shared_key = gather_from_sequence_parallel_region(shared_key, group=self.tp_group)
        latent = self.kv_layernorm(latent)  # pyright: ignore[reportCallIssue]
        expanded, _ = self.linear_kv_up_proj(latent)

        query = query.unflatten(-1, (self.num_attention_heads_per_partition, -1))
        expanded = expanded.unflatten(-1, (self.num_attention_heads_per_partition, -1))
        query, query_rope = query.split([config.qk_head_dim, config.qk_pos_emb_head_dim], -1)
        key, value = expanded.split([config.qk_head_dim, config.v_head_dim], -1)
        turn = self._turn(len(query))
        key_rope = rotate(shared_key.unsqueeze(2), turn).expand(*key.shape[:3], -1)
        query = torch.cat([query, rotate(query_rope, turn)], -1)
        key = torch.cat([key, key_rope], -1)
        if isinstance(self._segments, Packed):
            query, key, value = (x.squeeze(1) for x in (query, key, value))
        return query, key, value, compressed, latent

    def _turn(self, length: int) -> Tensor:
        """[length, B or 1, 1, R / 2] complex64: by how much each position turns each pair."""
        if isinstance(self._segments, Packed):
            length = self._segments.longest
        rotary = self.rotary_pos_emb(length, packed_seq=True)  # every position, also where cp divides the rows
        angles, scale = rotary if isinstance(rotary, tuple) else (rotary, 1.0)  # YaRN adds a factor
        angles = angles[:length, ..., : angles.size(-1) // 2].float()
        turns = torch.polar(torch.full_like(angles, scale), angles)
        return turns if self._segments is None else turns[self._segments.positions, 0]
