"""`ModelSpec`, the sizes of a model, and `Row`, one line of the table Megatron name <-> Hugging Face names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

Shape = tuple[int, ...]


class Kind(StrEnum):
    """How the Hugging Face tensors of a row make up the Megatron tensor."""

    DIRECT = "direct"
    """One tensor, the same on both sides."""
    GATED = "gated"
    """gate_proj over up_proj, stacked along dim 0, is Megatron's linear_fc1."""
    BUFFER = "buffer"
    """A direct tensor that Megatron keeps as an fp32 buffer, whatever the parameters' dtype."""
    COPY = "copy"
    """Published a second time under another name: written from the Megatron tensor, on reading it must equal it."""


class Shard(StrEnum):
    """How the Megatron tensor is spread over ranks."""

    REPLICATED = "replicated"
    ROWS = "rows"
    """Tensor-parallel along dim 0; each half of a gated row by itself."""
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

    @property
    def shape(self) -> Shape:
        """Shape of the whole Megatron tensor."""
        first = self.hf_shapes[0]
        return (sum(s[0] for s in self.hf_shapes), *first[1:]) if self.kind is Kind.GATED else first


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
class ModelSpec:
    """Everything about a model's shape that its config.json states; `hf` is that file, completed for vLLM."""

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_size: int
    norm_eps: float
    max_positions: int
    init_std: float
    tied: bool
    rope_theta: float
    yarn: Yarn | None
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_dim: int
    qk_rope_dim: int
    v_dim: int
    num_dense_layers: int
    """Layers before the first mixture-of-experts layer."""
    num_experts: int
    num_shared_experts: int
    top_k: int
    num_groups: int
    group_top_k: int
    moe_ffn_size: int
    routed_scaling: float
    num_mtp_layers: int
    bos: int
    eos: int
    pad: int
    hf: Mapping[str, Any]
    rows: Callable[["ModelSpec"], list[Row]]
    """The family's table."""

    def tensors(self) -> list[Row]:
        """The table of every tensor of the model, in the order in which it is exported and pushed."""
        return self.rows(self)

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
