"""Which families there are, and how a config.json finds its own."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from r1mega.config.model import Model
from r1mega.errors import ConfigError
from r1mega.families import deepseek_v3, llama, qwen2, qwen3
from r1mega.families.fields import read_json
from r1mega.families.passed_over import LENGTHS
from r1mega.families.score_head import read_with_head
from r1mega.families.spec import Head, ModelSpec

FAMILIES: Mapping[str, Callable[[Mapping[str, Any]], ModelSpec]] = {
    "deepseek_v3": deepseek_v3.read,
    "llama": llama.read,
    "qwen2": qwen2.read,
    "qwen3": qwen3.read,
}
"""model_type of a config.json -> the family's reader."""


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


def read_stage_model(model: Model, head: Head = "lm") -> ModelSpec:
    """The model that a stage starts from: as its folder says where that is there, otherwise as its config does.

    Args:
        head: what the stage trains; a score head may also begin on a language model, which has none yet.

    Raises:
        ConfigError: as `read_model`, or as `read_language_model` for a stage of those; or both are there and describe
            different models: lists the fields that differ.
    """
    read = read_language_model if head == "lm" else read_model
    stated = read(model.config) if model.config is not None else None
    if stated is not None and (model.path is None or not model.path.exists()):
        return stated
    assert model.path is not None, "a recipe has one of the two"
    found = read(model.path)
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


def read_language_model(path: Path) -> ModelSpec:
    """`read_model` for all that trains, samples from or asks a language model.

    Raises:
        ConfigError: as `read_model`; or it is a reward model.
    """
    spec = read_model(path)
    if spec.head == "score":
        raise ConfigError(
            f"{path}: a reward model ({spec.hf['architectures'][0]}), which gives scores and predicts no tokens; "
            "give the folder of a language model here. A reward model belongs in a table of [rewards], or in the "
            "[model] of stage = 'reward_model'"
        )
    return spec


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
        return read_with_head(hf, FAMILIES[family])
    except ConfigError as e:
        raise ConfigError(f"{file}: {e}") from e
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        raise ConfigError(f"{file}: a field has a value of another kind than expected: {e}") from e
