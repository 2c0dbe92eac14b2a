"""Hugging Face tensors into a rank's tensors of a Megatron model, by the rows of its family's table."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from r1mega.families.spec import Kind, Row
from r1mega.formats.mapping import to_megatron
from r1mega.formats.one_to_one import raise_faults
from r1mega.trainer.network.initial import local_part


def fill(
    table: Sequence[Row],
    read: Callable[[str], Tensor | None],
    state: Mapping[str, Tensor],
    done: Callable[[], None] = lambda: None,
) -> None:
    """Copy Hugging Face tensors into this rank's tensors of a Megatron model.

    Args:
        read: a tensor [its shape in the table] by its Hugging Face name, None for an absent copy (`check_files` says
            what may be absent).
        state: the live Megatron tensors that the rank holds, written in place and cast to their dtype.
        done: called after each row, whose tensors are needed no more.

    Raises:
        WeightMappingError: a repeated embedding or head differs from its original.
    """
    faults = []
    with torch.no_grad():
        # Originals first: copies are compared with them.
        for row in sorted((r for r in table if r.megatron in state), key=lambda r: r.kind is Kind.COPY):
            target = state[row.megatron]
            if row.kind is not Kind.COPY:
                parts = [part for name in row.hf if (part := read(name)) is not None]
                target.copy_(local_part(row, to_megatron(row, parts)))
            for name in row.hf if row.kind is Kind.COPY else row.also:
                copy = read(name)
                if copy is not None and not torch.equal(local_part(row, copy).to(target), target):
                    faults.append(f"{name}: differs from {row.megatron}, which it should repeat")
            done()
    raise_faults(faults, "the folder contradicts itself")
