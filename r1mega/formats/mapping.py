"""Both directions between Megatron tensors and Hugging Face tensors, row by row of a family's table."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from r1mega.families.spec import Kind, Row


def to_hf(row: Row, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(name, [row.hf_shapes]) of a whole Megatron tensor [row.shape], of its dtype; views where that is possible."""
    parts: Sequence[Tensor] = (tensor,)
    if row.kind is Kind.GATED:
        parts = tensor.split([s[0] for s in row.hf_shapes])
    elif row.kind is Kind.QKV:
        by_group = tensor.unflatten(0, (row.groups, -1)).split([s[0] // row.groups for s in row.hf_shapes], 1)
        parts = [part.flatten(0, 1) for part in by_group]
    yield from zip(row.hf, parts, strict=True)


def to_megatron(row: Row, parts: Sequence[Tensor]) -> Tensor:
    """[row.shape] of Hugging Face tensors [row.hf_shapes], in the order of `row.hf`; `to_hf` bitwise undone."""
    if row.kind is Kind.GATED:
        return torch.cat(list(parts))
    if row.kind is Kind.QKV:
        return torch.cat([part.unflatten(0, (row.groups, -1)) for part in parts], 1).flatten(0, 1)
    return parts[0]
