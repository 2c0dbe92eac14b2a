"""Log-probabilities of V3's output layer, forwards and backwards: `trainer.logprob` as it is against tiles of 512 MB
multiplied in the weight's dtype with fp32 sums. Time, memory, and both errors against fp64."""

import types
from typing import Any

import torch
from report import Report, relative, seconds
from torch import Tensor

from r1mega.trainer.logprob import target_logprobs

TILE_BYTES = 512 << 20
ALONE: Any = types.SimpleNamespace(size=lambda: 1, rank=lambda: 0)
"""The tensor-parallel group of one rank."""


def wide(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in fp32 sums. On CUDA of the operands as they are: products of two bf16 numbers are exact in fp32."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


class Tiled(torch.autograd.Function):
    """log softmax(hidden @ weight.T) at the targets. hidden: [T, H]; weight: [V, H]; targets: [T]; gives [T] fp32."""

    @staticmethod
    def columns(hidden: Tensor, weight: Tensor) -> list[tuple[int, int]]:
        step = max(1, TILE_BYTES // (4 * len(hidden)))
        return [(i, min(i + step, len(weight))) for i in range(0, len(weight), step)]

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        lse = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.float32)
        at_target = torch.zeros_like(lse)
        for first, stop in Tiled.columns(hidden, weight):
            logits = wide(hidden, weight[first:stop].T)
            lse = torch.logaddexp(lse, logits.logsumexp(-1))
            here = (targets >= first) & (targets < stop)
            picked = logits.gather(1, (targets - first).clamp(0, stop - first - 1)[:, None])[:, 0]
            at_target = torch.where(here, picked, at_target)
        ctx.save_for_backward(hidden, weight, targets, lse)
        return at_target - lse

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        hidden, weight, targets, lse = ctx.saved_tensors
        grad_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        grad_weight = torch.empty_like(weight)
        for first, stop in Tiled.columns(hidden, weight):
            part = weight[first:stop]
            pulled = wide(hidden, part.T).sub_(lse[:, None]).exp_().mul_(-grad[:, None])
            here = (targets >= first) & (targets < stop)
            place = (targets - first).clamp(0, stop - first - 1)[:, None]
            pulled.scatter_add_(1, place, torch.where(here, grad, 0)[:, None])
            narrow = pulled.to(weight.dtype)
            grad_hidden += wide(narrow, part)
            grad_weight[first:stop] = wide(narrow.T, hidden)
        return grad_hidden.to(hidden.dtype), grad_weight, None


def as_it_is(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return target_logprobs(hidden, weight, targets, temperature=1.0, group=ALONE)


WAYS = {"as_it_is": as_it_is, "tiled": Tiled.apply}


def both_ways(way: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities and the gradients of their mean."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    logp = way(hidden, weight, targets)
    logp.mean().backward()
    return logp.detach(), hidden.grad, weight.grad  # type: ignore[return-value]


def main() -> None:
    report = Report(__doc__ or "")
    vocabulary, size, count, checked = (129280, 7168, 8192, 1024) if report.cuda else (3000, 64, 96, 96)
    torch.manual_seed(0)
    hidden = torch.randn(count, size, device=report.device, dtype=torch.bfloat16)
    weight = torch.randn(vocabulary, size, device=report.device, dtype=torch.bfloat16) * size**-0.5
    targets = torch.randint(vocabulary, (count,), device=report.device)
    report.note(vocabulary=vocabulary, hidden=size, targets=count, checked_against_fp64=checked)
    for name, way in WAYS.items():
        if report.cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        taken = seconds(lambda way=way: both_ways(way, hidden, weight, targets), report.device, 2)
        flops = 8 * vocabulary * size * count  # four products: logits twice, both gradients
        found = {"seconds": round(taken, 5), "tflop_per_s": round(flops / taken / 1e12, 4)}
        if report.cuda:
            found["peak_gib"] = round((torch.cuda.max_memory_allocated() - before) / 2**30, 2)
        report.note(**{name: found})
    few, theirs = hidden[:checked], targets[:checked]
    exact = both_ways(
        lambda h, w, t: (h @ w.T).log_softmax(-1).gather(1, t[:, None])[:, 0], few.double(), weight.double(), theirs
    )
    for name, way in WAYS.items():
        parts = both_ways(way, few, weight, theirs)
        errors = {
            part: relative(x, want) for part, x, want in zip(("logp", "hidden", "weight"), parts, exact, strict=True)
        }
        worst = float((parts[0].double() - exact[0]).abs().max())
        report.note(**{f"{name}_error": {**errors, "worst_logp": worst}})
        assert worst < 1e-3, (name, worst)  # sums of fp32
        assert errors["hidden"] < 1e-2, (name, errors)  # gradients end in bf16: 2^-9 each at least
        assert errors["weight"] < 1e-2, (name, errors)


if __name__ == "__main__":
    main()
