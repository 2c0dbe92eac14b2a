"""Reading config.json strictly: what families share of it."""

import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from r1mega.errors import ConfigError, R1MegaError
from r1mega.families.passed_over import LENGTHS, MEANT, among, length_faults, passed_over
from r1mega.families.quantization import OTHER_FORMS, other_forms, quantization_faults
from r1mega.families.spec import Llama3Scaling, Rope, Yarn

ROPE = ("rope_theta", "rope_parameters", "rope_scaling")
"""Fields that `read_rope` reads."""


NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention_factor": (None,),
    "finetuned": (True, False),
    "partial_rotary_factor": (1, 1.0, None),
    "truncate": (True,),
}
"""Rope parameters, and the values with which they change nothing."""


def read_json(file: Path, error: type[R1MegaError], remedy: str = "") -> dict[str, Any]:
    """The object that a JSON file of a model folder holds.

    Args:
        error: what is raised where the file cannot be read, is not JSON, or holds something else.
        remedy: for a file that cannot be read.
    """
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise error(f"{file}: cannot be read ({e.strerror}){remedy}") from e
    except ValueError as e:
        raise error(f"{file}: not JSON ({e})") from e
    if not isinstance(fields, dict):
        raise error(f"{file}: expected a JSON object, found {type(fields).__name__}")
    return fields


def check_fields(
    hf: Mapping[str, Any], *, fixed: Mapping[str, tuple[Any, ...]], sizes: Collection[str], known: Collection[str]
) -> None:
    """Refuse a config.json with fields that are missing, or that say something not understood.

    What says nothing of the model is passed over by name (`families.passed_over`).

    Args:
        fixed: fields that change the computation, and the values of them that are implemented; absent is fine.
        sizes: required positive integers.
        known: every other field that may stand there.

    Raises:
        ConfigError: names every such field, and what to do.
    """
    own = {*fixed, *sizes, *known, *ROPE}
    allowed = {**{name: values for name, values in MEANT.items() if name not in own}, **fixed}
    faults = [
        f"{name} = {hf[name]!r}: only {' or '.join(map(repr, values))} is implemented; a model that needs another "
        "value cannot be read"
        for name, values in allowed.items()
        if name in hf and not among(hf[name], values)
    ]
    every = {*own, *allowed, *LENGTHS, *OTHER_FORMS}
    if unknown := [f"{name} = {hf[name]!r}" for name in hf if name not in every and not passed_over(name)]:
        faults.append(f"{', '.join(unknown)}: {UNKNOWN}")
    faults += [f"{name} = {hf.get(name)!r}: a positive integer is needed" for name in sizes if not is_size(hf, name)]
    faults += length_faults(hf)
    faults += other_forms(hf)
    if hf.get("quantization_config") is not None:
        faults += quantization_faults(hf["quantization_config"])
    if faults:
        raise ConfigError("; ".join(faults))


UNKNOWN = (
    "not known here: take out of config.json what changes nothing that the model computes, such as a mark that "
    "another trainer left; a model that needs one of them cannot be read"
)


def is_size(hf: Mapping[str, Any], name: str) -> bool:
    """Whether the field is a positive integer."""
    return isinstance(hf.get(name), int) and not isinstance(hf[name], bool) and hf[name] > 0


def positive(hf: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A positive number.

    Raises:
        ConfigError: it is missing without a default, or something else.
    """
    value = hf.get(name, default)
    if value is None:
        raise ConfigError(f"{name} is missing in {dict(hf)}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{name} = {value!r}: must be a positive number")
    return value


def flag(hf: Mapping[str, Any], name: str, default: bool) -> bool:
    """True or false.

    Raises:
        ConfigError: something else.
    """
    value = hf.get(name, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{name} = {value!r}: must be true or false")
    return value


def token_ids(hf: Mapping[str, Any], bos: int | None, eos: int | None) -> dict[str, Any]:
    """`bos`, `eos` and `pad` of a spec; where there is no padding token, the first end token serves.

    Args:
        bos, eos: what transformers takes where the file says nothing.

    Raises:
        ConfigError: there is no end token, or one of them is no id of the vocabulary.
    """
    end = hf.get("eos_token_id", eos)
    end = tuple(end) if isinstance(end, list) else end
    ends = end if isinstance(end, tuple) else (end,)
    if not ends or not all(_is_id(hf, i) for i in ends):
        raise ConfigError(
            f"eos_token_id = {hf.get('eos_token_id')!r}: {_IDS.format(hf['vocab_size'])}, or a list of some"
        )
    start, pad = hf.get("bos_token_id", bos), hf.get("pad_token_id")
    for name, token in (("bos_token_id", start), ("pad_token_id", pad)):
        if token is not None and not _is_id(hf, token):
            raise ConfigError(f"{name} = {token!r}: {_IDS.format(hf['vocab_size'])}, or null")
    return {"bos": start, "eos": end, "pad": ends[0] if pad is None else pad}


_IDS = "a token id is needed, below vocab_size = {}"


def _is_id(hf: Mapping[str, Any], token: Any) -> bool:
    return type(token) is int and 0 <= token < hf["vocab_size"]


def read_rope(hf: Mapping[str, Any], types: Mapping[str, Callable[[dict[str, Any]], Any]]) -> Rope:
    """Rotary positions, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`.

    Args:
        types: rope types besides "default" that the family has, and what makes a scaling of their fields, taking
            out those that it knows.

    Raises:
        ConfigError: another type, a missing or unknown field, or two fields that contradict each other.
    """
    new, old = hf.get("rope_parameters"), hf.get("rope_scaling")
    for name, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and not isinstance(value, dict):
            raise ConfigError(f"{name} = {value!r}: an object is needed, or null for positions as they are")
    if new and old and {**new, "rope_theta": None} != {**old, "rope_theta": None}:
        raise ConfigError(f"rope_parameters {new} and rope_scaling {old} contradict each other")
    found = {**(old or {}), **(new or {})}
    rope = dict(found)
    named = {kind for kind in (rope.pop("rope_type", None), rope.pop("type", None)) if kind}
    stated = [theta for theta in (rope.pop("rope_theta", None), hf.get("rope_theta")) if theta is not None]
    thetas = {float(positive({"rope_theta": theta}, "rope_theta")) for theta in stated}
    if len(named) > 1 or len(thetas) > 1:
        raise ConfigError(
            f"rope_theta = {hf.get('rope_theta')!r} with rope parameters {found}: two values of one field"
        )
    kind = named.pop() if named else "default"
    theta = positive({"rope_theta": thetas.pop()} if thetas else {}, "rope_theta", 10000.0)
    if kind != "default" and kind not in types:
        raise ConfigError(f"rope type {kind!r}: only {' and '.join(['default', *types])} are implemented")
    scaling = types[kind](rope) if kind != "default" else None
    rope = {name: value for name, value in rope.items() if not among(value, NEUTRAL.get(name, ()))}
    if rope:
        raise ConfigError(f"rope parameters {rope} of type {kind!r}: {UNKNOWN}")
    return Rope(theta, scaling)


def llama3(rope: dict[str, Any]) -> Llama3Scaling:
    """The scaling of rope type llama3; takes its fields out of `rope`."""
    low, high = (positive(rope, name) for name in ("low_freq_factor", "high_freq_factor"))
    factor, length = _extension(rope)
    for name in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
        del rope[name]
    if low >= high:
        raise ConfigError(f"low_freq_factor = {low} must be below high_freq_factor = {high}")
    return Llama3Scaling(factor, float(low), float(high), length)


def _extension(rope: Mapping[str, Any]) -> tuple[float, int]:
    """(factor, original_max_position_embeddings) of a scaling, which extends and never shortens."""
    factor = positive(rope, "factor")
    if factor < 1:
        raise ConfigError(f"factor = {factor!r}: must be 1 or more")
    name = "original_max_position_embeddings"
    if not is_size(rope, name):
        raise ConfigError(f"{name} = {rope.get(name)!r}: a positive integer is needed")
    return float(factor), rope[name]


def yarn(rope: dict[str, Any]) -> Yarn:
    """The scaling of rope type yarn without its mscale fields; takes its fields out of `rope`."""
    factor, length = _extension(rope)
    fast, slow = (float(positive(rope, name, default)) for name, default in (("beta_fast", 32), ("beta_slow", 1)))
    if fast < slow:
        raise ConfigError(f"beta_fast = {fast:g} must not be below beta_slow = {slow:g}")
    for name in ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow"):
        rope.pop(name, None)
    return Yarn(factor, length, fast, slow, mscale=1.0, mscale_all_dim=0.0)
