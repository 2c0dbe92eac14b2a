"""On every rank: one of the models in FOLDER (`family_models.write`) at a layout.

`of(FOLDER, LAYOUT:NAME)`: the log-probability of every id at every position, the tensors exported again, loss,
gradient and its norm over three steps (the MTP layers trained jointly where there are some), and the tensors after
them go to FOLDER/LAYOUT.NAME.pt.
"""

import dataclasses
from pathlib import Path

import torch
from family_models import documents
from layouts import parse

from r1mega.config.cluster import TrainerLayout
from r1mega.config.training import Batch, Optimizer
from r1mega.families.registry import read_model
from r1mega.layout.laws import check_layout
from r1mega.trainer import mesh as meshes

BATCH = Batch(chunk_tokens=200, chunks_per_micro_batch=1)


def every_logp(policy) -> list[torch.Tensor]:
    """[tokens - 1, vocabulary] of each document: every id is a target of every position."""
    from r1mega.trainer import forward
    from r1mega.trainer.batch import Targets, micro_batches

    size, layout = policy.spec.vocab_size, policy.mesh.layout
    found, every = {}, []
    batches = micro_batches(documents(), BATCH, mtp_depths=0, multiple=layout.pp if layout.vpp > 1 else 1)
    for batch in batches:
        rows, ids = batch.targets.rows, torch.arange(size)
        targets = Targets(rows.repeat_interleave(size), ids.repeat(len(rows)))
        every.append(dataclasses.replace(batch, targets=targets))
    scored = forward.score(policy.model_chunks, policy.mesh, every, temperature=1.0)
    for batch, logps in zip(batches, scored, strict=True):
        lengths = [documents()[i].num_targets for i in batch.documents]
        found |= dict(zip(batch.documents, logps.view(-1, size).split(lengths), strict=True))
    return [found[i].clone() for i in sorted(found)]


def nll(logp, fields, doc):
    return -(fields["weight"] * logp).sum(), {}


def run(layout: TrainerLayout, folder: Path) -> dict:
    mesh = meshes.start(layout, device="cpu", seed=0)
    from r1mega.trainer.policy import Policy
    from r1mega.weights.hf_io import load_into
    from r1mega.weights.source import PolicySource

    spec = read_model(folder)
    check_layout(spec, layout, BATCH)
    policy = Policy.build(
        spec, mesh, Optimizer(lr=1e-3, weight_decay=0.1), BATCH,
        mtp="joint", mtp_loss_weight=0.3, expert_bias_rate=0.0, seed=0,
    )  # fmt: skip
    load_into(policy, folder)
    source = PolicySource(policy, include_mtp=True)
    found: dict = {"exported": {n: t.clone() for n, t in source}, "logp": every_logp(policy)}
    share = documents() if layout.dp == 1 else documents()[mesh.data_rank :: layout.dp]
    found |= {"loss": [], "norm": [], "gradients": []}
    for _ in range(3):
        found["loss"].append(policy.forward_backward(share, nll))
        policy.reduce_gradients(everywhere=True)
        gradients = {n: torch.zeros_like(t) for n, t in policy.state().items()} | policy.gradients()
        found["gradients"].append({n: t.clone() for n, t in source.stream(gradients)})
        found["norm"].append(policy.optim_step(1e-4, reduced=True))
    found["stepped"] = {n: t.clone() for n, t in source}
    # Both pipeline stages' copies of a tied embedding, and the zero rows of a padded one.
    embedding = policy.state().get("embedding.word_embeddings.weight")
    found["embeddings"] = mesh.gather(None if embedding is None else embedding.detach().clone())
    return found


def of(folder: Path, task: str) -> None:
    text, name = task.split(":")
    found = run(parse(text), folder / name)
    if meshes.dist.get_rank() == 0:
        torch.save(found, folder / f"{text or 'one'}.{name}.pt")
