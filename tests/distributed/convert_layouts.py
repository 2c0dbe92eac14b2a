"""On every rank: a converted folder loaded into a layout, and a checkpoint of that layout saved.

`of(OUT, LAYOUT:NAME)`: OUT/NAME/megatron is loaded by the policy, and by Megatron's own
`dist_checkpointing.load`. The policy's weights, gathered whole under their Hugging Face names, go to
OUT/NAME/LAYOUT.pt, and its checkpoint to OUT/NAME/step_LAYOUT.
"""

from pathlib import Path

import torch
from layouts import parse

from r1mega.config.cluster import TrainerLayout
from r1mega.config.training import Batch, Optimizer
from r1mega.families.registry import read_model
from r1mega.trainer import mesh as meshes


def loaded_by_megatron(policy, folder: Path) -> dict:
    """This rank's tensors by the names of `Policy.state`."""
    from megatron.core import dist_checkpointing, parallel_state

    from r1mega.trainer.network.names import by_whole_model_names

    metadata = {
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "singleton_local_shards": False,
        "non_homogeneous_layers": True,
    }
    # One load: a tensor that two virtual stages hold has its owner in only one of them. A stage may hold none.
    wanted = {i: network.sharded_state_dict(metadata=metadata) for i, network in enumerate(policy.networks)}
    found = dist_checkpointing.load(wanted, str(folder))
    whole: dict = {}
    for i, network in enumerate(policy.networks):
        tensors = {name: t for name, t in found.get(i, {}).items() if isinstance(t, torch.Tensor)}
        whole |= by_whole_model_names(network, tensors)
    return whole


def run(layout: TrainerLayout, folder: Path, text: str) -> None:
    mesh = meshes.start(layout, device="cpu", seed=0)
    from r1mega.trainer.checkpoint.checkpointer import Checkpointer
    from r1mega.trainer.policy import Policy
    from r1mega.weights.megatron_io import load_weights
    from r1mega.weights.source import PolicySource

    policy = Policy.build(
        read_model(folder / "hf"), mesh, Optimizer(lr=1e-4), Batch(chunk_tokens=64, chunks_per_micro_batch=3),
        mtp="joint", mtp_loss_weight=0.3, expert_bias_rate=1e-3, seed=0,
    )  # fmt: skip
    load_weights(policy, folder / "megatron")
    theirs, ours = loaded_by_megatron(policy, folder / "megatron"), policy.state()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    found = {name: tensor.clone() for name, tensor in PolicySource(policy, include_mtp=True)}
    if mesh.first:
        torch.save(found, folder / f"{text}.pt")
    Checkpointer(policy).save(folder / f"step_{text}", {})


def of(out: Path, task: str) -> None:
    text, name = task.split(":")
    run(parse(text), out / name, text)
