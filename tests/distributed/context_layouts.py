"""Runs under torchrun: what `layouts.run` does, with packed rows at context-parallel layouts. `OUT LAYOUT...`."""

import sys
from pathlib import Path

import torch
from layouts import run

from r1mega.config.schema import TrainerLayout
from r1mega.trainer import mesh as meshes


def main(out: Path, layouts: list[str]) -> None:
    for text in layouts:
        layout = TrainerLayout(**{k: int(v) for k, v in (p.split("=") for p in text.split(",") if p)})
        meshes.start(layout, device="cpu", seed=0)
        if layout.cp > 1:
            from packed_attention import in_place_of_the_kernel

            with in_place_of_the_kernel():
                found = run(layout)
        else:
            found = run(layout)
        if meshes.dist.get_rank() == 0:
            torch.save(found, out / f"{text}.pt")
    meshes.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
