"""On every rank: training that is saved at one layout and continued at another, written down for comparison.

`act(OUT, save=LAYOUT)` or `act(OUT, load=FROM/LAYOUT)`, where a layout is such as tp=2,pp=2 or empty. `save` takes
two GRPO updates, saves to OUT/LAYOUT, takes two more and writes down their loss and norm and the weights after them;
`load` loads OUT/FROM at a layout, saves that again to OUT/FROM-LAYOUT, and takes the same two; `fail=LAYOUT` lets the
last rank's disk be full and writes what the first rank says of it to OUT/failed.txt.
"""

import dataclasses
import errno
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
from layouts import parse, samples, spec

from r1mega.algos.grpo import GRPOLoss, documents, weighted
from r1mega.buffers import Float32s
from r1mega.config.cluster import TrainerLayout
from r1mega.config.training import Batch, Optimizer
from r1mega.samples import Document
from r1mega.trainer import mesh as meshes

BEFORE = AFTER = 2


def build(layout: TrainerLayout, seed: int):
    from r1mega.trainer.policy import Policy

    mesh = meshes.start(layout, device="cpu", seed=seed)
    return Policy.build(
        spec(), mesh, Optimizer(lr=1e-3, weight_decay=0.01), Batch(chunk_tokens=64, chunks_per_micro_batch=3),
        mtp="joint", mtp_loss_weight=0.3, expert_bias_rate=1e-3, seed=seed,
    )  # fmt: skip


def train(policy, steps: range) -> dict:
    from r1mega.trainer.scatter import scatter
    from r1mega.weights.source import PolicySource

    loss = GRPOLoss(clip_low=0.2, clip_high=0.2, kl_coef=0.05)
    minibatches = [weighted(samples(13, seed), "token_mean", max_length=64) for seed in steps]
    found: dict = {"loss": [], "norm": []}
    for minibatch in scatter(policy.mesh, minibatches if policy.mesh.first else None, 64):
        bare = [Document(s.prompt_ids + s.completion_ids, len(s.prompt_ids)) for s in minibatch]
        old = policy.logprobs(bare, temperature=0.7)
        ref = policy.logprobs(bare, temperature=0.7, reference=True)
        attached = [
            dataclasses.replace(s, old_logp=Float32s(o.numpy()), ref_logp=Float32s(r.numpy()))
            for s, o, r in zip(minibatch, old, ref, strict=True)
        ]
        found["loss"].append(policy.forward_backward(documents(attached), loss, temperature=0.7))
        found["norm"].append(policy.optim_step(1e-3))
    found["weights"] = {n: t.clone() for n, t in PolicySource(policy, include_mtp=True)}
    return found


def fail(out: Path, policy, checkpointer) -> None:
    from r1mega.errors import CheckpointError
    from r1mega.trainer.checkpoint import checkpointer as saving

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    last = policy.mesh.rank == policy.mesh.world_size - 1
    with mock.patch.object(saving, "write_part", full) if last else nullcontext():
        checkpointer.save(out / "failed" / "step_1", {}, asynchronous=True)
        train(policy, range(1))
        if policy.mesh.first:
            try:
                checkpointer.wait()
            except CheckpointError as error:
                (out / "failed.txt").write_text(str(error))
        else:
            checkpointer.wait()
        policy.mesh.barrier()


def act(out: Path, action: str) -> None:
    kind, _, rest = action.partition("=")
    start, _, text = rest.partition("/") if kind == "load" else ("", "", rest)
    policy = build(parse(text), seed=5 if kind == "load" else 0)
    from r1mega.trainer.checkpoint.checkpointer import Checkpointer

    checkpointer = Checkpointer(policy)
    if kind in ("save", "fail"):
        policy.refresh_reference()
        train(policy, range(1))
        if kind == "fail":
            fail(out, policy, checkpointer)
            return
        train(policy, range(1, BEFORE))
        # The step after it begins while the checkpoint is being written.
        checkpointer.save(out / (text or "one"), {"step": BEFORE}, asynchronous=True)
        name = text or "one"
    else:
        assert checkpointer.load(out / start) == {"step": BEFORE}
        name = f"{start}-{text or 'one'}"
        checkpointer.save(out / name, {"step": BEFORE})
    found = train(policy, range(BEFORE, BEFORE + AFTER))
    checkpointer.wait()
    policy.mesh.barrier()
    if policy.mesh.first:
        torch.save(found, out / f"{name}.pt")
