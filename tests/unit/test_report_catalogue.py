"""No curve of the report asks for a metric that nobody logs: held to the lines that stages really write."""

import json
from pathlib import Path

import pytest
import torch
from grpo_run import CLUSTER, Run, base, plain
from recording import RecordingPolicy, recorded_saves

from r1mega.algos.preference import pairwise_loss, shares
from r1mega.buffers import Float32s, Int32s
from r1mega.diagnostics.load_balance import metrics
from r1mega.diagnostics.preferences import of_pairs
from r1mega.diagnostics.rounded_mismatch import KLWatch, measure_spread, spread
from r1mega.diagnostics.settings import Mismatch
from r1mega.recipe.sft import SFT
from r1mega.report.catalogue import FIGURES
from r1mega.rewards.accuracy import Accuracy
from r1mega.rewards.callers import connected
from r1mega.rewards.endpoint_reward import RewardEndpoint
from r1mega.rewards.judge import Judge
from r1mega.rewards.registry import REWARDS
from r1mega.rewards.rubric import Rubric
from r1mega.rewards.signal import signal_metrics
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import ExpertLoad, Group, LayerLoad, Prompt, Sample, Verdict, VerdictStatus

__all__ = ["base", "plain"]  # fixtures


@pytest.fixture
def validated(base: Path, tmp_path: Path) -> list[dict]:
    """The lines of an SFT run that validates itself."""
    from r1mega.stages import sft

    for name in ("seen", "unseen"):
        rows = ({"prompt": f"{name} {i} + 1", "response": f"{i + 1}"} for i in range(4))
        (tmp_path / name).with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    validation = {"files": [str(tmp_path / "unseen.jsonl")], "every_steps": 1}
    config = SFT.model_validate({
        "stage": "sft", "model": {"path": str(base)}, "num_epochs": 1, "batch_size": 4, "optimizer": {"lr": 0.1},
        "data": {"files": [str(tmp_path / "seen.jsonl")], "max_tokens": 64}, "batch": {"chunk_tokens": 64},
        "validation": validation, "save": {"every_steps": 1}, "wandb": {"mode": "disabled"},
    })  # fmt: skip
    run_dir = RunDir(tmp_path / "sft", config, CLUSTER, resume=False)
    with recorded_saves():
        sft.run(config, CLUSTER, run_dir, build=RecordingPolicy)  # type: ignore[arg-type]
    run_dir.close()
    return run_dir.metrics()


def test_every_curve_is_of_a_metric_that_is_logged(plain: Run, validated: list[dict], make_policy, documents):
    rows = [row for kind in ("train", "eval", "eval_greedy") for row in plain.rows(kind)] + validated
    logged = {(row["kind"], name) for row in rows for name in row}
    # The model of these runs has neither MTP layers nor experts; those of others log on the lines of steps.
    layer = LayerLoad((3, 1), tokens=2, entropy=0.5, aux_loss=1.0, bias=0.0, bias_change=0.0)
    learnt = make_policy(mtp="joint").forward_backward(documents, lambda logp, *_: (logp.sum(), {}))
    logged |= {("train", name) for name in (*learnt, *metrics(ExpertLoad(2, {"1": layer})))}
    logged |= {("train", f"reward/{kind}") for kind in REWARDS}  # a config's rewards log under their names
    # These questions' verifier has published no rate; that of mathematics has.
    right, wrong = Verdict(VerdictStatus.SCORED, 1.0, {"a": 1.0}), Verdict(VerdictStatus.SCORED, 0.0, {"a": 0.0})
    group = Group(Prompt("p", "math", "q", "1", Int32s([1])), (), (right, wrong))
    logged |= {("train", n) for n in signal_metrics([group], Rubric({"a": Accuracy()}, "zero"), 0.1, divided=True)}
    # No endpoint gives these runs a reward.
    with connected({"judge": Judge(endpoint=RewardEndpoint(url="http://judge/v1", model="m"))}, None) as callers:
        logged |= {("train", name) for name in callers.take_figures()}
    # Both sides of these runs compute in fp32.
    sample = Sample(Int32s([1]), Int32s([2]), 0.0, behaviour_logp=Float32s([-1.0]), old_logp=Float32s([-1.0]))
    watch = KLWatch(Mismatch(window=12), rollouts=12)
    rising = [watch.see(kl)[0] for kl in range(12)][-1]
    logged |= {("train", name) for name in (*spread([measure_spread([sample])]), *rising)}
    # A reward model's steps and validations.
    fields = {"weight": torch.ones(4), "margin": torch.zeros(4), "tokens": torch.tensor([1.0, 2.0, 2.0, 1.0])}
    found = pairwise_loss(torch.ones(4), fields, torch.tensor([0, 0, 1, 1]))[1]
    logged |= {("train", name) for name in shares({name: float(value) for name, value in found.items()})}
    quality = of_pairs([(1.0, 0.0)] * 2, [(1, 2), (2, 1)])
    logged |= {("validation", f"validation/{name}") for name in quality.figures}
    curves = [curve for figure in FIGURES for curve in figure.curves]
    asked = {(curve.kind, curve.key) for curve in curves}
    asked |= {(curve.kind, f"{curve.key}_{end}") for curve in curves if curve.bars for end in ("low", "high")}
    assert len(asked) > 30 and asked <= logged, asked - logged
