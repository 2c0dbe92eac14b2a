"""Runs under torchrun: a converted folder loaded into several layouts, and a checkpoint of each layout saved.

`convert_layouts.py OUT CONVERTED LAYOUT...`: for each layout the loaded weights, gathered whole under their Hugging
Face names, go to OUT/LAYOUT.pt, and the policy's checkpoint to OUT/step_LAYOUT.
"""

import sys
from pathlib import Path

import torch
from layouts import spec

from r1mega.config.schema import Batch, Optimizer, TrainerLayout
from r1mega.trainer import mesh as meshes


def main(out: Path, converted: Path, layouts: list[str]) -> None:
    for text in layouts:
        layout = TrainerLayout(**{k: int(v) for k, v in (p.split("=") for p in text.split(",") if p)})
        mesh = meshes.start(layout, device="cpu", seed=0)
        from r1mega.trainer.policy import Policy
        from r1mega.weights.megatron_io import load_weights
        from r1mega.weights.source import PolicySource

        policy = Policy.build(
            spec(), mesh, Optimizer(lr=1e-4), Batch(chunk_tokens=64, chunks_per_micro_batch=3),
            mtp="joint", mtp_loss_weight=0.3, expert_bias_rate=1e-3, seed=0,
        )  # fmt: skip
        load_weights(policy, converted)
        found = {name: tensor.clone() for name, tensor in PolicySource(policy, include_mtp=True)}
        if mesh.first:
            torch.save(found, out / f"{text or 'one'}.pt")
        policy.save(out / f"step_{text or 'one'}", {})
    meshes.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
