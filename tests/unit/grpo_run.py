"""A GRPO run of `recording`'s policy and engine, from settings as a user writes them to the lines that it leaves."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import recording
import torch
from grpo_by_hand import expected_rows
from one_pool import this_process_pool
from recording import RecordingPolicy
from recording_engine import Engines

from r1mega.config.cluster import Cluster
from r1mega.recipe.grpo import GRPO
from r1mega.runtime.run_dir import RunDir

CLUSTER = Cluster(device="cpu")
SUMS = {
    "kind": "reasoning_gym", "family": "chain_sum",
    "params": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1},
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "stage": "grpo",
    "questions": [{**SUMS, "num": 3}],
    "num_steps": 6,
    "rollout": {"num_prompts": 3, "num_minibatches": 2, "keep_journal": True},
    "sampling": {"temperature": 0.7, "max_new_tokens": 8},
    "objective": {"group_size": 4, "clip_low": 0.02, "clip_high": 0.05, "kl_coef": 0.3, "reference_refresh_steps": 4},
    "rewards": {"accuracy": 1.0, "format": 0.25},
    "optimizer": {"lr": 4.0},
    "batch": {"chunk_tokens": 128},
    "evaluation": {"every_steps": 2, "questions": [{**SUMS, "num": 2}], "samples_per_question": 3},
    "save": {"every_steps": 2},
    "wandb": {"mode": "disabled"},
}


@pytest.fixture(scope="session")
def base(mesh, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recording.write_base(tmp_path_factory.mktemp("base") / "model", mesh, ["What is 1 + 2? It is 3."])


@pytest.fixture(scope="session")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> "Run":
    """The settings as they stand."""
    return Run(tmp_path_factory.mktemp("plain") / "run").start(base, {})


@dataclass
class Run:
    """One run and its resumed parts."""

    folder: Path
    engines: Engines = field(default_factory=Engines)
    cluster: Cluster = CLUSTER
    policies: list[RecordingPolicy] = field(default_factory=list)

    def start(self, base: Path, changes: dict[str, Any], *, resume: bool = False, **policy: Any) -> "Run":
        """`changes` are sections or values of `SETTINGS`; what is in `policy` goes to the policy."""
        from r1mega.stages import grpo

        self.config = config(base, changes).resolved(self.cluster)
        run_dir = RunDir(self.folder, self.config, self.cluster, resume=resume)

        def build(*arguments: Any, **settings: Any) -> Any:
            self.policies.append(RecordingPolicy(*arguments, **settings, **policy))
            return self.policies[-1]

        try:
            answers: Any = {"serve": self.engines.make, "pusher": self.engines.pusher, "pool": this_process_pool}
            with recording.recorded_saves():
                grpo.run(self.config, self.cluster, run_dir, build=build, **answers)
        finally:
            run_dir.close()
        return self

    def rows(self, kind: str = "train") -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [row for row in rows if row["kind"] == kind]


def config(base: Path, changes: dict[str, Any]) -> GRPO:
    settings = {**SETTINGS, "model": {"path": str(base)}}
    for name, value in changes.items():
        settings[name] = {**settings.get(name, {}), **value} if isinstance(value, dict) else value
    made = GRPO.model_validate(settings)
    assert made.faults() == []
    return made


def check_by_hand(run: Run, lrs: list[float]) -> None:
    """Every line of the run against the equations, the learning rates given."""
    (policy,) = run.policies
    theta = torch.arange(len(policy.theta)).sin().tolist()  # as the folder has it
    expected = expected_rows(run.config, theta, run.engines.rollouts(), policy.calls, lrs)
    rows = run.rows()
    assert len(rows) == len(expected) == run.config.num_steps
    for row, want in zip(rows, expected, strict=True):
        # The policy's weights are fp32, the equations' are not.
        assert {name: row.get(name) for name in want} == pytest.approx(want, rel=1e-5, abs=1e-8)
        assert ("kl/mean" in row) == ("kl/mean" in want)
