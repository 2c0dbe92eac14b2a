"""The GRPO loop on a machine that rounds: who compares, what is corrected and refused, what a resumed run keeps."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from grpo_run import Run, base, check_by_hand, config
from recording import stop_signal
from recording_engine import Engines

from r1mega.config.cluster import Cluster
from r1mega.errors import MismatchError
from r1mega.recipe.load import load
from r1mega.runtime.interrupt import Interrupted

__all__ = ["base"]  # a fixture

ROOT = Path(__file__).parents[2]
FP32 = Cluster(device="cpu")
BF16: dict[str, Any] = {"dtype": "bf16"}
ROUNDS = Cluster(device="cpu", rollout=BF16)  # type: ignore[arg-type]
LAX = {"mean": 0.2, "kl": 0.1}
"""For an engine that is off by 0.1 x sin."""


def differences(run: Run, step: int) -> list[float]:
    """log pi_trainer - log pi_engine of every token that the rollout of two mini-batches before `step` has."""
    calls = [call for call in run.policies[0].calls if call.verb == "forward_backward"][step - 1 : step + 1]
    return [
        old - sampled
        for call in calls
        for d in call.documents
        for old, sampled in zip(d.fields["old_logp"], d.fields["behaviour_logp"], strict=True)
    ]


def test_a_run_that_rounds_is_held_to_its_rollouts_and_corrects_its_tokens(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    changes = {"mismatch": LAX, "objective": {"importance_cap": 1.03}}
    with caplog.at_level(logging.INFO):
        run = Run(tmp_path / "run", Engines(shift=0.1), ROUNDS).start(base, changes)
    for step in (1, 3, 5):
        off = differences(run, step)
        row = run.rows()[step - 1]
        assert row["mismatch/mean"] == pytest.approx(sum(map(abs, off)) / len(off)) and row["mismatch/mean"] > 0.02
        assert row["mismatch/kl"] == pytest.approx(sum(math.exp(d) - 1 - d for d in off) / len(off))
        assert row["mismatch/tokens"] == len(off) and row["mismatch/far"] == 0
        assert row["mismatch/p999"] <= row["mismatch/max"] < row["mismatch/p999"] * (1 + 1 / 128)
        assert "mismatch/max_untied" not in row
        assert max(off) > math.log(1.03)  # or no weight would be cut
    assert run.config.objective.importance == "truncated"
    check_by_hand(run, [4.0] * 6)  # with the weights of truncated importance sampling
    told = "cluster.rollout.dtype = bf16: engine and trainer are held to mismatch.mean = 0.2 and mismatch.kl = 0.1"
    assert f"{told} a rollout; objective.importance = truncated, importance_cap = 1.03" in caplog.text
    found = json.loads((run.folder / "summary.json").read_text())["mismatch"]
    rows = run.rows()
    assert (
        found["tokens_compared"] == sum(len(differences(run, step)) for step in (1, 3, 5)) and not found["tokens_far"]
    )
    assert found["kl_largest"] == max(row["mismatch/kl"] for row in rows) and found["answers"] == 36
    assert found["kl"] == pytest.approx(sum(row["mismatch/kl"] for row in rows) / 6)
    assert '"importance": "truncated"' in (run.folder / "config.json").read_text()


def test_an_engine_that_is_off_stops_a_run_that_rounds(base: Path, tmp_path: Path):
    with pytest.raises(MismatchError, match=r"more than mismatch\.mean = 0\.0[13];.* proven by checksums"):
        Run(tmp_path / "mean", Engines(shift=0.1), ROUNDS).start(base, {"mismatch": {"kl": 1e-9}})
    with pytest.raises(MismatchError, match=r"KL\(engine \|\| trainer\), .*, more than mismatch\.kl = 0\.0001"):
        Run(tmp_path / "kl", Engines(shift=0.1), ROUNDS).start(base, {"mismatch": {"mean": 0.2, "kl": 1e-4}})


def test_the_trend_goes_on_where_a_run_was_stopped(base: Path, tmp_path: Path):
    one = {"num_minibatches": 1, "keep_journal": False}
    changes = {"mismatch": {**LAX, "window": 12}, "num_steps": 14, "rollout": one, "evaluation": {"every_steps": 14}}
    whole = Run(tmp_path / "whole", Engines(shift=0.1), ROUNDS).start(base, changes)
    found = [row.get("mismatch/kl_change") for row in whole.rows()]
    assert found[:11] == [None] * 11 and None not in found[11:]
    run = Run(tmp_path / "run", Engines(shift=0.1), ROUNDS)
    with pytest.raises(Interrupted):
        run.start(base, changes, after_step=lambda taken: stop_signal() if taken == 12 else None)
    run.start(base, changes, resume=True)
    assert [row.get("mismatch/kl_change") for row in run.rows()] == pytest.approx(found)


@pytest.mark.parametrize(
    ("overrides", "importance"),
    [
        ([], "none"),
        (["cluster.rollout.dtype=bf16"], "truncated"),
        (["cluster.rollout.dtype=bf16", "objective.importance=none"], "none"),
        (["objective.importance=truncated"], "truncated"),
    ],
)
def test_the_machine_decides_what_is_corrected_unless_the_config_does(overrides: list[str], importance: str):
    recipe: Any = load(ROOT / "configs/tiny/dense/1_rl.toml", str(ROOT / "configs/cluster/laptop.toml"), overrides)[0]
    assert recipe.objective.importance == importance


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer": BF16}, {"trainer": {**BF16, "precision": {"fp8": "blockwise"}}}, {"rollout": BF16},
        {"weights": {"fp8": True}},
    ],
)  # fmt: skip
def test_each_setting_below_fp32_is_named(changes: dict[str, Any]):
    found = Cluster.model_validate({"device": "cuda", **changes}).roundings
    last = {"trainer": "trainer.dtype = bf16", "rollout": "rollout.dtype = bf16", "weights": "weights.fp8 = True"}
    assert found[0] == f"cluster.{last[next(iter(changes))]}"
    assert len(found) == 1 + ("precision" in changes.get("trainer", {}))
    assert FP32.roundings == ()


def test_bounds_that_a_machine_does_not_take_are_refused_with_the_remedy(base: Path):
    stated = config(base, {"mismatch": {"max_abs": 5.0, "tie_margin": 0.0}})
    faults = stated.faults_on(ROUNDS, None)
    assert [f.partition(":")[0] for f in faults] == ["mismatch.max_abs", "mismatch.tie_margin"]
    assert "cluster.rollout.dtype = bf16" in faults[0] and "set mismatch.mean and mismatch.kl" in faults[0]
    assert stated.faults_on(FP32, None) == []
    (fault,) = config(base, {"mismatch": {"kl": 0.1}}).faults_on(FP32, None)
    assert fault.startswith("mismatch.kl: ") and "mismatch.max_abs bounds every token; leave it out" in fault
    assert config(base, {}).faults_on(ROUNDS, None) == []
