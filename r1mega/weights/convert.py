"""Both directions between Megatron tensors and Hugging Face tensors, row by row of a family's table."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from r1mega.errors import WeightMappingError
from r1mega.families.spec import Kind, Row


def to_hf(row: Row, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The Hugging Face tensors of one whole Megatron tensor; views where the layout allows it."""
    parts = tensor.split([s[0] for s in row.hf_shapes]) if row.kind is Kind.GATED else (tensor,)
    yield from zip(row.hf, parts, strict=True)


def to_megatron(row: Row, parts: Sequence[Tensor]) -> Tensor:
    """The Megatron tensor of a row's Hugging Face tensors, in the order of `row.hf`."""
    return torch.cat(list(parts)) if row.kind is Kind.GATED else parts[0]


def check_state(table: Sequence[Row], state: Mapping[str, Tensor]) -> None:
    """Whether a Megatron model has exactly the tensors of the table.

    Raises:
        WeightMappingError: lists every tensor that has no row, no tensor, or another shape.
    """
    rows = {r.megatron: r for r in table if r.kind is not Kind.COPY}
    faults = [f"{name}: in the model, not in the table" for name in state if name not in rows]
    faults += [f"{name}: in the table, not in the model" for name in rows if name not in state]
    faults += [
        f"{name}: {tuple(state[name].shape)} in the model, {row.shape} in the table"
        for name, row in rows.items()
        if name in state and tuple(state[name].shape) != row.shape
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
    """Copy Hugging Face tensors into a Megatron model's tensors.

    Args:
        read: a tensor by its Hugging Face name, None for an absent copy.
        state: the live Megatron tensors, written in place and cast to their dtype.

    Raises:
        WeightMappingError: a repeated embedding or head differs from its original.
    """
    faults = []
    with torch.no_grad():
        # Originals first: copies are compared with them.
        for row in sorted(table, key=lambda r: r.kind is Kind.COPY):
            parts = [read(name) for name in row.hf]
            if row.kind is Kind.COPY:
                target = state[row.megatron]
                if parts[0] is not None and not torch.equal(parts[0].to(target), target):
                    faults.append(f"{row.hf[0]}: differs from {row.megatron}, which it should repeat")
            else:
                state[row.megatron].copy_(to_megatron(row, [p for p in parts if p is not None]))
    _raise(faults, "the folder contradicts itself")


def _raise(faults: list[str], summary: str) -> None:
    if faults:
        raise WeightMappingError(f"{summary} ({len(faults)} faults):\n  " + "\n  ".join(faults))
