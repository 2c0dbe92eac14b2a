"""Log-probabilities of target tokens from hidden states, without ever holding [T, vocabulary] logits.

The output layer is applied to a block of targets at a time, forwards and again backwards. Its weight may be a
slice of the vocabulary (tensor parallel). Shapes: T targets, H hidden size, V the rank's slice of the vocabulary.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BLOCK_TOKENS = 2048
"""Targets whose logits exist at one time: 1 GiB in fp32 for a vocabulary of 129,280."""


class _TargetLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, group: dist.ProcessGroup
    ) -> Tensor:
        logps, lses = [], []
        for rows in _blocks(len(targets)):
            logits = _logits(hidden[rows], weight, temperature)
            peak = _reduce(logits.amax(-1), group, dist.ReduceOp.MAX)
            total = _reduce((logits - peak[:, None]).exp_().sum(-1), group)
            local, owned = _local(targets[rows], weight, group)
            target = _reduce(logits.gather(1, local[:, None])[:, 0] * owned, group)
            lse = peak + total.log()
            lses.append(lse)
            logps.append(target - lse)
        ctx.save_for_backward(hidden, weight, targets, torch.cat(lses))
        ctx.temperature, ctx.group = temperature, group
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, targets, lse = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for rows in _blocks(len(targets)):
            probs = _logits(hidden[rows], weight, ctx.temperature).sub_(lse[rows, None]).exp_()
            local, owned = _local(targets[rows], weight, ctx.group)
            scale = (grad[rows] / ctx.temperature)[:, None]
            grad_logits = probs.mul_(-scale).scatter_add_(1, local[:, None], scale * owned[:, None])
            grad_logits = grad_logits.to(hidden.dtype)
            torch.mm(grad_logits, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                grad_weight.addmm_(grad_logits.T, hidden[rows])
        return grad_hidden, grad_weight, None, None, None


def target_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float, group: dist.ProcessGroup
) -> Tensor:
    """log softmax(hidden @ weight.T / temperature) at the targets.

    Args:
        hidden: [T, H], of the position that predicts each target.
        weight: [V, H], this rank's consecutive slice of the output layer.
        targets: [T] int64, token ids of the whole vocabulary.
        temperature: T of the report's sampling, > 0.
        group: the tensor-parallel ranks that share the vocabulary.

    Returns:
        [T] fp32, the same on every rank of the group. The gradient of `hidden` is this rank's part only: sum it
        over the group.
    """
    if len(targets) == 0:
        return hidden.sum(-1).float()
    return _TargetLogprobs.apply(hidden, weight, targets, temperature, group)  # type: ignore[return-value]


def _blocks(total: int) -> list[slice]:
    return [slice(i, min(i + BLOCK_TOKENS, total)) for i in range(0, total, BLOCK_TOKENS)]


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    return (hidden @ weight.T).float().div_(temperature)


def _local(targets: Tensor, weight: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Row of each target in this rank's slice (0 where another rank has it), and 1.0 where it is here."""
    local = targets - group.rank() * len(weight)
    owned = (local >= 0) & (local < len(weight))
    return local.where(owned, 0), owned.float()


def _reduce(x: Tensor, group: dist.ProcessGroup, op: Any = dist.ReduceOp.SUM) -> Tensor:
    if group.size() > 1:
        dist.all_reduce(x, op=op, group=group)
    return x
