"""On every rank: what `layouts.run` does, with packed rows at a context-parallel layout.

`of(OUT, LAYOUT)`, or `torchrun --nproc-per-node N context_layouts.py OUT LAYOUT... [--device cuda]`
"""

import sys
from pathlib import Path

import torch
from layouts import run

from r1mega.config.cluster import TrainerLayout
from r1mega.trainer import mesh as meshes


def of(out: Path, text: str, device: str = "cpu") -> None:
    sizes = {k: int(v) for k, v in (p.split("=") for p in text.split(",") if p)}
    layout = TrainerLayout(**sizes, dtype="fp32" if device == "cpu" else "bf16")
    meshes.start(layout, device=device, seed=0)
    if layout.cp > 1 and device == "cpu":
        from packed_attention import in_place_of_the_kernel

        with in_place_of_the_kernel():
            found = run(layout, device)
    else:
        found = run(layout, device)
    if meshes.dist.get_rank() == 0:
        torch.save(found, out / f"{text}.pt")


if __name__ == "__main__":
    *arguments, device = sys.argv[1:-2] + sys.argv[-1:] if "--device" in sys.argv else [*sys.argv[1:], "cpu"]
    for layout in arguments[1:]:
        of(Path(arguments[0]), layout, device)
    meshes.stop()
