"""Whether a model or a folder has exactly the tensors of a family's table: names and shapes alone, no torch."""

from collections.abc import Mapping, Sequence

from r1mega.errors import WeightMappingError
from r1mega.families.spec import Kind, Row
from r1mega.layout.shards import Axis, axis, part_shape


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
