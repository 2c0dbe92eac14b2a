"""Context parallelism: which rows of a sequence each rank takes, and values of all ranks in one order again.

Causal attention gives late rows more to do than early ones. So every document is cut into 2 x cp blocks of one length
and rank r takes block r and block 2 x cp - 1 - r, as Transformer Engine's kernels expect (its
`thd_get_partitioned_indices`). Targets are rows and ids that were paired before anything is cut.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def zigzag(lengths: Sequence[int], cp: int, rank: int) -> Tensor:
    """Rows of documents that lie behind each other which a rank takes, in its own order.

    Args:
        lengths: of the documents, each a multiple of 2 x cp.

    Returns:
        [sum(lengths) / cp] int64, ascending.
    """
    parts: list[Tensor] = []
    start = 0
    for length in lengths:
        size, rest = divmod(length, 2 * cp)
        if rest:
            raise ValueError(f"a document of {length} rows does not divide into 2 x cp = {2 * cp} blocks")
        for block in (rank, 2 * cp - 1 - rank):
            parts.append(torch.arange(start + block * size, start + (block + 1) * size))
        start += length
    return torch.cat(parts)


def unzigzag(lengths: Sequence[int], cp: int) -> Tensor:
    """The inverse: where each row is found in the ranks' rows one rank after the other. [sum(lengths)] int64."""
    order = torch.cat([zigzag(lengths, cp, rank) for rank in range(cp)])
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    return places


class _Gathered(torch.autograd.Function):
    """Every rank computes the same loss of the whole, so a gradient comes back to its rank as it is."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, places: Tensor, size: int, group: dist.ProcessGroup) -> Tensor:
        ctx.save_for_backward(places)
        whole = mine.new_zeros(size)
        whole[places] = mine
        dist.all_reduce(whole, group=group)  # each place is another rank's zero: the sum is exact
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (places,) = ctx.saved_tensors
        return grad[places], None, None, None


def gathered(mine: Tensor, places: Tensor, size: int, group: Any) -> Tensor:
    """Values of all ranks in one order, on every rank.

    Args:
        mine: [t], of this rank.
        places: [t] int64, the place of each in the whole; every place belongs to one rank.
        size: of the whole, T.
        group: the context-parallel ranks.

    Returns:
        [T]. Its gradient reaches the rank that a value came from, and is not summed: a loss of the whole is one loss,
        computed by every rank.
    """
    return _Gathered.apply(mine, places, size, group)  # type: ignore[return-value]
