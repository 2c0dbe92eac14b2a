"""Core attention without Transformer Engine: every document by itself, in batches of documents of about one length.

Attention over a whole packed chunk with a block mask spends most of its time on pairs that the mask hides. Here
the rows of a micro-batch are regrouped into segments (a document, or a run of padding), segments of similar length
are batched, and each attends causally to itself. Megatron's local attention offers neither this nor the separate
key and value channels of latent attention.

Shapes: B chunks, S tokens of a chunk, N query heads, G key-value heads, R slots (rows of all batches of segments,
padding included).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
"""Segments are padded to the next of these (multiples of 16 are fast), above the last to a multiple of 512."""


@dataclass(frozen=True)
class Segments:
    """Which rows of a micro-batch attend to each other; takes the place of Megatron's attention mask."""

    rows: Tensor
    """[R] int64: the row of [S, B] flattened that stands in each slot; 0 in padding."""
    padding: Tensor
    """[R, 1, 1] bool, True where a slot holds no row."""
    slots: Tensor
    """[S * B] int64: the slot of each row; every row has one."""
    batches: tuple[tuple[int, int], ...]
    """(number of segments, padded length) of each batch, in the order of the slots."""
    positions: Tensor
    """[S, B] int64: the place of each row in its segment."""
    longest: int
    """Rows of the longest segment."""

    def to(self, device: torch.device) -> "Segments":
        moved = {name: getattr(self, name).to(device) for name in ("rows", "padding", "slots", "positions")}
        return replace(self, **moved)


def segments(runs: Sequence[range], shape: tuple[int, int]) -> Segments:
    """Group runs of rows into batches of one padded length.

    Args:
        runs: the rows of each segment in the order of its tokens; together every row of the micro-batch once.
        shape: (S, B).
    """
    by_length: dict[int, list[range]] = {}
    for run in runs:
        longest = next((n for n in LENGTHS if n >= len(run)), -(-len(run) // 512) * 512)
        by_length.setdefault(longest, []).append(run)
    rows: list[int] = []
    for length, group in sorted(by_length.items()):
        for run in group:
            rows += [*run, *[-1] * (length - len(run))]
    slots = torch.empty(shape[0] * shape[1], dtype=torch.int64)
    positions = torch.empty_like(slots)
    for run in runs:
        positions[run.start : run.stop : run.step] = torch.arange(len(run))
    order = torch.tensor(rows)
    held = (order >= 0).nonzero()[:, 0]
    slots[order[held]] = held
    batches = tuple((len(group), length) for length, group in sorted(by_length.items()))
    longest = max(map(len, runs))
    return Segments(order.clamp(min=0), (order < 0)[:, None, None], slots, batches, positions.view(shape), longest)


class _ToSlots(torch.autograd.Function):
    """Rows into slots. Written by hand because the gradient of a permutation is a gather, not a scatter-add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, segs: Segments) -> Tensor:
        ctx.segs = segs
        return x.index_select(0, segs.rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad.index_select(0, ctx.segs.slots), None


class _ToRows(torch.autograd.Function):
    """Slots back into rows; padding slots are dropped and get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, segs: Segments) -> Tensor:
        ctx.segs = segs
        return x.index_select(0, segs.slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad.index_select(0, ctx.segs.rows).masked_fill_(ctx.segs.padding, 0.0), None


class Attention(MegatronModule):
    """Scaled dot-product attention inside segments; a Megatron core_attention."""

    def __init__(self, config: Any, softmax_scale: float, **_: Any) -> None:
        super().__init__(config=config)
        self.softmax_scale = softmax_scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Segments, **_: Any) -> Tensor:
        """query: [S, B, N, Dqk]; key: [S, B, G, Dqk]; value: [S, B, G, Dv]; attention_mask: who attends to whom.

        Key-value head g serves the query heads from g * N / G on.

        Returns [S, B, N * Dv].
        """
        segs = attention_mask
        slots = [_ToSlots.apply(x.flatten(0, 1), segs) for x in (query, key, value)]
        sizes = [num * length for num, length in segs.batches]
        parts = zip(segs.batches, *(x.split(sizes) for x in slots), strict=True)  # type: ignore[union-attr]
        out = torch.cat([self._batch(num, length, q, k, v) for (num, length), q, k, v in parts])
        return _ToRows.apply(out, segs).flatten(1).unflatten(0, query.shape[:2])  # type: ignore[union-attr]

    def _batch(self, num: int, length: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention of `num` segments of `length` slots. query: [num * length, N, D]; key, value: with G."""
        heads, groups = query.size(1), key.size(1)
        # The queries that share a key-value head stand below each other in one matrix.
        q = query.view(num, length, groups, heads // groups, -1).permute(0, 2, 3, 1, 4).flatten(0, 1).flatten(1, 2)
        k, v = (x.unflatten(0, (num, length)).transpose(1, 2).flatten(0, 1) for x in (key, value))
        # Padding follows a segment's own rows, so the causal mask hides it from them.
        causal = torch.full((length, length), float("-inf"), dtype=q.dtype, device=q.device).triu_(1)
        causal = causal.repeat(heads // groups, 1)
        scores = torch.baddbmm(causal.expand(num * groups, -1, -1), q, k.transpose(1, 2), alpha=self.softmax_scale)
        out = torch.bmm(scores.softmax(-1), v)
        return out.view(num, heads, length, -1).transpose(1, 2).flatten(0, 1)
