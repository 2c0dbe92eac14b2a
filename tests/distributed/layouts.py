"""On every rank: GRPO updates at a layout, written down for comparison.

`of(OUT, LAYOUT)`, or `torchrun --nproc-per-node N layouts.py OUT LAYOUT`, with a layout such as tp=2 or pp=2,dp=2:
three GRPO updates on the same samples and MTP training beside them; loss, grad norm, loads of
experts, every gradient and every weight, gathered to whole tensors under Hugging Face names, go to OUT/LAYOUT.pt.
"""

import collections
import dataclasses
import itertools
import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rank_pool import Pool

from r1mega.algos.grpo import GRPOLoss, documents, weighted
from r1mega.buffers import Float32s, Int32s
from r1mega.config.cluster import Cluster, TrainerLayout
from r1mega.config.training import Batch, Optimizer
from r1mega.families.deepseek_v3 import read
from r1mega.layout.device_laws import layout_faults
from r1mega.samples import Document, Sample
from r1mega.trainer import mesh as meshes

MODEL = Path(__file__).parents[2] / "configs/tiny/deepseek_v3.json"
NUM_STEPS = 3
FULL = "recompute.granularity=full"
PARTS = "recompute.granularity=selective,recompute.modules=core_attn+layernorm+mlp+moe+shared_experts"
TWO_RANKS = (
    "dp=2",
    "dp=2,distributed_optimizer=false",
    "tp=2",
    "pp=2",
    "pp=2,vpp=2",
    "dp=2,ep=2",
    "dp=2,ep=2,dispatcher=allgather",
    "tp=2,ep=2",
)


def spec():
    """The tiny model with an even number of layers, which pipelines need."""
    return read({**json.loads(MODEL.read_text()), "num_hidden_layers": 4, "initializer_range": 0.1})


def parse(text: str) -> TrainerLayout:
    """A layout written as tp=2,pp=2, with recompute.granularity=full and a + b for lists where it has them."""
    fields: dict = {}
    for name, value in (part.split("=") for part in text.split(",") if part):
        section, _, inner = name.rpartition(".")
        within = fields.setdefault(section, {}) if section else fields
        within[inner] = value.split("+") if inner == "modules" else _value(value)
    layout = TrainerLayout.model_validate(fields)
    assert not layout_faults(Cluster(device="cpu", trainer=layout))
    return layout


def _value(text: str) -> int | bool | str:
    try:
        return json.loads(text)
    except ValueError:
        return text


def samples(num: int, seed: int) -> list[Sample]:
    rng = random.Random(seed)
    drawn = []
    for _ in range(num):
        prompt = Int32s(rng.randrange(3, 384) for _ in range(rng.randint(3, 20)))
        answer = Int32s(rng.randrange(3, 384) for _ in range(rng.randint(2, 40)))
        logp = Float32s(-rng.random() * 5 - 3 for _ in answer)
        drawn.append(Sample(prompt, answer, rng.gauss(0, 1), behaviour_logp=logp))
    return drawn


def run(layout: TrainerLayout, device: str = "cpu", chunks_per_micro_batch: int = 3) -> dict:
    mesh = meshes.start(layout, device=device, seed=0)
    from r1mega.trainer.policy import Policy
    from r1mega.trainer.scatter import scatter
    from r1mega.weights.source import PolicySource

    policy = Policy.build(
        spec(), mesh, Optimizer(lr=1e-4, weight_decay=0.01),
        Batch(chunk_tokens=64, chunks_per_micro_batch=chunks_per_micro_batch),
        mtp="joint", mtp_loss_weight=0.3, expert_bias_rate=1e-3, seed=0,
    )  # fmt: skip
    policy.refresh_reference()
    source = PolicySource(policy, include_mtp=True)
    loss = GRPOLoss(clip_low=0.2, clip_high=0.2, kl_coef=0.05)
    minibatches = [weighted(samples(13, seed), "token_mean", max_length=64) for seed in range(NUM_STEPS)]
    share = scatter(mesh, minibatches if mesh.first else None, 64)
    found: dict = {"loss": [], "norm": [], "gradients": [], "logp": [], "experts": []}
    for minibatch in share:
        bare = [Document(s.prompt_ids + s.completion_ids, len(s.prompt_ids)) for s in minibatch]
        old = policy.logprobs(bare, temperature=0.7)
        ref = policy.logprobs(bare, temperature=0.7, reference=True)
        attached = [
            dataclasses.replace(s, old_logp=Float32s(o.numpy()), ref_logp=Float32s(r.numpy()))
            for s, o, r in zip(minibatch, old, ref, strict=True)
        ]
        scored = mesh.gather_over_data({s.completion_ids: s.old_logp.tolist() for s in attached})
        found["logp"].append({k: v for part in scored for k, v in part.items()})
        found["loss"].append(policy.forward_backward(documents(attached), loss, temperature=0.7))
        policy.reduce_gradients(everywhere=True)
        gradients = policy.gradients()
        gradients |= {
            n: torch.zeros_like(t, dtype=torch.float32) for n, t in policy.state().items() if n not in gradients
        }
        found["gradients"].append({n: t.clone() for n, t in source.stream(gradients)})
        found["norm"].append(policy.optim_step(1e-4, reduced=True))
        found["experts"].append(policy.expert_load)
    found["stream"] = streamed(source, mesh)
    found["weights"] = {n: t.clone() for n, t in source}
    everywhere = mesh.gather({n: t.sum(dtype=torch.float64).item() for n, t in
                              PolicySource(policy, include_mtp=True, everywhere=True)})  # fmt: skip
    found["everywhere"] = [sums == everywhere[0] for sums in everywhere], everywhere[0]
    found["margins"] = [m.clone() for m in policy.routing_margins([Document(Int32s(range(5, 40)))])]
    return found


def streamed(source, mesh) -> dict:
    """What a pass over the source takes: the most bytes that each rank's tensors had beside the weights at once, and
    those of the largest tensor."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        collections.deque(source, maxlen=0)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    peak = max(itertools.accumulate((e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())), initial=0))
    return {"peaks": mesh.gather(peak), "largest": max(4 * math.prod(row.shape) for row in source.rows)}


def of(out: Path, layout: str) -> None:
    found = run(parse(layout))
    if meshes.dist.get_rank() == 0:
        torch.save(found, out / f"{layout or 'one'}.pt")


def in_smaller_micro_batches(out: Path, name: str) -> None:
    """One rank's training, rounded at other places, to OUT/NAME.pt."""
    torch.save(run(parse(""), chunks_per_micro_batch=1), out / f"{name}.pt")


def trained(folder: Path, layout: str) -> dict:
    """What `of` found of a layout."""
    return torch.load(folder / f"{layout or 'one'}.pt", weights_only=False)


def train(ranks: Pool, num_ranks: int, folder: Path, layouts: Sequence[str]) -> dict[str, dict]:
    """What each layout finds in a pool's ranks, by its name; "one" is that of a single rank."""
    ranks.run(num_ranks, "layouts.of", folder, layouts)
    return {layout or "one": trained(folder, layout) for layout in layouts}


if __name__ == "__main__":
    of(Path(sys.argv[1]), sys.argv[2])
    meshes.stop()
