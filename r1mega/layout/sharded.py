"""Where Megatron's distributed checkpoint keeps each tensor of a family's table: global key, shape and offset.

Megatron stacks the experts of a layer along a new first axis; everything else lies under its own name. (Where all
layers are alike it would stack them too, unless told that they are not: `non_homogeneous_layers`, which is always
said here, and which it intends to drop.) Beside a fused query-key-value tensor, a layer's norms bear the names that
they have where they are part of the matrix after them. A vocabulary is stored with the padding that the
tensor-parallel ranks gave it. Torch-free; held against Megatron's own `sharded_state_dict` in
tests/unit/test_conversion_sharded.py.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from r1mega.families.spec import SCORE_HEAD, Kind, Row, Shape, Shard
from r1mega.layout.shards import part_shape

_NORMS = {
    ".input_layernorm.": ".self_attention.linear_qkv.layer_norm_",
    ".pre_mlp_layernorm.": ".mlp.linear_fc1.layer_norm_",
}
"""Megatron's `sharded_state_dict_keys_map` of layers with grouped-query attention."""

_EXPERT = re.compile(r"\.experts\.local_experts\.(\d+)\.")


@dataclass(frozen=True)
class CheckpointPlace:
    """Where one Megatron tensor lies in a checkpoint: the box of `sizes` at `offset` in the tensor `key`."""

    key: str
    shape: Shape
    """Of the whole tensor `key`, the experts' axis and a vocabulary's padding included."""
    offset: Shape
    sizes: Shape
    """Without padding."""


def places(table: Sequence[Row], *, tp: int = 1) -> dict[str, CheckpointPlace]:
    """Every tensor's place, by its name in the table; copies have none of their own.

    Args:
        tp: number of tensor-parallel ranks of the run that saved it, on which a vocabulary's padding depends.
    """
    rows = [row for row in table if row.kind is not Kind.COPY]
    experts = _experts(rows)
    fused = any(row.kind is Kind.QKV for row in rows)
    found = {}
    for row in rows:
        key, expert = _unstack(row.megatron)
        for name, other in _NORMS.items() if fused else ():
            key = key.replace(name, other)
        shape, offset = ((experts[key],), (expert,)) if expert is not None else ((), ())
        own = (_padded(row, tp), *row.shape[1:])
        sizes = (1,) * len(shape) + row.shape
        found[row.megatron] = CheckpointPlace(key, shape + own, offset + (0,) * len(own), sizes)
    return found


def extra_states(table: Sequence[Row]) -> list[str]:
    """Keys under which Megatron looks for the extra state of each module with a weight matrix.

    It is empty but for Transformer Engine's FP8, and yet a checkpoint without it cannot be loaded.
    """
    experts = _experts(table)
    keys: dict[str, None] = {}
    for row in table:
        module, _, leaf = row.megatron.rpartition(".")
        if row.kind is Kind.COPY or leaf != "weight" or len(row.shape) != 2 or row.megatron == SCORE_HEAD:
            continue
        name, expert = _unstack(module + ".")
        number, count = (expert, experts[name + "weight"]) if expert is not None else (0, 1)
        keys[f"{name}_extra_state/shard_{number}_{count}"] = None
    return list(keys)


def boxes(row: Row, place: CheckpointPlace) -> list[tuple[Shape, Shape]]:
    """(offset, sizes) of the chunks in which a row is written: gate and up apart, as Megatron's ranks read them."""
    if row.kind is not Kind.GATED:
        return [(place.offset, place.sizes)]
    axis = len(place.shape) - len(row.shape)
    found, start = [], 0
    for shape in row.hf_shapes:
        offset, sizes = list(place.offset), list(place.sizes)
        offset[axis], sizes[axis] = start, shape[0]
        found.append((tuple(offset), tuple(sizes)))
        start += shape[0]
    return found


def _unstack(name: str) -> tuple[str, int | None]:
    """(key, expert): the name without the number that is an axis in the checkpoint, and that number."""
    match = _EXPERT.search(name)
    if match is None:
        return name, None
    return name[: match.start()] + ".experts.experts." + name[match.end() :], int(match[1])


def _experts(table: Sequence[Row]) -> dict[str, int]:
    """How many experts each key holds that holds any."""
    counts: dict[str, int] = {}
    for row in table:
        key, expert = _unstack(row.megatron)
        if expert is not None:
            counts[key] = max(counts.get(key, 0), expert + 1)
    return counts


def _padded(row: Row, tp: int) -> int:
    """Rows of a whole tensor as it is stored."""
    return part_shape(row, tp)[0] * tp if row.shard is Shard.VOCAB else row.shape[0]


def roots(table: Sequence[Row]) -> set[str]:
    """First parts of the model's keys: what else a checkpoint holds (optimiser, reference) begins otherwise."""
    return {row.megatron.split(".", 1)[0] for row in table}
