"""Log-probabilities of target tokens as `trainer.logprob` has them, in the way that serves a GPU.

Its matrix products are as fast as they are only in the weight's own dtype, so operands stay in it and sums are fp32:
products of two bf16 numbers are exact there, and vLLM's head in fp32 computes the very same. Tiles are large, since a
GPU has no cache that would keep them; and nothing asks the device what it has computed, so that it is never waited
for. Shapes: T targets, H hidden size, V the rank's slice of the vocabulary.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE_BYTES = 512 << 20
"""Logits in fp32 that exist at one time; entropies take as much again, gradients half of it in bf16."""
TILE_IDS = 4096
"""Least ids of a tile, or all: few make its products slow."""


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, [m, k] by [k, n], with sums of fp32 at least, and operands as they are where a kernel takes them so."""
    if a.is_cuda and a.dtype is b.dtype is torch.bfloat16:
        return torch.mm(a, b, out_dtype=torch.float32)
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(wide) @ b.to(wide)


class LargeTiles(torch.autograd.Function):
    """See `trainer.logprob.target_logprobs`; `local` are the targets counted from the slice's first row."""

    # Logits are in units of log 2, and relative to the likeliest id's (`peak`), as on the CPU.

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
        total, moment, target = sums
        for rows, columns in tiles(len(hidden), len(weight)):
            logits = _logits(hidden[rows], weight[columns], temperature)
            index, here = _places(local[rows], columns)
            target[rows] = torch.where(here, logits.gather(1, index)[:, 0], target[rows])
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
        scale = grad / (total * -ctx.temperature)
        at_target = (target.exp2() - total) * scale  # 1 - p of it, which is exact where p is nearly 1
        grad_hidden = torch.zeros_like(hidden, dtype=wide)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        summed: Tensor | None = None
        for rows, columns in tiles(len(hidden), len(weight)):
            pulls = _logits(hidden[rows], weight[columns], ctx.temperature).sub_(peak[rows, None]).exp2_()
            pulls.mul_(scale[rows, None])
            index, here = _places(local[rows], columns)
            pulls.scatter_(1, index, torch.where(here[:, None], at_target[rows, None], pulls.gather(1, index)))
            narrow = pulls.to(weight.dtype)
            grad_hidden[rows] += product(narrow, weight[columns])
            if grad_weight is not None:
                part = product(narrow.T, hidden[rows])
                summed = part if summed is None or rows.start == 0 else summed.add_(part)
                if rows.stop == len(hidden):
                    grad_weight[columns] = summed
        return grad_hidden.to(hidden.dtype), grad_weight, None, None, None, None


def tiles(num_targets: int, num_ids: int) -> list[tuple[slice, slice]]:
    """Slices of targets and of ids, together every pair once; all targets of some ids behind each other."""
    size = TILE_BYTES // 4
    num_columns = min(num_ids, max(TILE_IDS, size // max(1, num_targets)))
    num_rows = max(1, min(num_targets, size // num_columns))
    rows, columns = (
        [slice(i, min(i + step, total)) for i in range(0, total, step)]
        for total, step in ((num_targets, num_rows), (num_ids, num_columns))
    )
    return [(r, c) for c in columns for r in rows]


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """[targets, ids] of a tile, in units of log 2."""
    return product(hidden, weight.T).mul_(1 / (temperature * math.log(2)))


def _places(local: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Each target's column in a tile, [targets, 1], some column where it has none; and whether it has one."""
    index = local - columns.start
    here = (index >= 0) & (index < columns.stop - columns.start)
    return index.clamp(0, columns.stop - columns.start - 1)[:, None], here


def rebase(sums: Tensor, shift: Tensor) -> None:
    """Sums of p and of p * logit, [2, T] in place, to a peak from which the old one is `shift` <= 0 away."""
    total, moment = sums
    moment.addcmul_(shift, total)
    sums.mul_(shift.exp2())


def across(x: Tensor, group: dist.ProcessGroup, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """x, summed over the ranks that share the vocabulary, or what `op` says; in place."""
    if group.size() > 1:
        dist.all_reduce(x, op=op, group=group)
    return x
