"""GRPO on a dense tiny Qwen2 through the command line: real Megatron-core, real vLLM, every kind of two ranks.

Two tensor-parallel ranks sample live; one rank and two data-parallel ones learn from the same answers.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from safetensors.torch import load_file

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
DENSE = ROOT / "configs/tiny/dense"
BASE = ("num_steps=60", "documents_per_step=32", "data.num_documents=1920", "optimizer.warmup_steps=5",
        "save.every_steps=60")  # fmt: skip
RL = ("num_steps=4", "rollout.num_prompts=4", "rollout.num_minibatches=2", "objective.group_size=8",
      "objective.reference_refresh_steps=2", "objective.constant_groups=keep", "sampling.max_new_tokens=32",
      "sampling.temperature=0.7", "evaluation.questions.0.num=8", "evaluation.every_steps=2", "save.every_steps=4",
      "optimizer.warmup_steps=1", "questions.0.num=64", "objective.kl_coef=0.1")  # fmt: skip


def r1mega(config: Path, run_dir: Path, *settings: str, ranks: int = 1) -> None:
    sets = [part for s in settings for part in ("--set", s)]
    done = warm.run("run", str(config), "--run-dir", str(run_dir), *sets, cold=ranks > 1)
    assert done.returncode == 0, done.stdout + done.stderr


def rows(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("dense") / "base"
    r1mega(DENSE / "0_base.toml", run_dir, *BASE)
    return run_dir


def test_a_dense_base_is_pretrained_and_knows_no_experts(base: Path):
    train = rows(base, "train")
    assert train[-1]["loss"] < 0.8 * train[0]["loss"]
    assert not [key for row in train for key in row if "experts" in key or "mtp" in key]
    assert not (base / "experts.jsonl").exists()
    assert json.loads((base / "hf/config.json").read_text())["model_type"] == "qwen2"


def learn(base: Path, run_dir: Path, layout: str, ranks: int, *more: str) -> Path:
    settings = (f"model.path={base / 'hf'}", *RL, f"cluster.trainer.{layout}", "cluster.trainer.threads=1", *more)
    r1mega(DENSE / "1_rl.toml", run_dir, *settings, ranks=ranks)
    return run_dir


@pytest.fixture(scope="module")
def live(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of two tensor-parallel ranks with a server."""
    return learn(base, tmp_path_factory.mktemp("live") / "rl", "tp=2", 2, "rollout.keep_journal=true")


def test_grpo_trains_pushes_and_agrees_with_the_engine(base: Path, live: Path):
    trains_and_agrees(base, live)
    # So both rollouts came from the engine, the second one from pushed weights.
    assert sum("seconds/push" in row for row in rows(live, "train")) == 2
    assert (live / "logs/vllm.log").is_file()


@pytest.mark.parametrize(("layout", "ranks"), [("dp=1", 1), ("dp=2", 2)])
def test_other_layouts_agree_with_the_engine_and_learn_the_same(
    base: Path, live: Path, tmp_path: Path, layout: str, ranks: int
):
    run_dir = tmp_path / "rl"
    shutil.copytree(live / "journal", run_dir / "journal")
    learn(base, run_dir, layout, ranks)
    assert not (run_dir / "logs/vllm.log").exists()
    trains_and_agrees(base, run_dir)
    for mine, theirs in zip(rows(run_dir, "train"), rows(live, "train"), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3, abs=1e-4)


def trains_and_agrees(base: Path, run_dir: Path) -> None:
    train = rows(run_dir, "train")
    assert [row["step"] for row in train] == [1, 2, 3, 4]
    for row in train:
        assert math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])
        # A dense model has no router that could tie, so the bound holds for every token; in the second rollout, which
        # pushed weights have sampled, as well.
        assert 0 < row["mismatch/max"] < 1e-4
        assert row["mismatch/answers_after_tie"] == 0
    assert max(row["grad_norm"] for row in train) > 0
    assert [row["step"] for row in rows(run_dir, "eval")] == [0, 2, 4]
    before, after = (load_file(folder / "hf/model.safetensors") for folder in (base, run_dir))
    assert before.keys() == after.keys()
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert {"model.embed_tokens.weight", "model.layers.2.self_attn.q_proj.bias"} <= set(moved)
