"""`ModelSpec`, the sizes of a model, and `Row`, one line of the table Megatron name <-> Hugging Face names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

Head = Literal["lm", "score"]
"""What a model ends in: lm, the next token's logits; score, one number a text (`families.score_head`)."""
OUTPUT_LAYER = "output_layer.weight"
SCORE_HEAD = "score_head.weight"
"""Megatron names of the two."""

Shape = tuple[int, ...]


class Kind(StrEnum):
    """How the Hugging Face tensors of a row make up the Megatron tensor."""

    DIRECT = "direct"
    """One tensor, the same on both sides."""
    GATED = "gated"
    """gate_proj over up_proj, stacked along dim 0, is Megatron's linear_fc1."""
    QKV = "qkv"
    """q_proj, k_proj, v_proj (weights or biases) as Megatron's linear_qkv: along dim 0, for each key-value head its
    query heads, then its key, then its value. `Row.groups` is the number of key-value heads."""
    BUFFER = "buffer"
    """A direct tensor that Megatron keeps as an fp32 buffer, whatever the parameters' dtype."""
    COPY = "copy"
    """Published a second time under another name: written from the Megatron tensor, on reading it must equal it."""


class Shard(StrEnum):
    """How the Megatron tensor is spread over ranks."""

    REPLICATED = "replicated"
    ROWS = "rows"
    """Tensor-parallel along dim 0; each half of a gated row by itself, a fused row by whole key-value heads."""
    VOCAB = "vocab"
    """Tensor-parallel along dim 0 in shares of one size: zero rows follow the last one. Tables and files know the
    true size only; what is padding depends on the layout (`layout.shards`)."""
    COLUMNS = "columns"
    """Tensor-parallel along dim 1."""
    EXPERT_ROWS = "expert_rows"
    """One expert's tensor: on the rank that owns the expert, then expert-tensor-parallel along dim 0."""
    EXPERT_COLUMNS = "expert_columns"


@dataclass(frozen=True)
class Row:
    """One Megatron tensor and the Hugging Face tensors it corresponds to.

    `megatron` counts layers and experts over the whole model, not over a rank.
    """

    megatron: str
    hf: tuple[str, ...]
    hf_shapes: tuple[Shape, ...]
    kind: Kind = Kind.DIRECT
    shard: Shard = Shard.REPLICATED
    mtp: bool = False
    """Belongs to a multi-token-prediction layer (rollout engines skip those)."""
    groups: int = 1
    """Of a QKV row: the key-value heads over which its rows are interleaved."""
    also: tuple[str, ...] = ()
    """Names under which a folder may repeat the one tensor (a tied head). It must be equal; it is never written."""

    @property
    def shape(self) -> Shape:
        """Shape of the whole Megatron tensor, without padding."""
        return (sum(s[0] for s in self.hf_shapes), *self.hf_shapes[0][1:])


@dataclass(frozen=True)
class Yarn:
    """YaRN extension of rotary positions."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's extension of rotary positions: long wavelengths slowed by `factor`, short ones kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class Rope:
    """Rotary positions."""

    theta: float
    scaling: Yarn | Llama3Scaling | None = None


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (V3 report 2.1.1)."""

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_dim: int
    qk_rope_dim: int
    v_dim: int


@dataclass(frozen=True)
class Grouped:
    """Grouped-query attention: each key-value head serves num_heads / num_kv_heads query heads."""

    num_kv_heads: int
    head_dim: int
    qkv_bias: bool
    qk_norm: bool
    """An RMS norm over the channels of every query and key head, before the rotation."""


@dataclass(frozen=True)
class Moe:
    """DeepSeek's mixture of experts (V3 report 2.1.2)."""

    num_dense_layers: int
    """Layers before the first mixture-of-experts layer."""
    num_experts: int
    num_shared_experts: int
    top_k: int
    num_groups: int
    group_top_k: int
    ffn_size: int
    """Of one expert; the shared experts are one MLP of num_shared_experts times that."""
    routed_scaling: float

    @property
    def shared_ffn_size(self) -> int:
        return self.ffn_size * self.num_shared_experts


@dataclass(frozen=True)
class ModelSpec:
    """Everything about a model's shape that its config.json states.

    `hf` is that file again, what it left to defaults written out for transformers and vLLM; reading it gives an
    equal spec.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_size: int
    """Of a dense layer."""
    norm_eps: float
    max_positions: int
    init_std: float
    tied: bool
    """Whether the output head is the embedding."""
    rope: Rope
    attention: Latent | Grouped
    moe: Moe | None
    num_mtp_layers: int
    bos: int | None
    eos: int | tuple[int, ...]
    pad: int
    hf: Mapping[str, Any]
    rows: Callable[["ModelSpec"], list[Row]]
    """The family's table of a language model."""
    head: Head = "lm"

    def tensors(self) -> list[Row]:
        """The table of every tensor of the model, in the order in which it is exported and pushed."""
        table = self.rows(self)
        if self.head == "lm":
            return table
        trunk = [row for row in table if row.kind is not Kind.COPY and row.megatron != OUTPUT_LAYER]
        return [*trunk, Row(SCORE_HEAD, ("score.weight",), ((1, self.hidden_size),))]

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return (self.eos,) if isinstance(self.eos, int) else self.eos

    def with_vocab(self, vocab_size: int, *, bos: int, eos: int, pad: int) -> "ModelSpec":
        """The same model with the vocabulary of a tokenizer."""
        hf = {
            **self.hf,
            "vocab_size": vocab_size,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
        }
        return replace(self, vocab_size=vocab_size, bos=bos, eos=eos, pad=pad, hf=hf)
