"""Which rank holds which part of which tensor: pipeline stages, experts, and the slices of `layout.shards`.

Arithmetic on a family's table and a layout; no torch, no process group. Ranks are counted as Megatron counts them:
tensor parallel fastest, then context, data, pipeline parallel; for experts expert-tensor, expert, data, pipeline.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from r1mega.config.cluster import Recompute, TrainerLayout
from r1mega.config.pp_layout import expand
from r1mega.families.spec import Kind, ModelSpec, Row
from r1mega.layout.shards import axis, pieces

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")
_EXPERT = re.compile(r"\.local_experts\.(\d+)\.")


@dataclass(frozen=True)
class RankPlace:
    """A rank's coordinates. `dp` tells copies of the dense part apart, `expert_dp` copies of the experts."""

    tp: int
    dp: int
    pp: int
    etp: int
    ep: int
    expert_dp: int


class TensorPart(NamedTuple):
    """What one rank holds of one tensor: [start, stop) ranges of the whole one along `dim`."""

    row: Row
    dim: int
    ranges: tuple[tuple[int, int], ...]


def place(layout: TrainerLayout, rank: int) -> RankPlace:
    """The coordinates of a rank."""
    within, pp = rank % (layout.tp * layout.cp * layout.dp), rank // (layout.tp * layout.cp * layout.dp)
    etp, ep = layout.expert_tp, layout.ep
    return RankPlace(
        tp=rank % layout.tp,
        dp=within // layout.tp,
        pp=pp,
        etp=within % etp,
        ep=within // etp % ep,
        expert_dp=within // (etp * ep),
    )


def stage_layers(num_layers: int, num_stages: int) -> list[range]:
    """The layers of each pipeline stage: as equal as can be, the first stages with one more.

    The last stages have less because the output head and the MTP layers come on top of theirs.
    """
    share, extra = divmod(num_layers, num_stages)
    starts = [i * share + min(i, extra) for i in range(num_stages + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]


def stage_contents(spec: ModelSpec, layout: TrainerLayout) -> list[str]:
    """What each of the pp x vpp stages holds, in their order and in the letters of `config.pp_layout`."""
    if layout.pipeline:
        return expand(layout.pipeline)
    held = ["t" * len(layers) for layers in stage_layers(spec.num_layers, layout.pp * layout.vpp)]
    held[0] = "E" + held[0]
    held[-1] += "m" * spec.num_mtp_layers + "L"
    return held


def layout_for(spec: ModelSpec, layout: TrainerLayout) -> TrainerLayout:
    """The layout of the same ranks for another model than theirs, of which they need weights and no gradients.

    Its layers are spread over the same stages in parts as equal as can be, and what a layout says of experts or of
    recomputation is left out where it has none. Whether it then fits, `laws.model_faults` says.
    """
    changes: dict[str, object] = {"pipeline": "", "recompute": Recompute()}
    if spec.moe is None:
        changes |= {"ep": 1, "etp": None, "dispatcher": None}
    return layout.model_copy(update=changes)


def stages(row: Row, spec: ModelSpec, layout: TrainerLayout) -> tuple[int, ...]:
    """The pipeline ranks that hold a tensor. The embedding is also where MTP layers or a tied head need it."""
    contents = stage_contents(spec, layout)
    last = len(contents) - 1
    mtp = next((i for i, letters in enumerate(contents) if "m" in letters), None)
    layers = [i for i, letters in enumerate(contents) for letter in letters if letter == "t"]
    if found := _LAYER.match(row.megatron):
        at = {layers[int(found[1])]}
    elif row.megatron.startswith("embedding."):
        at = {0, *([last] if spec.tied else []), *([mtp] if mtp is not None else [])}
    elif row.megatron.startswith("mtp."):
        assert mtp is not None
        at = {mtp}
    elif row.megatron.startswith("decoder."):
        at = {last if mtp is None else layers[-1]}  # the final norm: Megatron's choice
    else:
        at = {last}
    return tuple(sorted({i % layout.pp for i in at}))


def held(spec: ModelSpec, layout: TrainerLayout) -> Iterator[tuple[int, list[TensorPart]]]:
    """(rank, its pieces) for every rank of the layout; copies under a second name are no tensors of their own.

    The layout must fit the model (`laws.check_layout`).
    """
    table: Mapping[tuple[int, int | None], list[Row]] = defaultdict(list)
    per_rank = spec.moe.num_experts // layout.ep if spec.moe else 1
    for row in spec.tensors():
        if row.kind is Kind.COPY:
            continue
        expert = _EXPERT.search(row.megatron)
        for stage in stages(row, spec, layout):
            table[stage, int(expert[1]) // per_rank if expert else None].append(row)
    sizes = {"tp": layout.tp, "etp": layout.expert_tp, None: 1}
    for rank in range(layout.ranks):
        at = place(layout, rank)
        part = {"tp": at.tp, "etp": at.etp, None: 0}
        rows = [*table.get((at.pp, None), []), *table.get((at.pp, at.ep), [])]
        cut = ((row, *pieces(row, part[axis(row)], sizes[axis(row)])) for row in rows)
        yield rank, [TensorPart(row, dim, tuple(ranges)) for row, dim, ranges in cut]


def tiling_faults(
    spec: ModelSpec, layout: TrainerLayout, pieces_of: Sequence[tuple[int, Sequence[TensorPart]]]
) -> list[str]:
    """Whether the ranks' pieces cover every element of every tensor, each as often as there are copies of it.

    Args:
        pieces_of: what `held` yields.

    Returns:
        One sentence for each tensor that is missing, unknown, or has gaps or overlaps; none is all well.
    """
    rows = {row.megatron: row for row in spec.tensors() if row.kind is not Kind.COPY}
    found: Mapping[str, list[TensorPart]] = defaultdict(list)
    faults = []
    for rank, pieces_of_rank in pieces_of:
        seen = {piece.row.megatron for piece in pieces_of_rank}
        if len(seen) < len(pieces_of_rank):
            faults.append(f"rank {rank}: holds a tensor twice")
        for piece in pieces_of_rank:
            found[piece.row.megatron].append(piece)
    faults += [f"{name}: on no rank" for name in rows if name not in found]
    faults += [f"{name}: in no table" for name in found if name not in rows]
    for name in rows.keys() & found.keys():
        faults += _gaps(rows[name], found[name], _copies(rows[name], spec, layout))
    return sorted(faults)


def _copies(row: Row, spec: ModelSpec, layout: TrainerLayout) -> int:
    """How many ranks should hold each element."""
    ranks = layout.ranks // layout.pp
    if _EXPERT.search(row.megatron):
        return ranks // (layout.ep * layout.expert_tp)
    return ranks // (layout.tp if axis(row) else 1) * len(stages(row, spec, layout))


def _gaps(row: Row, found: Sequence[TensorPart], copies: int) -> list[str]:
    """Places along the divided dim that are not held by `copies` ranks."""
    dims = {piece.dim for piece in found}
    if len(dims) > 1:
        return [f"{row.megatron}: cut along dims {sorted(dims)}"]
    size = row.shape[dims.pop()]
    change: dict[int, int] = defaultdict(int)
    for start, stop in (r for piece in found for r in piece.ranges):
        if not 0 <= start <= stop <= size:
            return [f"{row.megatron}: a piece [{start}, {stop}) of {size}"]
        change[start] += 1
        change[stop] -= 1
    count, bounds = 0, sorted({0, size, *change})
    faults = []
    for start, stop in pairwise(bounds):
        count += change.get(start, 0)
        if count != copies:
            faults.append(f"{row.megatron}: [{start}, {stop}) is held {count} times, not {copies}")
    return faults
