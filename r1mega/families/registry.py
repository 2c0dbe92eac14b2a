"""Which families there are, and how a config.json finds its own."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from r1mega.config import pipeline_stages
from r1mega.config.cluster import TrainerLayout
from r1mega.config.schema import Model
from r1mega.config.training import Batch
from r1mega.errors import ConfigError
from r1mega.families import deepseek_v3, llama, qwen2, qwen3
from r1mega.families.fields import read_json
from r1mega.families.passed_over import LENGTHS
from r1mega.families.spec import Grouped, ModelSpec

FAMILIES: Mapping[str, Callable[[Mapping[str, Any]], ModelSpec]] = {
    "deepseek_v3": deepseek_v3.read,
    "llama": llama.read,
    "qwen2": qwen2.read,
    "qwen3": qwen3.read,
}
"""model_type of a config.json -> the family's reader."""


def check_lengths(longest: int, spec: ModelSpec, batch: Batch, setting: str = "sampling.max_new_tokens") -> None:
    """Refuse sequences that the model or a chunk cannot hold, before anything is started.

    Args:
        longest: tokens of the longest sequence that can come up; in RL the longest prompt + max_new_tokens.
        setting: what bounds it.

    Raises:
        ConfigError: naming the limit and the setting to change.
    """
    if longest > spec.max_positions:
        raise ConfigError(
            f"sequences of up to {longest} tokens exceed the model's max_position_embeddings = {spec.max_positions}: "
            f"lower {setting} or choose a model with more positions"
        )
    if longest > batch.chunk_tokens:
        raise ConfigError(
            f"sequences of up to {longest} tokens exceed batch.chunk_tokens = {batch.chunk_tokens}: raise it to at "
            f"least {longest} (it never changes the result)"
        )


FP8_ROWS = {"blockwise": 128, "tensorwise": 16, "mxfp8": 32}
"""Tokens of which a rank must have a multiple: the tile that a recipe scales, or what its kernels ask for."""


def check_layout(spec: ModelSpec, layout: TrainerLayout, batch: Batch) -> None:
    """Refuse a layout that cannot hold the model.

    Raises:
        ConfigError: lists every size that its ranks do not divide, and what else it cannot hold.
    """
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
    if faults:
        raise ConfigError("\n  ".join([f"the layout does not fit the model: {len(faults)} fault(s)", *faults]))


def _pipeline_faults(spec: ModelSpec, layout: TrainerLayout) -> list[str]:
    layers, stages = spec.num_layers, layout.pp * layout.vpp
    if layout.pipeline:
        held = pipeline_stages.expand(layout.pipeline)
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
    if layout.vpp > 1 and layers % stages:
        return [
            f"cluster.trainer.vpp = {layout.vpp} x pp = {layout.pp} does not divide the model's {layers} layers "
            "(num_hidden_layers): say in cluster.trainer.pipeline what each stage holds"
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


def check_tokenizer(spec: ModelSpec, tokenizer: Any, folder: Path) -> None:
    """Refuse a tokenizer that is not the model's.

    Raises:
        ConfigError: it has more tokens than the model. (Where their ends differ, `data.special_tokens` decides.)
    """
    if len(tokenizer) > spec.vocab_size:
        raise ConfigError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model {spec.vocab_size}")


def with_positions(spec: ModelSpec, max_positions: int) -> ModelSpec:
    """The same model with a longer context and its rotary positions as they are; 0 leaves it.

    Raises:
        ConfigError: it has as many positions already.
    """
    if not max_positions or spec.hf.get("max_position_embeddings") == max_positions:
        return spec
    if max_positions < spec.max_positions:
        raise ConfigError(
            f"max_positions = {max_positions}: the model has {spec.max_positions} already; leave it out"
        )
    hf = {**spec.hf, **{name: max_positions for name in ("max_position_embeddings", *LENGTHS) if spec.hf.get(name)}}
    return dataclasses.replace(spec, max_positions=max_positions, hf=hf)


def read_stage_model(model: Model) -> ModelSpec:
    """The model that a stage starts from: as its folder says where that is there, otherwise as its config does.

    Raises:
        ConfigError: as `read_model`; or both are there and describe different models: lists the fields that differ.
    """
    stated = read_model(model.config) if model.config is not None else None
    if stated is not None and (model.path is None or not model.path.exists()):
        return stated
    assert model.path is not None, "config.checks demands one of the two"
    found = read_model(model.path)
    if stated is not None and (differing := differences(stated, found)):
        raise ConfigError(
            "\n  ".join(
                [
                    f"model.path = {model.path} is not the model that model.config = {model.config} describes: "
                    f"{len(differing)} field(s) differ; give the folder's own config.json, or another folder",
                    *differing,
                ]
            )
        )
    return found


def differences(stated: ModelSpec, found: ModelSpec) -> list[str]:
    """One line for each field in which two models differ; how their files are written does not count."""
    names = [f.name for f in dataclasses.fields(ModelSpec) if f.name not in ("hf", "rows")]
    pairs = [(name, getattr(stated, name), getattr(found, name)) for name in names]
    return [f"{name}: config has {ours!r}, the folder {theirs!r}" for name, ours, theirs in pairs if ours != theirs]


def read_model(path: Path) -> ModelSpec:
    """The model described by a Hugging Face config.json.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        ConfigError: no such file, no JSON object, an unknown model_type, or a field that changes the computation
            in a way this system does not know.
    """
    file = path / "config.json" if path.is_dir() else path
    return model_of(read_json(file, ConfigError, "; give a config.json or its folder"), file)


def model_of(hf: Mapping[str, Any], file: Path) -> ModelSpec:
    """The model of a config.json's fields.

    Args:
        file: where they were found, for messages.

    Raises:
        ConfigError: as `read_model`.
    """
    if hf.get("model_type") is None:
        raise ConfigError(
            f"{file}: no model_type, so not the config.json of a Hugging Face model; give the folder of one, such as "
            "a run's hf or checkpoints/step_N"
        )
    family = str(hf["model_type"])
    if family not in FAMILIES:
        raise ConfigError(f"{file}: model_type {family!r} is not supported; known: {', '.join(FAMILIES)}")
    try:
        return FAMILIES[family](hf)
    except ConfigError as e:
        raise ConfigError(f"{file}: {e}") from e
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        raise ConfigError(f"{file}: a field has a value of another kind than expected: {e}") from e
