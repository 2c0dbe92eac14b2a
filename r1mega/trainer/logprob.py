"""Log-probabilities of target tokens from hidden states, without ever holding [T, vocabulary] logits.

The output layer is applied a tile at a time (some targets by some ids of the vocabulary), forwards with a running
log-sum-exp and again backwards. Its weight may be a slice of the vocabulary (tensor parallel): ranks exchange two
small tensors forwards, whatever the number of tiles, and nothing backwards.

Against `(hidden @ weight.T).log_softmax(-1).gather(...)` this is four matrix products instead of three, paid for by
tiles that stay in cache: no pass over [T, V] in memory, no page of it ever touched. What that gives at a vocabulary
of 129,280 is in docs/measurements/logprob_cpu.json. The products grow with H and the rest does not, so forwards and
backwards together approach 4/3 of the plain way's time as H grows. On a GPU `trainer.logprob_gpu` does the same with
other tiles.

Shapes: T targets, H hidden size, V the rank's slice of the vocabulary.
"""

import math
from typing import Any, Literal, overload

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from r1mega.trainer.logprob_gpu import LargeTiles, across, rebase

TILE_BYTES = 32 << 20
"""Logits that exist at one time. Larger tiles leave the cache, smaller ones have threads wait for each other more."""
TILE_IDS = 8192
"""Ids of a tile where targets fill the rest of it. More ids, fewer targets, and the weight is read more often."""


class _TargetLogprobs(torch.autograd.Function):
    # Logits are in units of log 2: on the CPU torch's exp2 takes two thirds of exp's time. Probabilities are relative
    # to the likeliest id's (`peak`) until the end: dividing by their `total` is left to what has T rows.

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        local: Tensor,
        temperature: float,
        group: dist.ProcessGroup,
        entropy: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        peak = hidden.new_full((len(local),), torch.finfo(wide).min, dtype=wide)
        sums = hidden.new_zeros((3, len(local)), dtype=wide)
        total, moment, target = sums  # of p, of p * logit, and the target's logit; p and logit relative to the peak
        row_slices, column_slices, scratch = _tiles(hidden, weight, wide)
        for columns in column_slices:
            part = weight[columns].to(wide)
            for rows in row_slices:
                logits = _tile(scratch, rows, columns)
                logits.addmm_(hidden[rows].to(wide), part.T, beta=0, alpha=1 / (temperature * math.log(2)))
                hits = _hits(local[rows], columns)
                target[rows][hits[0]] = logits[hits]
                top = torch.maximum(peak[rows], logits.amax(-1))
                rebase(sums[:2, rows], peak[rows] - top)
                peak[rows] = top
                logits.sub_(top[:, None])
                if entropy:
                    probs = logits.exp2()
                    moment[rows] += logits.mul_(probs).sum(-1)
                else:
                    probs = logits.exp2_()
                total[rows] += probs.sum(-1)
        top = across(peak.clone(), group, dist.ReduceOp.MAX)
        rebase(sums[:2], peak - top)
        across(sums, group)
        target -= top
        ctx.save_for_backward(hidden, weight, local, top, total, target)
        ctx.temperature = temperature
        logp = (target - total.log2()).mul_(math.log(2)).float()
        if not entropy:
            return logp
        spread = (total.log2() - moment / total).mul_(math.log(2)).float()
        ctx.mark_non_differentiable(spread)
        return logp, spread

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, local, peak, total, target = ctx.saved_tensors
        wide = total.dtype
        others = total - target.exp2()
        scale = (grad / (total * -ctx.temperature))[:, None]
        grad_hidden = torch.zeros_like(hidden, dtype=wide)
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        row_slices, column_slices, scratch = _tiles(hidden, weight, wide)
        for columns in column_slices:
            part = weight[columns].to(wide)
            grad_part = torch.zeros_like(part)
            for rows in row_slices:
                states, probs = hidden[rows].to(wide), _tile(scratch, rows, columns)
                alpha = 1 / (ctx.temperature * math.log(2))
                torch.addmm(peak[rows, None], states, part.T, beta=-1, alpha=alpha, out=probs).exp2_()
                hits = _hits(local[rows], columns)
                # The target's share is added last: in the sum over ids it would drown what the others add.
                probs[hits] = 0
                grad_hidden[rows].addmm_(probs, part)
                if grad_weight is not None:
                    probs[hits] = -others[rows][hits[0]]
                    grad_part.addmm_(probs.T, states * scale[rows])
            if grad_weight is not None:
                grad_weight[columns] = grad_part
        owned = (local >= 0) & (local < len(weight))
        grad_hidden.addcmul_(weight[local.where(owned, 0)].to(wide), (others * owned)[:, None], value=-1)
        return grad_hidden.mul_(scale).to(hidden.dtype), grad_weight, None, None, None, None


@overload
def target_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    group: dist.ProcessGroup,
    vocab_size: int | None = None,
    entropy: Literal[False] = False,
) -> Tensor: ...
@overload
def target_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    group: dist.ProcessGroup,
    vocab_size: int | None = None,
    entropy: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def target_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    group: dist.ProcessGroup,
    vocab_size: int | None = None,
    entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """log softmax(hidden @ weight.T / temperature) at the targets.

    Args:
        hidden: [T, H], of the position that predicts each target; fp32, or bf16, which is widened a tile at a time.
        weight: [V, H], this rank's consecutive slice of the output layer; every rank has as many rows.
        targets: [T] int64, token ids of the whole vocabulary.
        temperature: T of the report's sampling, > 0.
        group: the tensor-parallel ranks that share the vocabulary.
        vocab_size: ids there are, where the slices hold more rows; those beyond are padding at the end, which no
            softmax counts and which gets no gradient. Every rank has at least one row that is none.
        entropy: also return the entropy of the same softmax.

    Returns:
        [T] fp32, the same on every rank of the group. The gradient of `hidden` is this rank's part only: sum it
        over the group. With `entropy`, a pair of that and the entropies: [T] fp32 in nats, without a gradient.
    """
    first = group.rank() * len(weight)
    if vocab_size is not None and first + len(weight) > vocab_size:
        weight = weight[: vocab_size - first]
    way = LargeTiles if hidden.is_cuda else _TargetLogprobs
    return way.apply(hidden, weight, targets - first, temperature, group, entropy)  # type: ignore[return-value]


def _tiles(hidden: Tensor, weight: Tensor, wide: torch.dtype) -> tuple[list[slice], list[slice], Tensor]:
    """Slices of the targets, slices of the vocabulary, and memory for the logits of one with another."""
    size = TILE_BYTES // wide.itemsize
    num_columns = min(len(weight), max(TILE_IDS, size // max(1, len(hidden))))
    num_rows = max(1, min(len(hidden), size // num_columns))
    scratch = hidden.new_empty(num_rows * num_columns, dtype=wide)
    return _slices(len(hidden), num_rows), _slices(len(weight), num_columns), scratch


def _slices(total: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, total)) for i in range(0, total, size)]


def _tile(scratch: Tensor, rows: slice, columns: slice) -> Tensor:
    shape = rows.stop - rows.start, columns.stop - columns.start
    return scratch[: shape[0] * shape[1]].view(shape)


def _hits(local: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Row and column in a tile of each target that is there; `local` are the tile's targets in this rank's slice."""
    rows = ((local >= columns.start) & (local < columns.stop)).nonzero()[:, 0]
    return rows, local[rows] - columns.start
