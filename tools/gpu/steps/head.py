"""Log-probabilities of V3's output layer, forwards and backwards: the way of a CPU, whose products are of fp32,
against `trainer.logprob_gpu`, which multiplies in the weight's dtype with fp32 sums. Time, memory, and both errors
against fp64."""

import types
from typing import Any

import torch
from report import Report, relative, seconds
from torch import Tensor

from r1mega.trainer import logprob

ALONE: Any = types.SimpleNamespace(size=lambda: 1, rank=lambda: 0)
"""The tensor-parallel group of one rank."""


def of(function: Any) -> Any:
    return lambda hidden, weight, targets: function.apply(hidden, weight, targets, 1.0, ALONE, False)


WAYS = {"as_on_a_cpu": of(logprob._TargetLogprobs), "large_tiles": of(logprob.LargeTiles)}


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
