"""Which tensors a folder of FP8 blocks stores as codes and scales, under which names and of which shapes; no torch.

Quantised are the projections of attention and MLPs, experts' included; router, norms, embedding, output head and an
MTP layer's eh_proj are not. That makes 45,808 scales in DeepSeek-V3, which with its 46,183 tensors are the 91,991
of the published index.
"""

import math
from collections.abc import Mapping
from typing import Any

from r1mega.families.quantization import FP8, POWERS
from r1mega.families.spec import Kind, Row, Shape

BLOCK = 128
"""Rows and columns that have one scale."""
SUFFIX = "_scale_inv"
"""Behind the name of a weight: the name of its scales."""
CODES = "F8_E4M3"
"""In safetensors' words, what weights are stored as."""
READ_SCALES = ("F32", "BF16")
"""What scales may be stored as; they are written as the first."""
FORMS: Mapping[str, Mapping[str, Any]] = {"fp8-block": FP8, "fp8-block-ue8m0": {**FP8, "scale_fmt": POWERS}}
"""Form in which weights are written -> quantization_config of the folder: DeepSeek-V3's, and DeepSeek-V3.1's."""


def quantised(row: Row, name: str) -> bool:
    """Whether a row's Hugging Face tensor is stored as codes and scales."""
    if row.kind not in (Kind.COPY, Kind.BUFFER) and len(row.shape) == 2 and name.endswith(".weight"):
        module = name.split(".")[-2]
        return (".self_attn." in name or ".mlp." in name) and (module.endswith("_proj") or "_proj_" in module)
    return False


def scale_shape(shape: Shape) -> Shape:
    """Shape of the scales of a weight."""
    return tuple(math.ceil(n / BLOCK) for n in shape)
