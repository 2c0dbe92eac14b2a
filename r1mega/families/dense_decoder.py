"""What the dense families share: grouped-query attention and a gated MLP in every layer, under Llama's names."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from r1mega.errors import ConfigError
from r1mega.families.fields import check_fields, flag, is_size, positive, read_rope, token_ids
from r1mega.families.rows import embedding, gated_mlp, head, one
from r1mega.families.spec import Grouped, Kind, ModelSpec, Row, Shard

SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
"""Required positive integers."""

# fmt: off
OTHERS = (
    "bos_token_id", "eos_token_id", "pad_token_id", "head_dim", "initializer_range", "num_key_value_heads",
    "rms_norm_eps", "tie_word_embeddings",
)
# fmt: on
"""Fields read with care below."""


@dataclass(frozen=True)
class Dense:
    """What sets one dense family apart."""

    family: str
    """model_type of its config.json."""
    architecture: str
    qkv_bias: bool
    qk_norm: bool
    fixed: Mapping[str, tuple[Any, ...]]
    """Fields that change the computation, and the values of them that are implemented."""
    ignored: tuple[str, ...]
    """Fields of this family that do not change what the model computes."""
    rope_types: Mapping[str, Callable[[dict[str, Any]], Any]]
    bos: int | None
    eos: int | None
    """What transformers takes where the file says nothing."""
    num_kv_heads: int | None
    """What transformers takes where the file says nothing; None: as many as there are heads."""
    head_dim: int | None
    """What transformers takes where the file says nothing; None: hidden_size / num_attention_heads."""
    any_head_dim: bool
    """Whether head_dim may be something else than hidden_size / num_attention_heads."""


def read_dense(this: Dense, hf: Mapping[str, Any]) -> ModelSpec:
    """The model of a config.json of a dense family.

    Raises:
        ConfigError: a field is missing, out of range, or not understood.
    """
    none = dict.fromkeys(("num_experts", "num_local_experts"), (0, None))
    fixed = {"attention_dropout": (0, 0.0), "hidden_act": ("silu",), **none, **this.fixed}
    fixed["architectures"] = ([this.architecture], None)  # another head computes something else
    check_fields(hf, fixed=fixed, sizes=SIZES, known=(*OTHERS, *this.ignored))
    spec = ModelSpec(
        family=this.family,
        vocab_size=hf["vocab_size"],
        hidden_size=hf["hidden_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=hf["num_attention_heads"],
        ffn_size=hf["intermediate_size"],
        norm_eps=positive(hf, "rms_norm_eps", 1e-6),
        max_positions=hf["max_position_embeddings"],
        init_std=positive(hf, "initializer_range", 0.02),
        tied=flag(hf, "tie_word_embeddings", False),
        rope=read_rope(hf, this.rope_types),
        attention=_attention(this, hf),
        moe=None,
        num_mtp_layers=0,
        **token_ids(hf, this.bos, this.eos),
        hf={},
        rows=rows,
    )
    return replace(spec, hf=_completed(this, spec, hf))


def _attention(this: Dense, hf: Mapping[str, Any]) -> Grouped:
    hidden, heads = hf["hidden_size"], hf["num_attention_heads"]
    given = {name: hf[name] for name in ("head_dim", "num_key_value_heads") if hf.get(name) is not None}
    for name in given:
        if not is_size(given, name):
            raise ConfigError(f"{name} = {given[name]!r}: must be a positive integer, or left out")
    head_dim: int = given.get("head_dim") or this.head_dim or hidden // heads
    if hidden % heads and (("head_dim" not in given and this.head_dim is None) or not this.any_head_dim):
        raise ConfigError(f"hidden_size = {hidden} is not a multiple of num_attention_heads = {heads}")
    if not this.any_head_dim and head_dim != hidden // heads:
        raise ConfigError(f"head_dim = {head_dim}: must be hidden_size / num_attention_heads in this family")
    kv_heads: int = given.get("num_key_value_heads") or this.num_kv_heads or heads
    if hf.get("num_key_value_heads", 0) is None:  # null says: as many as there are heads
        kv_heads = heads
    if heads % kv_heads:
        raise ConfigError(f"num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv_heads}")
    if head_dim % 2:
        raise ConfigError(f"head_dim = {head_dim}: must be even, since channels turn in pairs")
    return Grouped(kv_heads, head_dim, this.qkv_bias, this.qk_norm)


def _completed(this: Dense, spec: ModelSpec, hf: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with every default written out: transformers and vLLM do not have the same ones."""
    attention = spec.attention
    assert isinstance(attention, Grouped)
    return {
        **{name: value for name, value in hf.items() if name != "quantization_config"},
        "architectures": [this.architecture],
        "initializer_range": spec.init_std,
        "num_key_value_heads": attention.num_kv_heads,
        "rms_norm_eps": spec.norm_eps,
        "tie_word_embeddings": spec.tied,
        **({"head_dim": attention.head_dim} if this.any_head_dim else {}),
        **({} if hf.get("rope_parameters") else {"rope_theta": spec.rope.theta}),
    }


def rows(spec: ModelSpec) -> list[Row]:
    """The table: embedding, layers, final norm, and the output head where it is not the embedding."""
    table = [embedding(spec, also=("lm_head.weight",) if spec.tied else ())]
    for i in range(spec.num_layers):
        table += _layer(spec, f"decoder.layers.{i}.", f"model.layers.{i}.")
    table.append(one("decoder.final_layernorm", "model.norm", (spec.hidden_size,)))
    return table if spec.tied else [*table, head(spec)]


def _layer(spec: ModelSpec, m: str, n: str) -> Iterator[Row]:
    """One transformer layer; m, n: prefixes of the Megatron and Hugging Face names."""
    hidden, attention = spec.hidden_size, spec.attention
    assert isinstance(attention, Grouped)
    a, b = m + "self_attention.", n + "self_attn."
    q, kv = spec.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
    yield one(m + "input_layernorm", n + "input_layernorm", (hidden,))
    parts = (("weight", ((q, hidden), (kv, hidden), (kv, hidden))), ("bias", ((q,), (kv,), (kv,))))
    for part, shapes in parts if attention.qkv_bias else parts[:1]:
        names = tuple(f"{b}{x}_proj.{part}" for x in "qkv")
        yield Row(f"{a}linear_qkv.{part}", names, shapes, Kind.QKV, Shard.ROWS, groups=attention.num_kv_heads)
    if attention.qk_norm:
        yield one(a + "q_layernorm", b + "q_norm", (attention.head_dim,))
        yield one(a + "k_layernorm", b + "k_norm", (attention.head_dim,))
    yield one(a + "linear_proj", b + "o_proj", (hidden, q), Shard.COLUMNS)
    yield one(m + "pre_mlp_layernorm", n + "post_attention_layernorm", (hidden,))
    yield from gated_mlp(m + "mlp.", n + "mlp.", hidden, spec.ffn_size)
