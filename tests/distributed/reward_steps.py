"""On every rank: one GRPO update from what two reward models say, at a layout.

`of(FOLDER, LAYOUT)`, with FOLDER/a and FOLDER/b reward models and a layout such as tp=2: the rewards of all answers,
their parts, the counts, and the update's loss and norm go to FOLDER/LAYOUT.json.
"""

import json
import random
from pathlib import Path

from layouts import MODEL, parse

from r1mega.algos.advantage import samples_from_groups
from r1mega.algos.grpo import GRPOLoss, documents, weighted
from r1mega.buffers import Float32s, Int32s
from r1mega.config.training import Batch, Optimizer
from r1mega.families.registry import read_model
from r1mega.rewards.format import Format
from r1mega.rewards.reward_model import LearntReward
from r1mega.rewards.rubric import Rubric
from r1mega.samples import Completion, FinishReason, Group, Prompt
from r1mega.trainer import mesh as meshes

WORDS = ["the", "sum", "of", "two", "and", "two", "is", "four", "so", "it", "cannot", "be", "five"]


def rubric(folder: Path) -> Rubric:
    helpful = {"path": folder / "a", "scope": "summary", "domains": ["helpful"]}
    harmless = {"path": folder / "b", "scope": "response", "squash": "sigmoid", "weight": 2.0}
    learnt = {"helpful": LearntReward.model_validate(helpful), "harmless": LearntReward.model_validate(harmless)}
    return Rubric({"format": Format(), **learnt}, "judge")


def groups(of: Rubric) -> list[Group]:
    """Six groups of four answers of 2 to 30 words; one in five has no summary."""
    rng, found = random.Random(3), []
    for i in range(6):
        prompt = Prompt(
            str(i), "none", f"question {i}", "", Int32s([1, 2, i + 3]), domain=["helpful", "general"][i % 2]
        )
        answers = []
        for j in range(4):
            said = " ".join(rng.choices(WORDS, k=rng.randint(2, 30)))
            closed = "</think>" if (4 * i + j) % 5 else ""
            ids = Int32s(rng.randrange(3, 384) for _ in range(rng.randint(2, 40)))
            logp = Float32s.repeated(-0.5, len(ids))
            text = f"<think>{said}{closed}<answer>{said[::-1]}</answer>"
            answers.append(Completion(str(i), j, ids, logp, text, FinishReason.STOP, 0, j))
        found.append(Group(prompt, tuple(answers), of.judge(prompt, answers, 0)))
    return found


def of(folder: Path, layout: str) -> None:
    mesh = meshes.start(parse(layout), device="cpu", seed=0)
    from r1mega.stages.scorers import InWords
    from r1mega.trainer.policy import Policy
    from r1mega.trainer.rescore import attach_logprobs
    from r1mega.trainer.reward_model import RewardModel
    from r1mega.trainer.scatter import scatter
    from r1mega.trainer.scoring import scored_by_models

    policy = Policy.build(
        read_model(MODEL.parent / "qwen2.json"), mesh, Optimizer(lr=1e-3),
        Batch(chunk_tokens=64, chunks_per_micro_batch=3),
        mtp="off", mtp_loss_weight=0.0, expert_bias_rate=0.0, seed=0,
    )  # fmt: skip
    rewards = rubric(folder)
    scorers = {
        name: InWords(RewardModel(folder / which, mesh, 64, 3), folder / which)
        for name, which in (("helpful", "a"), ("harmless", "b"))
    }
    asked = groups(rewards) if mesh.first else None
    judged, counts = scored_by_models(mesh, asked, rewards, scorers, step=0, chunk_tokens=64)
    samples = samples_from_groups(judged or (), std="population", constant_groups="drop")
    minibatches = [weighted(samples, "sequence_mean", max_length=40)] if mesh.first else None
    shares = attach_logprobs(policy, scatter(mesh, minibatches, 64), temperature=1.0, reference=False)
    learnt = policy.forward_backward(documents(shares[0]), GRPOLoss(clip_low=0.2, clip_high=0.2, kl_coef=0.0))
    norm = policy.optim_step(1e-3)
    if mesh.first:
        found = {"rewards": [[v.reward for v in group.verdicts] for group in judged or ()], "counts": counts}
        found |= {"parts": [dict(v.parts) for group in judged or () for v in group.verdicts]}
        found |= {"loss": learnt["loss"], "norm": norm}
        (folder / f"{layout or 'one'}.json").write_text(json.dumps(found))
