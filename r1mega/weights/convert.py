"""Both directions between Megatron tensors and Hugging Face tensors, row by row of a family's table."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from r1mega.errors import WeightMappingError
from r1mega.families.spec import Kind, Row
from r1mega.layout.shards import Axis, axis, part_shape


def to_hf(row: Row, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The Hugging Face tensors of one whole Megatron tensor; views where the layout allows it."""
    parts = tensor.split([s[0] for s in row.hf_shapes]) if row.kind is Kind.GATED else (tensor,)
    yield from zip(row.hf, parts, strict=True)


def to_megatron(row: Row, parts: Sequence[Tensor]) -> Tensor:
    """The Megatron tensor of a row's Hugging Face tensors, in the order of `row.hf`."""
    return torch.cat(list(parts)) if row.kind is Kind.GATED else parts[0]


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
    _raise(faults, "the model and its family's table disagree")


def check_files(table: Sequence[Row], shapes: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    """Whether a set of Hugging Face tensors, which may repeat, is exactly what the table needs.

    Copies in MTP layers may be left out, all other rows may not.

    Raises:
        WeightMappingError: lists every unmapped, missing, duplicate and mis-shaped tensor.
    """
    wanted = {name: shape for row in table for name, shape in zip(row.hf, row.hf_shapes, strict=True)}
    optional = {name for row in table if row.kind is Kind.COPY for name in row.hf}
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
    _raise(faults, "the folder and the model do not map one to one")


def fill(table: Sequence[Row], read: Callable[[str], Tensor | None], state: Mapping[str, Tensor]) -> None:
    """Copy Hugging Face tensors into this rank's tensors of a Megatron model.

    Args:
        read: a tensor by its Hugging Face name, None for an absent copy.
        state: the live Megatron tensors that the rank holds, written in place and cast to their dtype.

    Raises:
        WeightMappingError: a repeated embedding or head differs from its original.
    """
    from r1mega.trainer.initial import local_part  # it imports megatron, which the rest of this file does without

    faults = []
    with torch.no_grad():
        # Originals first: copies are compared with them.
        for row in sorted((r for r in table if r.megatron in state), key=lambda r: r.kind is Kind.COPY):
            parts = [part for name in row.hf if (part := read(name)) is not None]
            if not parts:
                continue
            target, whole = state[row.megatron], to_megatron(row, parts)
            if row.kind is not Kind.COPY:
                target.copy_(local_part(row, whole))
            elif not torch.equal(local_part(row, whole).to(target), target):
                faults.append(f"{row.hf[0]}: differs from {row.megatron}, which it should repeat")
    _raise(faults, "the folder contradicts itself")


def _raise(faults: list[str], summary: str) -> None:
    if faults:
        raise WeightMappingError(f"{summary} ({len(faults)} faults):\n  " + "\n  ".join(faults))
