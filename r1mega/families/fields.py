"""Reading config.json strictly: what families share of it."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from r1mega.errors import ConfigError
from r1mega.families.spec import Llama3Scaling, Rope, Yarn

# fmt: off
IGNORED = (
    "architectures", "auto_map", "chunk_size_feed_forward", "dtype", "id2label", "is_encoder_decoder", "label2id",
    "model_type", "output_attentions", "output_hidden_states", "problem_type", "return_dict", "sep_token_id",
    "torch_dtype", "transformers_version", "unk_token_id", "use_cache", "_name_or_path",
)
# fmt: on
"""Fields that do not change what any family computes."""

ROPE = ("rope_theta", "rope_parameters", "rope_scaling")
"""Fields that `read_rope` reads."""


def check_fields(
    hf: Mapping[str, Any], *, fixed: Mapping[str, tuple[Any, ...]], sizes: Collection[str], known: Collection[str]
) -> None:
    """Refuse a config.json with fields that are missing, or that say something not understood.

    Args:
        fixed: fields that change the computation, and the values of them that are implemented; absent is fine.
        sizes: required positive integers.
        known: every other field that may stand there.

    Raises:
        ConfigError: names every such field.
    """
    faults = [
        f"{name} = {hf[name]!r}: only {' or '.join(map(repr, values))} is implemented"
        for name, values in fixed.items()
        if name in hf and not any(hf[name] == v and type(hf[name]) is type(v) for v in values)
    ]
    every = {*fixed, *sizes, *known, *IGNORED, *ROPE}
    faults += [f"{name} = {hf[name]!r}: unknown field" for name in hf if name not in every]
    faults += [f"{name} = {hf.get(name)!r}: a positive integer is needed" for name in sizes if not is_size(hf, name)]
    if faults:
        raise ConfigError("; ".join(faults))


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
        ConfigError: there is no end token.
    """
    end = hf.get("eos_token_id", eos)
    end = tuple(end) if isinstance(end, list) else end
    ends = end if isinstance(end, tuple) else (end,)
    if not ends or not all(type(i) is int for i in ends):
        raise ConfigError(f"eos_token_id = {hf.get('eos_token_id')!r}: a token id, or a list of some, is needed")
    pad = hf.get("pad_token_id")
    return {"bos": hf.get("bos_token_id", bos), "eos": end, "pad": ends[0] if pad is None else pad}


def read_rope(hf: Mapping[str, Any], types: Mapping[str, Callable[[dict[str, Any]], Any]]) -> Rope:
    """Rotary positions, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`.

    Args:
        types: rope types besides "default" that the family has, and what makes a scaling of their fields, taking
            out those that it knows.

    Raises:
        ConfigError: another type, a missing or unknown field, or two fields that contradict each other.
    """
    new, old = hf.get("rope_parameters"), hf.get("rope_scaling")
    if new and old and {**new, "rope_theta": None} != {**old, "rope_theta": None}:
        raise ConfigError(f"rope_parameters {new} and rope_scaling {old} contradict each other")
    found = {**(old or {}), **(new or {})}
    rope = dict(found)
    named = {kind for kind in (rope.pop("rope_type", None), rope.pop("type", None)) if kind}
    thetas = {float(theta) for theta in (rope.pop("rope_theta", None), hf.get("rope_theta")) if theta is not None}
    if len(named) > 1 or len(thetas) > 1:
        raise ConfigError(
            f"rope_theta = {hf.get('rope_theta')!r} with rope parameters {found}: two values of one field"
        )
    kind = named.pop() if named else "default"
    theta = positive({"rope_theta": thetas.pop()} if thetas else {}, "rope_theta", 10000.0)
    if kind != "default" and kind not in types:
        raise ConfigError(f"rope type {kind!r}: only {' and '.join(['default', *types])} are implemented")
    scaling = types[kind](rope) if kind != "default" else None
    if rope:
        raise ConfigError(f"rope parameters {sorted(rope)}: unknown for type {kind!r}")
    return Rope(theta, scaling)


def llama3(rope: dict[str, Any]) -> Llama3Scaling:
    """The scaling of rope type llama3; takes its fields out of `rope`."""
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, length = (positive(rope, name) for name in names)
    for name in names:
        del rope[name]
    if low >= high:
        raise ConfigError(f"low_freq_factor = {low} must be below high_freq_factor = {high}")
    return Llama3Scaling(float(factor), float(low), float(high), int(length))


def yarn(rope: dict[str, Any]) -> Yarn:
    """The scaling of rope type yarn without its mscale fields; takes its fields out of `rope`."""
    numbers = {name: positive(rope, name) for name in ("factor", "original_max_position_embeddings")}
    numbers |= {name: positive(rope, name, default) for name, default in (("beta_fast", 32), ("beta_slow", 1))}
    for name in numbers:
        rope.pop(name, None)
    length = int(numbers.pop("original_max_position_embeddings"))
    return Yarn(
        factor=float(numbers["factor"]),
        original_max_position_embeddings=length,
        beta_fast=float(numbers["beta_fast"]),
        beta_slow=float(numbers["beta_slow"]),
        mscale=1.0,
        mscale_all_dim=0.0,
    )
