"""A reward that a model gives, in the loop: from the scorer handed to the stage to what the policy learns from."""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import recording
from grpo_run import CLUSTER, SUMS, Run, base, config, this_process_pool
from recording_engine import Engines

from r1mega.errors import ConfigError, RolloutError
from r1mega.rewards.accuracy import Accuracy
from r1mega.rewards.reward import ModelReward
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Document

__all__ = ["base"]  # a fixture


class Taste(ModelReward):
    """Reads every answer whole."""

    kind: Literal["taste"] = "taste"


class Sums:
    """A model that gives the sum of an answer's tokens over a hundred."""

    def score(self, documents: Sequence[Document]) -> list[float]:
        return [sum(d.token_ids[d.learn_from :]) / 100 for d in documents]


def train(
    base: Path, folder: Path, scorers: dict[str, Any], rewards: dict[str, Any] | None = None, **changes: Any
) -> Run:
    plain = config(base, {"num_steps": 2, "objective": {"constant_groups": "drop"}, **changes})
    recipe = plain.model_copy(update={"rewards": rewards or {"taste": Taste(weight=0.5)}})
    run = Run(folder, Engines(groups=ONE_ALIKE)) if rewards else Run(folder)
    answers: Any = {"serve": run.engines.make, "pusher": run.engines.pusher, "pool": this_process_pool}

    def build(*arguments: Any, **settings: Any) -> Any:
        run.policies.append(recording.RecordingPolicy(*arguments, **settings))
        return run.policies[-1]

    from r1mega.stages import grpo

    with contextlib.closing(RunDir(run.folder, recipe, CLUSTER, resume=False)) as run_dir, recording.recorded_saves():
        grpo.run(recipe, CLUSTER, run_dir, build=build, scorers=scorers, **answers)
    return run


WRONG = ("wrong",) * 4
ONE_ALIKE = [WRONG] * 5 + [("right", "wrong", "wrong", "cut")] + [WRONG] * 5
"""Two questions are held out; the first rollout's three are answered alike, of the next three one is not."""


def test_before_a_model_is_asked_answers_alike_are_no_rollout_and_once_it_is_they_are(base: Path, tmp_path: Path):
    """In the last 2 of 4 steps; nine questions, three a rollout, of two steps."""
    rewards = {"accuracy": Accuracy(), "taste": Taste(last_steps=2, weight=0.5)}
    run = train(base, tmp_path / "run", {"taste": Sums()}, rewards, num_steps=4, questions=[{**SUMS, "num": 9}])
    counts = [(row["rollout/answers"], row["rollout/learnt_from"]) for row in run.rows()]
    assert counts == [(24, 4)] * 2 + [(12, 12)] * 2
    learnt = [len(call.documents) for call in run.policies[0].calls if call.verb == "forward_backward"]
    assert learnt == [2, 2, 6, 6]


def test_a_model_that_broke_stops_the_run_and_teaches_nothing(base: Path, tmp_path: Path):
    class Broken:
        def score(self, documents: Sequence[Document]) -> list[float]:
            return [math.nan] * len(documents)

    with pytest.raises(RolloutError, match="with the models' scores 0 answers are left to learn from"):
        train(base, tmp_path / "run", {"taste": Broken()})


def test_a_model_without_a_scorer_stops_the_run_before_anything_is_started(base: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="a model gives taste, and this run has no scorer for it"):
        train(base, tmp_path / "run", {"another": Sums()})
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_models_scores_are_learnt_from(base: Path, tmp_path: Path):
    run = train(base, tmp_path / "run", {"taste": Sums()})
    learnt = [d for call in run.policies[0].calls if call.verb == "forward_backward" for d in call.documents]
    found = {tuple(d.token_ids): d.fields["adv"][0] for d in learnt}
    expected, rewards = {}, []
    for asked in run.engines.rollouts()[0]:
        # A truncated answer is worth 0 and not read.
        scores = [0.0 if c.truncated else sum(c.token_ids) / 100 for c in asked.answers]
        mean = sum(scores) / len(scores)
        std = math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores))
        rewards += scores
        for completion, score in zip(asked.answers, scores, strict=True):
            expected[(*asked.request.prompt.token_ids, *completion.token_ids)] = (score - mean) / std
    assert len(found) == 12 and found == pytest.approx(expected, rel=1e-6)
    first = run.rows()[0]
    assert first["reward/taste"] == pytest.approx(sum(rewards) / 12)
    assert first["reward/total"] == pytest.approx(0.5 * sum(rewards) / 12)
    assert first["groups/constant"] == 0.0
