"""The slices of a model's tensors under tensor and expert-tensor parallelism."""

from typing import Literal

from r1mega.families.spec import Kind, Row, Shard

Axis = Literal["tp", "etp"]
"""The ranks that divide a tensor: all tensor-parallel ones, or those that share an expert."""

_DIVIDED: dict[Shard, tuple[Axis, int]] = {
    Shard.ROWS: ("tp", 0),
    Shard.COLUMNS: ("tp", 1),
    Shard.EXPERT_ROWS: ("etp", 0),
    Shard.EXPERT_COLUMNS: ("etp", 1),
}


def axis(row: Row) -> Axis | None:
    """Which ranks hold different parts of the tensor; None where each has the whole."""
    found = _DIVIDED.get(row.shard)
    return found[0] if found else None


def pieces(row: Row, part: int, num_parts: int) -> tuple[int, list[tuple[int, int]]]:
    """What one rank of the tensor's axis holds of it.

    Args:
        row: the tensor.
        part, num_parts: the rank's place on the axis and the axis's size, which divides the dim.

    Returns:
        (dim, ranges): the rank's tensor is the whole one's [start, stop) ranges along dim, one after the other.
    """
    if row.shard not in _DIVIDED or num_parts == 1:
        return 0, [(0, row.shape[0])]
    dim = _DIVIDED[row.shard][1]
    sizes = [shape[0] for shape in row.hf_shapes] if row.kind is Kind.GATED else [row.shape[dim]]
    ranges: list[tuple[int, int]] = []
    start = 0
    for size in sizes:
        share = size // num_parts
        ranges.append((start + part * share, start + (part + 1) * share))
        start += size
    return dim, ranges


def part_shape(row: Row, num_parts: int) -> tuple[int, ...]:
    """Shape of what a rank holds of the tensor."""
    dim, ranges = pieces(row, 0, num_parts)
    shape = list(row.shape)
    shape[dim] = sum(stop - start for start, stop in ranges)
    return tuple(shape)
