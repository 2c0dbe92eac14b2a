"""Where Megatron's distributed checkpoint keeps each tensor of a family's table: global key, shape and offset.

Megatron stacks the experts of a layer along a new first axis, and the layers too where all of them are alike and it
was not told otherwise (`non_homogeneous_layers`). Everything else lies under its own name. Torch-free; held against
Megatron's own `sharded_state_dict` in tests/unit/test_conversion_sharded.py.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from r1mega.families.spec import Kind, Row, Shape

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.local_experts\.(\d+)\.")


@dataclass(frozen=True)
class Place:
    """Where one Megatron tensor lies in a checkpoint: the box of `sizes` at `offset` in the tensor `key`."""

    key: str
    shape: Shape
    """Of the whole tensor `key`, stacked axes included."""
    offset: Shape
    sizes: Shape

    @property
    def stacked(self) -> int:
        """How many axes stand before the row's own."""
        return sum(a != b for a, b in zip(self.shape, self.sizes, strict=True))


def places(table: Sequence[Row], *, layers_stacked: bool = False) -> dict[str, Place]:
    """Every tensor's place, by its name in the table; copies have none of their own.

    Args:
        layers_stacked: whether the checkpoint keeps all layers' tensors of one name as one.
    """
    rows = [row for row in table if row.kind is not Kind.COPY]
    layers = _count(rows, _LAYER)
    experts: dict[str, int] = {}
    for row in rows:
        key, _, expert = _unstack(row.megatron, layers_stacked)
        if expert is not None:
            experts[key] = max(experts.get(key, 0), expert + 1)
    found = {}
    for row in rows:
        key, layer, expert = _unstack(row.megatron, layers_stacked)
        shape, offset = (), ()
        if layer is not None:
            shape, offset = (layers,), (layer,)
        if expert is not None:
            shape, offset = (*shape, experts[key]), (*offset, expert)
        sizes = (1,) * len(shape) + row.shape
        found[row.megatron] = Place(key, shape + row.shape, offset + (0,) * len(row.shape), sizes)
    return found


def extra_states(table: Sequence[Row]) -> list[str]:
    """Keys under which Megatron looks for the extra state of each module with a weight matrix.

    It is empty but for Transformer Engine's FP8, and yet a checkpoint without it cannot be loaded.
    """
    experts: dict[str, int] = {}
    for place in places(table).values():
        if place.stacked:
            experts[place.key] = place.shape[0]
    keys: dict[str, None] = {}
    for row in table:
        module, _, leaf = row.megatron.rpartition(".")
        if row.kind is Kind.COPY or leaf != "weight" or len(row.shape) != 2:
            continue
        name, _, expert = _unstack(module + ".", False)
        number, count = (expert, experts[name + "weight"]) if expert is not None else (0, 1)
        keys[f"{name}_extra_state/shard_{number}_{count}"] = None
    return list(keys)


def boxes(row: Row, place: Place) -> list[tuple[Shape, Shape]]:
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


def _unstack(name: str, layers_stacked: bool) -> tuple[str, int | None, int | None]:
    """(key, layer, expert): the name without the numbers that are axes in the checkpoint, and those numbers."""
    layer = expert = None
    if layers_stacked and (match := _LAYER.match(name)):
        layer = int(match[1])
        name = "decoder.layers." + name[match.end() :]
    if match := _EXPERT.search(name):
        expert = int(match[1])
        name = name[: match.start()] + ".experts.experts." + name[match.end() :]
    return name, layer, expert


def _count(rows: Sequence[Row], pattern: re.Pattern[str]) -> int:
    return max((int(match[1]) + 1 for row in rows if (match := pattern.search(row.megatron))), default=0)


def roots(table: Sequence[Row]) -> set[str]:
    """First parts of the model's keys: what else a checkpoint holds (optimiser, reference) begins otherwise."""
    return {row.megatron.split(".", 1)[0] for row in table}


def by_key(found: Mapping[str, Place]) -> dict[str, list[str]]:
    """Names of the table that share a key, in their order."""
    shared: dict[str, list[str]] = {}
    for name, place in found.items():
        shared.setdefault(place.key, []).append(name)
    return shared
