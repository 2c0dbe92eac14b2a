"""DeepSeek-V3: multi-head latent attention, sigmoid router with an expert bias, shared experts, MTP layers.

Sources: the V3 report (sections 2.1, 2.2) and transformers' `DeepseekV3Config`. Deviations: the sequence-wise
auxiliary loss (report Eq. 17-20, `aux_loss_alpha`) is not trained with; only the expert bias balances load.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from r1mega.errors import ConfigError
from r1mega.families.spec import Kind, ModelSpec, Row, Shape, Shard, Yarn

FIXED: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "attention_dropout": (0, 0.0),
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "moe_layer_freq": (1,),
    "norm_topk_prob": (True,),
    "rope_interleave": (True,),
    "scoring_func": ("sigmoid",),
    "topk_method": ("noaux_tc",),
    "pretraining_tp": (1,),
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
    "first_k_dense_replace", "initializer_range", "routed_scaling_factor", "num_nextn_predict_layers",
    "tie_word_embeddings", "q_lora_rank", "bos_token_id", "eos_token_id", "pad_token_id",
    "num_key_value_heads", "qk_head_dim", "head_dim", "rope_theta", "rope_parameters", "rope_scaling",
    "model_type",
)
# fmt: on
"""Fields read with care below."""

# fmt: off
IGNORED = (
    "architectures", "auto_map", "aux_loss_alpha", "chunk_size_feed_forward", "dtype", "ep_size",
    "id2label", "is_encoder_decoder", "label2id", "output_attentions", "output_hidden_states",
    "problem_type", "return_dict", "seq_aux", "torch_dtype", "transformers_version", "use_cache",
    "_name_or_path",
)
# fmt: on
"""Fields that do not change what the model computes."""


def read(hf: Mapping[str, Any]) -> ModelSpec:
    """The model of a config.json whose model_type is deepseek_v3.

    Raises:
        ConfigError: a field is missing, out of range, or not understood; all such fields are named.
    """
    faults = [
        f"{name} = {hf[name]!r}: only {' or '.join(map(repr, values))} is implemented"
        for name, values in FIXED.items()
        if name in hf and hf[name] not in values
    ]
    known = {*FIXED, *SIZES, *OTHERS, *IGNORED}
    faults += [f"{name} = {hf[name]!r}: unknown field" for name in hf if name not in known]
    faults += [f"{name} = {hf.get(name)!r}: a positive integer is needed" for name in SIZES if not _size(hf, name)]
    if faults:
        raise ConfigError("; ".join(faults))
    theta, yarn = _rope(hf)
    pad = hf.get("pad_token_id")
    spec = ModelSpec(
        family="deepseek_v3",
        vocab_size=hf["vocab_size"],
        hidden_size=hf["hidden_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=hf["num_attention_heads"],
        ffn_size=hf["intermediate_size"],
        norm_eps=hf.get("rms_norm_eps", 1e-6),
        max_positions=hf["max_position_embeddings"],
        init_std=hf.get("initializer_range", 0.02),
        tied=bool(hf.get("tie_word_embeddings", False)),
        rope_theta=theta,
        yarn=yarn,
        q_lora_rank=hf.get("q_lora_rank"),
        kv_lora_rank=hf["kv_lora_rank"],
        qk_nope_dim=hf["qk_nope_head_dim"],
        qk_rope_dim=hf["qk_rope_head_dim"],
        v_dim=hf["v_head_dim"],
        num_dense_layers=hf.get("first_k_dense_replace", 0),
        num_experts=hf["n_routed_experts"],
        num_shared_experts=hf["n_shared_experts"],
        top_k=hf["num_experts_per_tok"],
        num_groups=hf["n_group"],
        group_top_k=hf["topk_group"],
        moe_ffn_size=hf["moe_intermediate_size"],
        routed_scaling=float(hf.get("routed_scaling_factor", 1.0)),
        num_mtp_layers=hf.get("num_nextn_predict_layers") or 0,
        bos=hf.get("bos_token_id", 0),
        eos=hf.get("eos_token_id", 1),
        pad=hf.get("eos_token_id", 1) if pad is None else pad,
        hf={
            **hf,
            # Without these vLLM builds another router than Transformers does.
            "architectures": ["DeepseekV3ForCausalLM"],
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "norm_topk_prob": True,
            "moe_layer_freq": 1,
            "num_nextn_predict_layers": hf.get("num_nextn_predict_layers") or 0,
        },
        rows=rows,
    )
    _check(spec, hf)
    return spec


def _size(hf: Mapping[str, Any], name: str) -> bool:
    return isinstance(hf.get(name), int) and not isinstance(hf[name], bool) and hf[name] > 0


def _check(spec: ModelSpec, hf: Mapping[str, Any]) -> None:
    """Laws between fields."""
    if spec.tied:
        raise ConfigError("tie_word_embeddings = true: DeepSeek-V3 has a separate output head")
    if hf.get("num_key_value_heads", spec.num_heads) != spec.num_heads:
        raise ConfigError("num_key_value_heads must equal num_attention_heads under latent attention")
    if hf.get("qk_head_dim", spec.qk_nope_dim + spec.qk_rope_dim) != spec.qk_nope_dim + spec.qk_rope_dim:
        raise ConfigError("qk_head_dim must equal qk_nope_head_dim + qk_rope_head_dim")
    if spec.num_experts % spec.num_groups:
        raise ConfigError(f"n_routed_experts {spec.num_experts} is not a multiple of n_group {spec.num_groups}")
    if spec.group_top_k > spec.num_groups or spec.top_k > spec.num_experts // spec.num_groups * spec.group_top_k:
        raise ConfigError("num_experts_per_tok experts cannot be found in topk_group groups")
    # Megatron scores a group by its best top_k // group_top_k experts, Transformers and vLLM by its best two.
    if spec.num_groups > 1 and spec.top_k // spec.group_top_k != 2:
        raise ConfigError(
            f"num_experts_per_tok // topk_group = {spec.top_k // spec.group_top_k}, but must be 2 when n_group > 1: "
            "Megatron and Transformers score the groups differently otherwise"
        )
    if spec.q_lora_rank is not None and spec.q_lora_rank <= 0:
        raise ConfigError(f"q_lora_rank = {spec.q_lora_rank}: must be positive, or null")
    if not (isinstance(spec.init_std, int | float) and spec.init_std > 0):
        raise ConfigError(f"initializer_range = {spec.init_std!r}: must be a positive number")
    if not (isinstance(spec.num_mtp_layers, int) and spec.num_mtp_layers >= 0):
        raise ConfigError(f"num_nextn_predict_layers = {spec.num_mtp_layers!r}: must be a whole number, 0 or more")
    if not 0 <= spec.num_dense_layers < spec.num_layers:
        raise ConfigError(f"first_k_dense_replace = {spec.num_dense_layers} with {spec.num_layers} layers")


def _rope(hf: Mapping[str, Any]) -> tuple[float, Yarn | None]:
    """theta and YaRN's numbers, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`."""
    found = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    rope = dict(found)
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    theta = float(rope.pop("rope_theta", None) or hf.get("rope_theta") or 10000.0)
    if kind not in ("default", "yarn"):
        raise ConfigError(f"rope type {kind!r}: only default and yarn are implemented")
    yarn = None
    if kind == "yarn":
        try:
            yarn = Yarn(
                factor=float(rope.pop("factor")),
                original_max_position_embeddings=int(rope.pop("original_max_position_embeddings")),
                beta_fast=float(rope.pop("beta_fast", 32)),
                beta_slow=float(rope.pop("beta_slow", 1)),
                mscale=float(rope.pop("mscale", 1.0)),
                mscale_all_dim=float(rope.pop("mscale_all_dim", 0.0)),
            )
        except KeyError as e:
            raise ConfigError(f"rope parameters {dict(found)}: {e.args[0]} is missing") from e
    if rope:
        raise ConfigError(f"rope parameters {sorted(rope)}: unknown")
    return theta, yarn


def rows(spec: ModelSpec) -> list[Row]:
    """The table: trunk, output head, then the MTP layers under DeepSeek's published names."""
    vh = (spec.vocab_size, spec.hidden_size)
    h = (spec.hidden_size,)
    table = [_one("embedding.word_embeddings", "model.embed_tokens", vh, Shard.ROWS)]
    for i in range(spec.num_layers):
        table += _layer(spec, f"decoder.layers.{i}.", f"model.layers.{i}.", moe=i >= spec.num_dense_layers)
    table.append(_one("decoder.final_layernorm", "model.norm", h))
    table.append(_one("output_layer", "lm_head", vh, Shard.ROWS))
    for k in range(spec.num_mtp_layers):
        m, n = f"mtp.layers.{k}.", f"model.layers.{spec.num_layers + k}."
        mtp = [
            _one("embedding.word_embeddings", n + "embed_tokens", vh, Shard.ROWS, Kind.COPY),
            _one(m + "enorm", n + "enorm", h),
            _one(m + "hnorm", n + "hnorm", h),
            _one(m + "eh_proj", n + "eh_proj", (spec.hidden_size, 2 * spec.hidden_size), Shard.ROWS),
            *_layer(spec, m + "transformer_layer.", n, moe=True),
            _one(m + "final_layernorm", n + "shared_head.norm", h),
            _one("output_layer", n + "shared_head.head", vh, Shard.ROWS, Kind.COPY),
        ]
        table += [Row(r.megatron, r.hf, r.hf_shapes, r.kind, r.shard, mtp=True) for r in mtp]
    return table


def _layer(spec: ModelSpec, m: str, n: str, *, moe: bool) -> Iterator[Row]:
    """One transformer layer; m, n: prefixes of the Megatron and Hugging Face names."""
    hidden, heads = spec.hidden_size, spec.num_heads
    qk = spec.qk_nope_dim + spec.qk_rope_dim
    a, b = m + "self_attention.", n + "self_attn."
    yield _one(m + "input_layernorm", n + "input_layernorm", (hidden,))
    if spec.q_lora_rank is None:
        yield _one(a + "linear_q_proj", b + "q_proj", (heads * qk, hidden), Shard.ROWS)
    else:
        yield _one(a + "linear_q_down_proj", b + "q_a_proj", (spec.q_lora_rank, hidden))
        yield _one(a + "q_layernorm", b + "q_a_layernorm", (spec.q_lora_rank,))
        yield _one(a + "linear_q_up_proj", b + "q_b_proj", (heads * qk, spec.q_lora_rank), Shard.ROWS)
    yield _one(a + "linear_kv_down_proj", b + "kv_a_proj_with_mqa", (spec.kv_lora_rank + spec.qk_rope_dim, hidden))
    yield _one(a + "kv_layernorm", b + "kv_a_layernorm", (spec.kv_lora_rank,))
    kv = heads * (spec.qk_nope_dim + spec.v_dim)
    yield _one(a + "linear_kv_up_proj", b + "kv_b_proj", (kv, spec.kv_lora_rank), Shard.ROWS)
    yield _one(a + "linear_proj", b + "o_proj", (hidden, heads * spec.v_dim), Shard.COLUMNS)
    yield _one(m + "pre_mlp_layernorm", n + "post_attention_layernorm", (hidden,))
    m, n = m + "mlp.", n + "mlp."
    if not moe:
        yield from _mlp(m, n, hidden, spec.ffn_size)
        return
    yield _one(m + "router", n + "gate", (spec.num_experts, hidden))
    bias = n + "gate.e_score_correction_bias"
    yield Row(m + "router.expert_bias", (bias,), ((spec.num_experts,),), Kind.BUFFER)
    yield from _mlp(m + "shared_experts.", n + "shared_experts.", hidden, spec.moe_ffn_size * spec.num_shared_experts)
    for e in range(spec.num_experts):
        expert = f"{m}experts.local_experts.{e}."
        yield from _mlp(expert, f"{n}experts.{e}.", hidden, spec.moe_ffn_size, expert=True)


def _mlp(m: str, n: str, hidden: int, ffn: int, *, expert: bool = False) -> Iterator[Row]:
    """A gated MLP."""
    rows, columns = (Shard.EXPERT_ROWS, Shard.EXPERT_COLUMNS) if expert else (Shard.ROWS, Shard.COLUMNS)
    names = (n + "gate_proj.weight", n + "up_proj.weight")
    yield Row(m + "linear_fc1.weight", names, ((ffn, hidden), (ffn, hidden)), Kind.GATED, rows)
    yield _one(m + "linear_fc2", n + "down_proj", (hidden, ffn), columns)


def _one(m: str, n: str, shape: Shape, shard: Shard = Shard.REPLICATED, kind: Kind = Kind.DIRECT) -> Row:
    return Row(m + ".weight", (n + ".weight",), (shape,), kind, shard)
