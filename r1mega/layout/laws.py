"""Laws between a model and the layout and batch that are to hold it; `device_laws` has a layout's by itself."""

from r1mega.config import pp_layout
from r1mega.config.cluster import TrainerLayout
from r1mega.config.training import Batch
from r1mega.errors import ConfigError
from r1mega.families.spec import Grouped, ModelSpec

FP8_ROWS = {"blockwise": 128, "tensorwise": 16, "mxfp8": 32}
"""Tokens of which a rank must have a multiple: the tile that a recipe scales, or what its kernels ask for."""


def check_lengths(longest: int, spec: ModelSpec, batch: Batch, setting: str = "sampling.max_new_tokens") -> None:
    """Raises ConfigError with all `length_faults`, where there are some."""
    if faults := length_faults(longest, spec, batch, setting):
        raise ConfigError("; ".join(faults))


def length_faults(longest: int, spec: ModelSpec, batch: Batch, setting: str) -> list[str]:
    """Why a model or a chunk cannot hold sequences, with the setting to change.

    Args:
        longest: tokens of the longest sequence that can come up; in RL the longest prompt + max_new_tokens.
        setting: what bounds it.
    """
    if longest > spec.max_positions:
        return [
            f"sequences of up to {longest} tokens exceed the model's max_position_embeddings = {spec.max_positions}: "
            f"lower {setting} or choose a model with more positions"
        ]
    if longest > batch.chunk_tokens:
        return [
            f"sequences of up to {longest} tokens exceed batch.chunk_tokens = {batch.chunk_tokens}: raise it to at "
            f"least {longest} (it never changes the result)"
        ]
    return []


def check_layout(spec: ModelSpec, layout: TrainerLayout, batch: Batch) -> None:
    """Raises ConfigError with all `model_faults`, where there are some."""
    if faults := model_faults(spec, layout, batch):
        raise ConfigError("\n  ".join([f"the layout does not fit the model: {len(faults)} fault(s)", *faults]))


def model_faults(spec: ModelSpec, layout: TrainerLayout, batch: Batch) -> list[str]:
    """Why a layout cannot hold a model: every size that its ranks do not divide, and what else it cannot hold."""
    tp, moe = layout.tp, spec.moe
    divided = [
        ("tp", tp, "attention heads (num_attention_heads)", spec.num_heads),
        ("tp", tp, "channels of a dense layer (intermediate_size)", spec.ffn_size),
        ("tp", tp, "tokens of a chunk (batch.chunk_tokens)", batch.chunk_tokens),
    ]
    if moe is not None:
        divided += [
            (
                "tp",
                tp,
                "channels of the shared experts (moe_intermediate_size x n_shared_experts)",
                moe.shared_ffn_size,
            ),
            ("etp", layout.expert_tp, "channels of an expert (moe_intermediate_size)", moe.ffn_size),
            ("ep", layout.ep, "experts (n_routed_experts)", moe.num_experts),
        ]
    faults = [
        f"cluster.trainer.{axis} = {ranks} does not divide the model's {size} {what}"
        for axis, ranks, what, size in divided
        if size % ranks
    ]
    blocks = 2 * layout.cp * tp
    if layout.cp > 1 and batch.chunk_tokens % blocks:
        faults.append(
            f"batch.chunk_tokens = {batch.chunk_tokens} does not divide into the 2 x cp x tp = {blocks} blocks of "
            "context parallelism"
        )
    tile = FP8_ROWS.get(layout.precision.fp8, 1)
    if batch.chunk_tokens % (tile * layout.cp * tp):
        faults.append(
            f"batch.chunk_tokens = {batch.chunk_tokens} leaves a rank (cp x tp = {layout.cp * tp}) no whole number "
            f"of FP8 tiles of {tile} tokens (cluster.trainer.precision.fp8 = {layout.precision.fp8!r})"
        )
    own = layout.precision.bf16_layers_at_start, layout.precision.bf16_layers_at_end
    if max(own) > spec.num_layers // layout.pp:
        faults.append(
            f"cluster.trainer.precision.bf16_layers_at_start, _at_end = {own[0]}, {own[1]}: Megatron takes no more "
            f"than a pipeline rank's {spec.num_layers // layout.pp} layers"
        )
    if isinstance(spec.attention, Grouped) and spec.attention.num_kv_heads % tp:
        groups = spec.attention.num_kv_heads
        faults.append(
            f"cluster.trainer.tp = {tp} does not divide the model's {groups} key-value heads (num_key_value_heads), "
            f"and a rank holds whole ones: choose tp among the divisors of {groups}"
        )
    if moe is None and layout.ep > 1:
        faults.append(f"cluster.trainer.ep = {layout.ep}, but the model has no experts: leave ep out")
    if moe is not None and layout.recompute.granularity == "full" and layout.recompute.method == "block":
        faults.append(
            "cluster.trainer.recompute.method = 'block' with a mixture of experts: Megatron-core 0.16 then "
            "counts padding in the routers of the layers that are not recomputed, and their biases drift; use "
            "'uniform'"
        )
    if moe is None and layout.dispatcher is not None:
        faults.append(
            f"cluster.trainer.dispatcher = {layout.dispatcher!r}, but the model has no experts: leave it out"
        )
    faults += _pipeline_faults(spec, layout) + _recompute_faults(spec, layout)
    share = -(-spec.vocab_size // tp)
    if share * (tp - 1) >= spec.vocab_size:
        faults.append(f"cluster.trainer.tp = {tp} leaves ranks without any of the {spec.vocab_size} ids (vocab_size)")
    return faults


def _pipeline_faults(spec: ModelSpec, layout: TrainerLayout) -> list[str]:
    layers, stages = spec.num_layers, layout.pp * layout.vpp
    if layout.pipeline:
        held = pp_layout.expand(layout.pipeline)
        letters = "".join(held)
        faults = [
            f"cluster.trainer.pipeline = {layout.pipeline!r} has {letters.count(letter)} {letter}, the model "
            f"{number} {what}"
            for letter, number, what in (
                ("t", layers, "layers (num_hidden_layers)"),
                ("m", spec.num_mtp_layers, "MTP layers (num_nextn_predict_layers)"),
            )
            if letters.count(letter) != number
        ]
        if spec.tied and any("m" in stage for stage in held[:-1]):
            faults.append(
                f"cluster.trainer.pipeline = {layout.pipeline!r}: the model's head is its embedding "
                "(tie_word_embeddings), and then m belongs into L's stage"
            )
        return faults
    if layout.vpp > 1 and stages > layers:
        return [
            f"cluster.trainer.vpp = {layout.vpp} x pp = {layout.pp} makes {stages} stages of the model's {layers} "
            "layers (num_hidden_layers): say in cluster.trainer.pipeline which of them hold none, or lower vpp"
        ]
    if layout.pp > layers:
        return [f"cluster.trainer.pp = {layout.pp} is more than the model's {layers} layers (num_hidden_layers)"]
    return []


def _recompute_faults(spec: ModelSpec, layout: TrainerLayout) -> list[str]:
    lacks = {
        "moe": spec.moe is None,
        "moe_act": spec.moe is None,
        "shared_experts": spec.moe is None or not spec.moe.num_shared_experts,
    }
    return [
        f"cluster.trainer.recompute.modules: the model has no part {module!r}: leave it out"
        for module in layout.recompute.modules
        if lacks.get(module)
    ]
