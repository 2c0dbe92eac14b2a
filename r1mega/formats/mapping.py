"""Both directions between Megatron tensors and Hugging Face tensors, row by row of a family's table."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from r1mega.errors import WeightMappingError
from r1mega.families.spec import Kind, Row
from r1mega.layout.shards import Axis, axis, part_shape


def to_hf(row: Row, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The Hugging Face tensors of one whole Megatron tensor; views where the layout allows it."""
    parts: Sequence[Tensor] = (tensor,)
    if row.kind is Kind.GATED:
        parts = tensor.split([s[0] for s in row.hf_shapes])
    elif row.kind is Kind.QKV:
        by_group = tensor.unflatten(0, (row.groups, -1)).split([s[0] // row.groups for s in row.hf_shapes], 1)
        parts = [part.flatten(0, 1) for part in by_group]
    yield from zip(row.hf, parts, strict=True)


def to_megatron(row: Row, parts: Sequence[Tensor]) -> Tensor:
    """The whole Megatron tensor of a row's Hugging Face tensors, in the order of `row.hf`; `to_hf` bitwise undone."""
    if row.kind is Kind.GATED:
        return torch.cat(list(parts))
    if row.kind is Kind.QKV:
        return torch.cat([part.unflatten(0, (row.groups, -1)) for part in parts], 1).flatten(0, 1)
    return parts[0]


def check_state(table: Sequence[Row], shapes: Mapping[str, Sequence[int]], sizes: Mapping[Axis | None, int]) -> None:
    """Whether a Megatron model has exactly the tensors of the table.

    Args:
        shapes: of a rank's part of each tensor, over all ranks.
        sizes: number of ranks on each axis.

    Raises:
        WeightMappingError: lists every tensor that has no row, no tensor, or another shape.
    """
    rows = {r.megatron: r for r in table if r.kind is not Kind.COPY}
    faults = [f"{name}: in the model, not in the table" for name in shapes if name not in rows]
    faults += [f"{name}: in the table, not in the model" for name in rows if name not in shapes]
    faults += [
        f"{name}: {tuple(shapes[name])} in the model, {part_shape(row, sizes[axis(row)])} by the table"
        for name, row in rows.items()
        if name in shapes and tuple(shapes[name]) != part_shape(row, sizes[axis(row)])
    ]
    raise_faults(faults, "the model and its family's table disagree")


def check_files(table: Sequence[Row], shapes: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    """Whether a set of Hugging Face tensors, which may repeat, is exactly what the table needs.

    Copies, such as those in MTP layers, may be left out, other rows may not. A tied head may repeat the embedding.

    Raises:
        WeightMappingError: lists every unmapped, missing, duplicate and mis-shaped tensor.
    """
    wanted = {name: shape for row in table for name, shape in zip(row.hf, row.hf_shapes, strict=True)}
    wanted |= {name: row.hf_shapes[0] for row in table for name in row.also}
    optional = {name for row in table for name in (*row.also, *(row.hf if row.kind is Kind.COPY else ()))}
    seen: dict[str, int] = {}
    faults = []
    for name, shape in shapes:
        seen[name] = seen.get(name, 0) + 1
        if name not in wanted:
            faults.append(f"{name}: unmapped, no row of the table has it")
        elif shape != wanted[name]:
            faults.append(f"{name}: shape {shape}, the table says {wanted[name]}")
    faults += [f"{name}: duplicate, found {n} times" for name, n in seen.items() if n > 1]
    faults += [f"{name}: missing" for name in wanted if name not in seen and name not in optional]
    raise_faults(faults, "the folder and the model do not map one to one")


def raise_faults(faults: list[str], summary: str) -> None:
    """Raise one WeightMappingError that lists them all, if there are any."""
    if faults:
        raise WeightMappingError(f"{summary} ({len(faults)} faults):\n  " + "\n  ".join(faults))
