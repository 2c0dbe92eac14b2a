"""On every rank: a model of scores trained at a layout, and scored with from its folder.

`of(OUT, LAYOUT:NAME)`: NAME is "tiny" (random weights, three updates on pairs) or a language model in OUT
(`family_models.write`) on which the score head begins (one update). Scores, loss, norm, gradients, weights and what
each rank holds go to OUT/LAYOUT.NAME.pt; one rank leaves OUT/NAME.hf, which the reward model of every layout reads.
"""

import contextlib
import sys
from pathlib import Path

import torch
from layouts import parse, spec

from r1mega.config.cluster import TrainerLayout
from r1mega.config.training import Batch, Optimizer
from r1mega.families.registry import read_model
from r1mega.families.score_head import with_score_head
from r1mega.layout.laws import model_faults
from r1mega.samples import Document
from r1mega.trainer import mesh as meshes

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from score_models import bradley_terry, make_pairs

BATCH = Batch(chunk_tokens=64, chunks_per_micro_batch=3)


def key(document: Document) -> tuple[int, ...]:
    return tuple(document.token_ids)


def trained(mesh, model, folder: Path, name: str, batch: Batch, checkpoint: str) -> dict:
    """What a policy finds on its way; with one rank it is exported, of two the tiny one is saved."""
    from r1mega.trainer.checkpoint.checkpointer import Checkpointer
    from r1mega.trainer.policy import Policy
    from r1mega.trainer.scatter import scatter_documents
    from r1mega.weights.hf_io import export, load_into
    from r1mega.weights.source import PolicySource

    tiny = name == "tiny"
    policy = Policy.build(
        model, mesh, Optimizer(lr=1e-4, weight_decay=0.01), batch,
        mtp="joint", mtp_loss_weight=0.3, expert_bias_rate=1e-3 if tiny else 0.0, seed=0,
    )  # fmt: skip
    if not tiny:
        load_into(policy, folder / name)
    source = PolicySource(policy, include_mtp=True)
    names = "scores", "loss", "norm", "gradients", "experts"
    found: dict = {what: [] for what in names} | {"held": mesh.gather(sorted(policy.state()))}
    for step in range(3 if tiny else 1):
        pairs = make_pairs(13, step, vocab=model.vocab_size) if mesh.first else None
        share = scatter_documents(mesh, pairs, batch.chunk_tokens)
        scored = {key(d): s.tolist() for d, s in zip(share, policy.scores(share), strict=True)}
        found["scores"].append({k: v for part in mesh.gather_over_data(scored) for k, v in part.items()})
        found["loss"].append(policy.forward_backward(share, bradley_terry))
        policy.reduce_gradients(everywhere=True)
        gradients = {n: torch.zeros_like(t) for n, t in policy.state().items()} | policy.gradients()
        found["gradients"].append({n: t.clone() for n, t in source.stream(gradients)})
        found["norm"].append(policy.optim_step(1e-4, reduced=True))
        found["experts"].append(policy.expert_load)
    found["weights"] = {n: t.clone() for n, t in source}
    if tiny and mesh.world_size == 2:
        Checkpointer(policy).save(folder / f"{checkpoint}.checkpoint", {"at": checkpoint})
    if mesh.world_size == 1 and batch is BATCH:
        export(policy, folder / f"{name}.hf", None)
    return found


def rewards(mesh, folder: Path, name: str, packed: bool) -> list[float]:
    """Of every text, in order, on every rank; each data-parallel rank scores some, and one of two has none twice."""
    from r1mega.trainer.batch import form_of
    from r1mega.trainer.reward_model import RewardModel

    model = RewardModel(folder / f"{name}.hf", mesh, 64, 2)
    if packed:
        model.form = form_of(mesh, packed=True)
    pairs = make_pairs(7, 20, vocab=model.spec.vocab_size)
    texts = [Document.of_texts([d.token_ids[a:b]]) for d in pairs for a, b in d.texts]
    mine = texts[mesh.data_rank :: mesh.layout.dp]
    parts = mesh.gather_over_data(model.score(mine))
    found = [0.0] * len(texts)
    for rank, part in enumerate(parts):
        found[rank :: mesh.layout.dp] = part
    lone = model.score(texts[:1] if mesh.data_rank == 0 else [])
    assert len(lone) == (1 if mesh.data_rank == 0 else 0)
    assert not lone or abs(lone[0] - found[0]) < 1e-5
    return found


def run(layout: TrainerLayout, folder: Path, name: str, batch: Batch = BATCH, checkpoint: str = "") -> dict:
    mesh = meshes.start(layout, device="cpu", seed=0)
    model = with_score_head(spec() if name == "tiny" else read_model(folder / name))
    with contextlib.ExitStack() as stack:
        if layout.cp > 1:
            from packed_attention import in_place_of_the_kernel

            stack.enter_context(in_place_of_the_kernel())
        fits = not model_faults(model, layout, batch)
        found = trained(mesh, model, folder, name, batch, checkpoint) if fits else {}
        return {**found, "rewards": rewards(mesh, folder, name, layout.cp > 1)}


def of(folder: Path, task: str) -> None:
    text, name = task.split(":")
    layout = parse(text) if "cp" not in text else TrainerLayout(cp=2)
    found = run(layout, folder, name, checkpoint=text)
    if meshes.dist.get_rank() == 0:
        torch.save(found, folder / f"{text or 'one'}.{name}.pt")


def loaded(folder: Path, _: str) -> None:
    """On one rank: the weights of every checkpoint that two have left, to FOLDER/loaded.pt by its layout."""
    mesh = meshes.start(parse(""), device="cpu", seed=0)
    from r1mega.trainer.checkpoint.checkpointer import Checkpointer
    from r1mega.trainer.policy import Policy
    from r1mega.weights.source import PolicySource

    policy = Policy.build(
        with_score_head(spec()), mesh, Optimizer(lr=1e-4, weight_decay=0.01), BATCH,
        mtp="off", mtp_loss_weight=0.0, expert_bias_rate=1e-3, seed=1,
    )  # fmt: skip
    found = {}
    for checkpoint in sorted(folder.glob("*.checkpoint")):
        layout = Checkpointer(policy).load(checkpoint)["at"]
        found[layout] = {n: t.clone() for n, t in PolicySource(policy, include_mtp=True)}
    torch.save(found, folder / "loaded.pt")


def in_smaller_micro_batches(folder: Path, name: str) -> None:
    """One rank's training, rounded at other places, to FOLDER/rounded.NAME.pt."""
    batch = Batch(chunk_tokens=64, chunks_per_micro_batch=1)
    torch.save(run(parse(""), folder, name, batch), folder / f"rounded.{name}.pt")
