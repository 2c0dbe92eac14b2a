"""DeepSeek-V3: multi-head latent attention, sigmoid router with an expert bias, shared experts, MTP layers.

Sources: the V3 report (sections 2.1, 2.2) and transformers' `DeepseekV3Config`. Deviations: the sequence-wise
auxiliary loss (report Eq. 17-20, `aux_loss_alpha`) is not trained with; only the expert bias balances load.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from r1mega.errors import ConfigError
from r1mega.families.fields import check_fields, flag, positive, read_rope, token_ids, yarn
from r1mega.families.rows import embedding, gated_mlp, head, one
from r1mega.families.spec import Kind, Latent, ModelSpec, Moe, Row, Shard, Yarn

FIXED: Mapping[str, tuple[Any, ...]] = {
    "architectures": (["DeepseekV3ForCausalLM"], None),
    "attention_bias": (False,),
    "attention_dropout": (0, 0.0),
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "moe_layer_freq": (1,),
    "norm_topk_prob": (True,),
    "output_router_logits": (False,),
    "rope_interleave": (True,),
    "scoring_func": ("sigmoid",),
    "topk_method": ("noaux_tc",),
    # Transformers writes 1e-6 into the q_a and kv_a norms whatever this says, vLLM does not: only here do they agree.
    "rms_norm_eps": (1e-6,),
}
"""Fields that change the computation, and the values of them that are implemented."""

# fmt: off
SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
    "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "n_group", "topk_group",
    "moe_intermediate_size",
)
# fmt: on
"""Required positive integers."""

# fmt: off
OTHERS = (
    # Read with care below.
    "first_k_dense_replace", "initializer_range", "routed_scaling_factor", "num_nextn_predict_layers",
    "tie_word_embeddings", "q_lora_rank", "bos_token_id", "eos_token_id", "pad_token_id",
    "num_key_value_heads", "qk_head_dim", "head_dim",
    # Do not change what the model computes.
    "aux_loss_alpha", "ep_size", "seq_aux",
)
# fmt: on


def read(hf: Mapping[str, Any]) -> ModelSpec:
    """The model of a config.json whose model_type is deepseek_v3.

    Raises:
        ConfigError: a field is missing, out of range, or not understood; all such fields are named.
    """
    check_fields(hf, fixed=FIXED, sizes=SIZES, known=OTHERS)
    spec = ModelSpec(
        family="deepseek_v3",
        vocab_size=hf["vocab_size"],
        hidden_size=hf["hidden_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=hf["num_attention_heads"],
        ffn_size=hf["intermediate_size"],
        norm_eps=hf.get("rms_norm_eps", 1e-6),
        max_positions=hf["max_position_embeddings"],
        init_std=positive(hf, "initializer_range", 0.02),
        tied=flag(hf, "tie_word_embeddings", False),
        rope=read_rope(hf, {"yarn": _yarn}),
        attention=Latent(
            # Where the field is missing, transformers takes V3's.
            q_lora_rank=hf.get("q_lora_rank", 1536),
            kv_lora_rank=hf["kv_lora_rank"],
            qk_nope_dim=hf["qk_nope_head_dim"],
            qk_rope_dim=hf["qk_rope_head_dim"],
            v_dim=hf["v_head_dim"],
        ),
        moe=Moe(
            num_dense_layers=hf.get("first_k_dense_replace", 3),
            num_experts=hf["n_routed_experts"],
            num_shared_experts=hf["n_shared_experts"],
            top_k=hf["num_experts_per_tok"],
            num_groups=hf["n_group"],
            group_top_k=hf["topk_group"],
            ffn_size=hf["moe_intermediate_size"],
            routed_scaling=float(positive(hf, "routed_scaling_factor", 2.5)),
        ),
        num_mtp_layers=0 if (mtp := hf.get("num_nextn_predict_layers")) is None else mtp,
        **token_ids(hf, bos=0, eos=1),
        hf={},
        rows=rows,
    )
    _check(spec, hf)
    return replace(spec, hf=_completed(spec, hf))


def _completed(spec: ModelSpec, hf: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with every default written out: transformers and vLLM do not have the same ones."""
    assert isinstance(spec.attention, Latent)
    assert spec.moe is not None
    # Transformers writes null where it has not worked out a dimension yet.
    left_out = {"quantization_config", *(name for name in ("head_dim", "qk_head_dim") if hf.get(name) is None)}
    return {
        **{name: value for name, value in hf.items() if name not in left_out},
        "architectures": ["DeepseekV3ForCausalLM"],
        "first_k_dense_replace": spec.moe.num_dense_layers,
        "initializer_range": spec.init_std,
        "moe_layer_freq": 1,
        "norm_topk_prob": True,
        "num_key_value_heads": spec.num_heads,
        "num_nextn_predict_layers": spec.num_mtp_layers,
        "q_lora_rank": spec.attention.q_lora_rank,
        "rms_norm_eps": spec.norm_eps,
        "routed_scaling_factor": spec.moe.routed_scaling,
        # Without these vLLM builds another router than Transformers does.
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "tie_word_embeddings": spec.tied,
        **({} if hf.get("rope_parameters") else {"rope_theta": spec.rope.theta}),
    }


def _check(spec: ModelSpec, hf: Mapping[str, Any]) -> None:
    """Laws between fields."""
    attention, moe = spec.attention, spec.moe
    assert isinstance(attention, Latent)
    assert moe is not None
    if hf.get("num_key_value_heads") not in (None, spec.num_heads):
        raise ConfigError("num_key_value_heads must equal num_attention_heads under latent attention")
    qk = attention.qk_nope_dim + attention.qk_rope_dim
    if hf.get("qk_head_dim") not in (None, qk):
        raise ConfigError("qk_head_dim must equal qk_nope_head_dim + qk_rope_head_dim")
    # Transformers takes it for the rotary dimension, as it writes it; others leave it out.
    if hf.get("head_dim") not in (None, attention.qk_rope_dim):
        raise ConfigError(f"head_dim = {hf['head_dim']!r} must equal qk_rope_head_dim, or be left out")
    if attention.qk_rope_dim % 2:
        raise ConfigError(f"qk_rope_head_dim = {attention.qk_rope_dim}: must be even, since channels turn in pairs")
    if moe.num_experts % moe.num_groups:
        raise ConfigError(f"n_routed_experts {moe.num_experts} is not a multiple of n_group {moe.num_groups}")
    if moe.group_top_k > moe.num_groups or moe.top_k > moe.num_experts // moe.num_groups * moe.group_top_k:
        raise ConfigError("num_experts_per_tok experts cannot be found in topk_group groups")
    # Megatron scores a group by its best top_k // group_top_k experts, Transformers and vLLM by its best two.
    if moe.num_groups > 1 and moe.top_k // moe.group_top_k != 2:
        raise ConfigError(
            f"num_experts_per_tok // topk_group = {moe.top_k // moe.group_top_k}, but must be 2 when n_group > 1: "
            "Megatron and Transformers score the groups differently otherwise"
        )
    if attention.q_lora_rank is not None and not (type(attention.q_lora_rank) is int and attention.q_lora_rank > 0):
        raise ConfigError(f"q_lora_rank = {attention.q_lora_rank!r}: must be a positive integer, or null")
    if not (type(spec.num_mtp_layers) is int and spec.num_mtp_layers >= 0):
        raise ConfigError(f"num_nextn_predict_layers = {spec.num_mtp_layers!r}: must be a whole number, 0 or more")
    dense = moe.num_dense_layers
    if type(dense) is not int or not 0 <= dense <= spec.num_layers:
        raise ConfigError(f"first_k_dense_replace = {dense!r} with num_hidden_layers = {spec.num_layers}")
    if dense == spec.num_layers and spec.num_mtp_layers:
        raise ConfigError(
            f"first_k_dense_replace = {dense} leaves no mixture-of-experts layer, but the MTP layer is built as the "
            "last layer is, and its published form has experts: set num_nextn_predict_layers = 0"
        )


def _yarn(rope: dict[str, Any]) -> Yarn:
    """DeepSeek's YaRN, whose mscale fields also scale the attention scores; takes its fields out of `rope`."""
    mscale, all_dim = (rope.pop(name, default) for name, default in (("mscale", 1.0), ("mscale_all_dim", 0.0)))
    if all_dim != 0 or isinstance(all_dim, bool):
        positive({"mscale_all_dim": all_dim}, "mscale_all_dim")
    found = replace(yarn(rope), mscale=float(positive({"mscale": mscale}, "mscale")), mscale_all_dim=float(all_dim))
    if found.mscale_all_dim == 0 and found.mscale != 1:
        raise ConfigError(
            f"mscale = {mscale!r} without mscale_all_dim: Transformers ignores it then, Megatron and vLLM do not"
        )
    return found


def rows(spec: ModelSpec) -> list[Row]:
    """The table: trunk, output head, then the MTP layers under DeepSeek's published names."""
    h = (spec.hidden_size,)
    moe = spec.moe
    assert moe is not None
    table = [embedding(spec)]
    for i in range(spec.num_layers):
        table += _layer(spec, f"decoder.layers.{i}.", f"model.layers.{i}.", moe=i >= moe.num_dense_layers)
    table.append(one("decoder.final_layernorm", "model.norm", h))
    # vLLM knows no tied head for this family: it is written out.
    table.append(head(spec, kind=Kind.COPY if spec.tied else Kind.DIRECT))
    for k in range(spec.num_mtp_layers):
        m, n = f"mtp.layers.{k}.", f"model.layers.{spec.num_layers + k}."
        vocab = (spec.vocab_size, spec.hidden_size)
        mtp = [
            one("embedding.word_embeddings", n + "embed_tokens", vocab, Shard.VOCAB, Kind.COPY),
            one(m + "enorm", n + "enorm", h),
            one(m + "hnorm", n + "hnorm", h),
            one(m + "eh_proj", n + "eh_proj", (spec.hidden_size, 2 * spec.hidden_size), Shard.ROWS),
            *_layer(spec, m + "transformer_layer.", n, moe=True),
            one(m + "final_layernorm", n + "shared_head.norm", h),
            head(spec, n + "shared_head.head", Kind.COPY),
        ]
        table += [replace(row, mtp=True) for row in mtp]
    return table


def _layer(spec: ModelSpec, m: str, n: str, *, moe: bool) -> Iterator[Row]:
    """One transformer layer; m, n: prefixes of the Megatron and Hugging Face names."""
    hidden, heads, latent, mixture = spec.hidden_size, spec.num_heads, spec.attention, spec.moe
    assert isinstance(latent, Latent)
    assert mixture is not None
    qk = latent.qk_nope_dim + latent.qk_rope_dim
    a, b = m + "self_attention.", n + "self_attn."
    yield one(m + "input_layernorm", n + "input_layernorm", (hidden,))
    if latent.q_lora_rank is None:
        yield one(a + "linear_q_proj", b + "q_proj", (heads * qk, hidden), Shard.ROWS)
    else:
        yield one(a + "linear_q_down_proj", b + "q_a_proj", (latent.q_lora_rank, hidden))
        yield one(a + "q_layernorm", b + "q_a_layernorm", (latent.q_lora_rank,))
        yield one(a + "linear_q_up_proj", b + "q_b_proj", (heads * qk, latent.q_lora_rank), Shard.ROWS)
    compressed = latent.kv_lora_rank + latent.qk_rope_dim
    yield one(a + "linear_kv_down_proj", b + "kv_a_proj_with_mqa", (compressed, hidden))
    yield one(a + "kv_layernorm", b + "kv_a_layernorm", (latent.kv_lora_rank,))
    kv = heads * (latent.qk_nope_dim + latent.v_dim)
    yield one(a + "linear_kv_up_proj", b + "kv_b_proj", (kv, latent.kv_lora_rank), Shard.ROWS)
    yield one(a + "linear_proj", b + "o_proj", (hidden, heads * latent.v_dim), Shard.COLUMNS)
    yield one(m + "pre_mlp_layernorm", n + "post_attention_layernorm", (hidden,))
    m, n = m + "mlp.", n + "mlp."
    if not moe:
        yield from gated_mlp(m, n, hidden, spec.ffn_size)
        return
    yield one(m + "router", n + "gate", (mixture.num_experts, hidden))
    bias = n + "gate.e_score_correction_bias"
    yield Row(m + "router.expert_bias", (bias,), ((mixture.num_experts,),), Kind.BUFFER)
    yield from gated_mlp(m + "shared_experts.", n + "shared_experts.", hidden, mixture.shared_ffn_size)
    for e in range(mixture.num_experts):
        expert = f"{m}experts.local_experts.{e}."
        yield from gated_mlp(expert, f"{n}experts.{e}.", hidden, mixture.ffn_size, expert=True)
