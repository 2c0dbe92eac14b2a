"""`quantization_config` of a config.json: which quantised folders are read, and what is said of the others.

It says how weights are stored and nothing of what the model computes, so it is left out of `ModelSpec.hf`.
"""

from collections.abc import Mapping
from typing import Any

from r1mega.families.passed_over import among

FP8: Mapping[str, Any] = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
"""As DeepSeek-V3 is published: matrices in FP8, with a scale for each block, in fp32. Qwen3's have scales in bf16."""

POWERS = "ue8m0"
"""`scale_fmt` of DeepSeek-V3.1, whose scales are powers of two. Stored in fp32, they are multiplied out as others."""

READ: Mapping[str, tuple[Any, ...]] = {
    **{field: (value,) for field, value in FP8.items()},
    "scale_fmt": (POWERS, "float", None),
    "act_per_tensor": (False,),
    "kv_cache_scheme": (None,),
    "store_dtype": (None,),
    "weight_per_tensor": (False,),
}
"""Field -> the values with which a folder is read."""

WHATEVER = ("dequantize", "ignored_layers", "modules_to_convert", "modules_to_not_convert")
"""Which matrices are quantised, each tensor's dtype says; and here they are all multiplied out."""

OTHER_FORMS = ("compression_config", "quantization", "quantize_config")
"""Keys under which other tools say that weights are quantised, in forms that are not read."""

REMEDY = "fetch the model's bf16 weights, or have the tool that quantised it write them"


def other_forms(hf: Mapping[str, Any]) -> list[str]:
    """What a config.json says of weights quantised in another form than `quantization_config`'s."""
    found = [name for name in OTHER_FORMS if hf.get(name) is not None]
    return [f"{name} = {hf[name]!r}: weights in this form are not read; {REMEDY}" for name in found]


def quantization_faults(config: Any) -> list[str]:
    """What a quantization_config says that is not read, each with what to do."""
    if not isinstance(config, dict):
        return [f"quantization_config = {config!r}: expected an object; take it out if no weight is quantised"]
    faults = [
        f"quantization_config.{field} = {config[field]!r}: only {' or '.join(map(repr, values))} is read"
        for field, values in READ.items()
        if field in config and not among(config[field], values)
    ]
    faults += [
        f"quantization_config.{field} is missing; only {dict(FP8)} is read"
        for field in ("quant_method", "weight_block_size")
        if field not in config
    ]
    others = sorted(config.keys() - READ.keys() - set(WHATEVER))
    faults += [f"quantization_config.{field} = {config[field]!r}: not known here" for field in others]
    return [*faults, REMEDY] if faults else []
