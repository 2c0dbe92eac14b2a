"""Log-probabilities of targets in tiles (r1mega/trainer/logprob.py) against the plain way: time, memory, rounding.

`plain` is (hidden @ weight.T).log_softmax(-1) in fp32 and a gather. Time: both in turn in this process. Memory: the
highest resident memory of forward and backward above that of the inputs, each in a process of its own. Rounding: the
largest difference from the plain way in fp64, over the largest value, on the first targets alone.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch
import torch.distributed as dist
from torch import Tensor

from r1mega.runtime import openmp
from r1mega.runtime.files import write_json
from r1mega.trainer import logprob

EXACT_TOKENS = 128


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = hidden @ weight.T
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(wide).log_softmax(-1).gather(1, targets[:, None])[:, 0]


def tiled(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    group: Any = dist.group.WORLD
    return logprob.target_logprobs(hidden, weight, targets, temperature=1.0, group=group)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"plain": plain, "tiled": tiled}


def make_inputs(case: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden [T, H], weight [V, H], targets [T] and the gradient [T]; logits are drawn from N(0, 4)."""
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case["dtype"])
    hidden = torch.randn(case["tokens"], case["hidden"], generator=generator)
    weight = torch.randn(case["vocabulary"], case["hidden"], generator=generator).mul_(2 * case["hidden"] ** -0.5)
    targets = torch.randint(case["vocabulary"], (case["tokens"],), generator=generator)
    grad = torch.randn(case["tokens"], generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets, grad


def measure_time(case: dict[str, Any], repetitions: int) -> dict[str, Any]:
    torch.set_num_threads(case["threads"])
    hidden, weight, targets, grad = make_inputs(case)

    def variant(way: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[harness.Lap], None]:
        def run(lap: harness.Lap) -> None:
            logp = way(hidden, weight, targets)
            lap("forward")
            torch.autograd.grad(logp, (hidden, weight), grad)
            lap("forward_backward")

        return run

    variants = {name: variant(way) for name, way in WAYS.items()}
    return harness.compare(variants, baseline="plain", repetitions=repetitions)


def measure_memory(case: dict[str, Any], way: str) -> int:
    hidden, weight, targets, grad = make_inputs(case)

    def run() -> None:
        torch.autograd.grad(WAYS[way](hidden, weight, targets), (hidden, weight), grad)

    return harness.peak_growth_bytes(run)


def measure_rounding(case: dict[str, Any]) -> dict[str, dict[str, float]]:
    case = case | {"tokens": min(EXACT_TOKENS, case["tokens"])}
    hidden, weight, targets, grad = make_inputs(case)

    def results(way: Callable[[Tensor, Tensor, Tensor], Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = hidden.detach().to(dtype).requires_grad_(), weight.detach().to(dtype).requires_grad_()
        logp = way(*leaves, targets)
        return [logp.detach(), *torch.autograd.grad(logp, leaves, grad.to(logp.dtype))]

    exact = results(plain, torch.float64)
    ways = {name: results(way, hidden.dtype) for name, way in WAYS.items()}
    names = ("logp", "grad_hidden", "grad_weight")
    return {
        way: {name: gap(x, y) for name, x, y in zip(names, found, exact, strict=True)} for way, found in ways.items()
    }


def gap(x: Tensor, exact: Tensor) -> float:
    return float(f"{float((x.double() - exact).abs().max() / exact.abs().max()):.3g}")


def in_own_process(case: dict[str, Any], way: str) -> int:
    command = [sys.executable, __file__, "--memory-of", way, json.dumps(case)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(case: dict[str, Any], repetitions: int) -> dict[str, Any]:
    memory = {way: in_own_process(case, way) for way in WAYS}
    load = os.getloadavg()[0]
    time = measure_time(case, repetitions) if repetitions else {way: {} for way in WAYS}
    return {
        **case,
        "repetitions": repetitions,
        "load_1min": [round(load, 1), round(os.getloadavg()[0], 1)],
        "peak_memory_bytes": memory,
        "peak_memory_ratio": round(memory["tiled"] / memory["plain"], 4),
        "time": time,
        "rounding": measure_rounding(case),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write, whole again after every case")
    parser.add_argument("--vocabulary", type=int, default=129280)
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--repetitions", type=int, default=5, help="of the timing; 0: memory and rounding alone")
    parser.add_argument("--threads", type=int, nargs="+", default=[os.cpu_count() or 1])
    parser.add_argument("--memory-of", nargs=2, metavar=("WAY", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    preload = openmp.preload()
    if preload:  # as the trainer does it
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **preload})
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    if options.memory_of:
        print(measure_memory(json.loads(options.memory_of[1]), options.memory_of[0]))
        return
    sources = [Path(file).resolve() for file in (__file__, harness.__file__, logprob.__file__)]
    about = {"about": " ".join((__doc__ or "").split()), **harness.provenance(["torch", "r1mega"], sources)}
    about["openmp"] = "Intel's" if "libiomp5" in os.environ.get("LD_PRELOAD", "") else "PyTorch's own"
    cases = []
    names = ("dtype", "hidden", "tokens", "threads")
    for values in itertools.product(*(getattr(options, name) for name in names)):
        case = {"vocabulary": options.vocabulary, **dict(zip(names, values, strict=True))}
        cases.append(measure(case, options.repetitions))
        print(summary(cases[-1]), flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.out, {**about, "cases": cases})


def summary(found: dict[str, Any]) -> str:
    case = f"H {found['hidden']} T {found['tokens']} {found['dtype']} {found['threads']} threads"
    parts = [f"{case}: memory {found['peak_memory_ratio']:.3f}"]
    for lap, ratios in found["time"]["tiled"].items():
        parts.append(f"{lap} {ratios['wall_ratio']['median']:.2f} (cpu {ratios['cpu_ratio']['median']:.2f})")
    return ", ".join(parts) + f" of the plain way's; load {found['load_1min']}"


if __name__ == "__main__":
    main()
