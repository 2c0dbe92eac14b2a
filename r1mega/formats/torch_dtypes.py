"""Dtypes of safetensors files as torch's, and how messages and config.json name them."""

from collections.abc import Collection

import torch

from r1mega.formats.safetensors import DTYPES

TORCH: dict[str, torch.dtype] = {stored: getattr(torch, name) for stored, (name, _) in DTYPES.items()}
"""The format's name -> torch's dtype."""
STORED: dict[torch.dtype, str] = {dtype: stored for stored, dtype in TORCH.items()}
"""torch's dtype -> the format's name."""


def dtype_name(dtype: torch.dtype) -> str:
    """As config.json and messages have it: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def dtype_names(dtypes: Collection[torch.dtype]) -> str:
    """Several for a message, in alphabetical order."""
    return ", ".join(sorted(map(dtype_name, dtypes)))
