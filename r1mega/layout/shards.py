"""The slices of a model's tensors under tensor and expert-tensor parallelism."""

from typing import Literal

from r1mega.families.spec import Kind, Row, Shard

Axis = Literal["tp", "etp"]
"""The ranks that divide a tensor: all tensor-parallel ones, or those that share an expert."""

_DIVIDED: dict[Shard, tuple[Axis, int]] = {
    Shard.ROWS: ("tp", 0),
    Shard.VOCAB: ("tp", 0),
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
        part, num_parts: the rank's place on the axis and the axis's size, which divides the dim (a fused row's
            key-value heads) unless it is the vocabulary's.

    Returns:
        (dim, ranges): the rank's tensor is the whole one's [start, stop) ranges along dim, one after the other, and
        then the zero rows of the vocabulary's padding (`padding`), if it has any.
    """
    if row.shard not in _DIVIDED or num_parts == 1:
        return 0, [(0, row.shape[0])]
    dim = _DIVIDED[row.shard][1]
    if row.shard is Shard.VOCAB:
        size = row.shape[0]
        share = -(-size // num_parts)
        return dim, [(min(part * share, size), min((part + 1) * share, size))]
    sizes = [shape[0] for shape in row.hf_shapes] if row.kind is Kind.GATED else [row.shape[dim]]
    ranges: list[tuple[int, int]] = []
    start = 0
    for size in sizes:
        share = size // num_parts
        ranges.append((start + part * share, start + (part + 1) * share))
        start += size
    return dim, ranges


def padding(row: Row, part: int, num_parts: int) -> int:
    """How many rows of zeros end a rank's part, which is as large as the others' though the tensor is not.

    They stand for no token: nothing looks them up, and no softmax counts them (`trainer.logprob`).
    """
    _, ranges = pieces(row, part, num_parts)
    return part_shape(row, num_parts)[0] - (ranges[0][1] - ranges[0][0]) if row.shard is Shard.VOCAB else 0


def part_shape(row: Row, num_parts: int) -> tuple[int, ...]:
    """Shape of what each rank holds of the tensor, padding included."""
    dim, ranges = pieces(row, 0, num_parts)
    shape = list(row.shape)
    shape[dim] = sum(stop - start for start, stop in ranges)
    return tuple(shape)
