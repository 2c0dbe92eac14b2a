"""The reward models' turn of a GRPO run: which are loaded, what they read, and what of it is learnt and written."""

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import recording
from grpo_run import CLUSTER, Run, base, config, this_process_pool

from r1mega.data.tokenizer import load_tokenizer
from r1mega.errors import DataError
from r1mega.recipe.grpo import GRPO
from r1mega.rewards.reward_model import LearntReward
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Document
from r1mega.stages import grpo
from r1mega.stages.scorers import Scoring, aside

__all__ = ["base"]  # a fixture
HELPFUL = {"kind": "reward_model", "scope": "summary", "weight": 0.5}
HARMLESS = {"kind": "reward_model", "scope": "response", "squash": "sigmoid", "weight": 2.0}


class Sums:
    """A model that gives the sum of what it reads, over a thousand."""

    def __init__(self, *loaded: Any) -> None:
        self.loaded = loaded
        self.read: list[list[Document]] = []

    def score(self, documents: Sequence[Document]) -> list[float]:
        self.read.append(list(documents))
        return [score_of(d.token_ids) for d in documents]


def score_of(ids: Sequence[int]) -> float:
    return sum(int(i) for i in ids) / 1000 - 1


def recipe(base: Path, rewards: dict[str, dict[str, Any]], **changes: Any) -> GRPO:
    plain = config(base, {"num_steps": 2, "objective": {"truncated": "judge", "constant_groups": "drop"}, **changes})
    made = {name: LearntReward.model_validate({"path": base, **of}) for name, of in rewards.items()}
    return plain.model_copy(update={"rewards": {**plain.rewards, **made}})


def start(of: GRPO, folder: Path, load: Any) -> Run:
    run = Run(folder)
    answers: Any = {"serve": run.engines.make, "pusher": run.engines.pusher, "pool": this_process_pool}

    def build(*arguments: Any, **settings: Any) -> Any:
        run.policies.append(recording.RecordingPolicy(*arguments, **settings))
        return run.policies[-1]

    with contextlib.closing(RunDir(run.folder, of, CLUSTER, resume=False)) as run_dir, recording.recorded_saves():
        grpo.run(of, CLUSTER, run_dir, build=build, load=load, **answers)
    return run


def test_two_models_are_learnt_from_as_the_rubric_says(base: Path, tmp_path: Path):
    loaded: list[Sums] = []

    def load(*arguments: Any) -> Sums:
        loaded.append(Sums(*arguments))
        return loaded[-1]

    # A thought that none of the answers closes: only those without one have a summary.
    unclosed = {**HELPFUL, "marks": ["<think>", "[/think]"]}
    of = recipe(base, {"helpful": unclosed, "harmless": HARMLESS})
    run = start(of, tmp_path / "run", load)
    # Rewards of one folder share one model, which is laid out as the trainer's.
    (model,) = loaded
    assert (model.loaded[0], *model.loaded[2:]) == (base, 128, of.batch.chunks_per_micro_batch)
    tokenizer = load_tokenizer(base)

    def read(question: str, said: str) -> list[int]:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
        return tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)

    rewards: dict[str, dict[str, float | None]] = {}
    for asked in run.engines.rollouts()[0]:
        for answer, kind in zip(asked.answers, asked.kinds, strict=True):
            prompt = asked.request.prompt
            helpful = score_of(read(prompt.question, prompt.truth)) if kind == "bare" else None
            rewards[f"{prompt.id} {answer.index}"] = {
                "accuracy": float(kind != "wrong"),
                "format": float(kind != "bare"),
                "helpful": helpful,
                "harmless": 1 / (1 + math.exp(-score_of(read(prompt.question, answer.text)))),
            }
    known = [of_one["helpful"] for of_one in rewards.values() if of_one["helpful"] is not None]
    missing = len(rewards) - len(known)
    assert missing == 11
    for of_one in rewards.values():
        of_one["helpful"] = min(known) if of_one["helpful"] is None else of_one["helpful"]
    first = run.rows()[0]
    for name in ("helpful", "harmless"):
        mean = sum(float(of_one[name] or 0.0) for of_one in rewards.values()) / len(rewards)
        assert first[f"reward/{name}"] == pytest.approx(mean)
        assert first[f"rewards/{name}/too_long"] == first[f"rewards/{name}/failed"] == 0
    assert (first["rewards/helpful/missing"], first["rewards/harmless/missing"]) == (missing, 0)
    parts = ("accuracy", "format", "helpful", "harmless")
    total = [1.0 * first["reward/accuracy"], 0.25 * first["reward/format"]]
    total += [0.5 * first["reward/helpful"], 2.0 * first["reward/harmless"]]
    assert first["reward/total"] == pytest.approx(sum(total)) and first["seconds/reward_models"] > 0
    # What people read has the models' parts too, of this rollout.
    rows = [json.loads(line) for line in (run.folder / "samples/step_0.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and all(set(row["parts"]) == set(parts) for row in rows)
    assert sum(row["reward"] for row in rows) / 12 == pytest.approx(first["reward/total"])
    # Of the answers whose groups are not constant, all that both models gave is learnt.
    learnt = [d for call in run.policies[0].calls if call.verb == "forward_backward" for d in call.documents]
    assert first["rollout/learnt_from"] == len(learnt) == 8
    advantages = {tuple(d.token_ids): d.fields["adv"][0] for d in learnt}
    for asked in run.engines.rollouts()[0]:
        mine = [rewards[f"{asked.request.prompt.id} {answer.index}"] for answer in asked.answers]
        sums = [row["reward"] for row in rows if row["question"] == asked.request.prompt.question]
        assert sorted(sums) == pytest.approx(
            sorted(
                float(m["accuracy"] or 0) + 0.25 * float(m["format"] or 0) + 0.5 * float(m["helpful"] or 0)
                + 2 * float(m["harmless"] or 0)
                for m in mine
            )
        )  # fmt: skip
        mean = sum(sums) / len(sums)
        std = math.sqrt(sum((s - mean) ** 2 for s in sums) / len(sums))
        if len(set(asked.kinds)) == 1:  # four times the same words: nothing is learnt of them
            assert std == pytest.approx(0)
            continue
        found = [advantages[(*asked.request.prompt.token_ids, *a.token_ids)] for a in asked.answers]
        assert sorted(found) == pytest.approx(sorted((s - mean) / std for s in sums), rel=1e-5)


def test_without_a_model_in_its_turn_nothing_is_read_and_no_seconds_are_said(base: Path, tmp_path: Path):
    model = Sums()
    run = start(
        recipe(base, {"helpful": {**HELPFUL, "from_step": 2}}, num_steps=4), tmp_path / "run", lambda *_: model
    )
    rows = run.rows()
    assert [("reward/helpful" in row, "seconds/reward_models" in row) for row in rows] == [
        (False, False), (False, False), (True, True), (True, False),
    ]  # fmt: skip
    assert len(model.read) == 1


def test_a_model_that_breaks_on_some_answers_costs_those_alone(base: Path, tmp_path: Path):
    class Breaks(Sums):
        def score(self, documents: Sequence[Document]) -> list[float]:
            return [math.nan if i == 1 else x for i, x in enumerate(super().score(documents))]

    run = start(recipe(base, {"harmless": HARMLESS}), tmp_path / "run", lambda *_: Breaks())
    first = run.rows()[0]
    assert (first["rewards/harmless/failed"], first["rollout/failed"], first["reward/scored"]) == (1, 1, 11)
    rows = [json.loads(line) for line in (run.folder / "samples/step_0.jsonl").read_text().splitlines()]
    (failed,) = [row for row in rows if row["status"] == "failed"]
    assert failed["reason"] == "the model of reward harmless gives nan"


def test_a_folder_that_cannot_put_a_question_is_refused_before_anything_is_started(base: Path, tmp_path: Path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in base.iterdir():
        if file.name != "chat_template.jinja":
            (bare / file.name).write_bytes(file.read_bytes())
    of = recipe(base, {"helpful": {**HELPFUL, "path": bare}})
    with pytest.raises(DataError, match=r"bare has no chat template, .* put one there as chat_template\.jinja"):
        start(of, tmp_path / "run", Sums)
    assert not (tmp_path / "run/metrics.jsonl").exists()


# ---- the device ----------------------------------------------------------------------------------------------------


class Moves:
    """A policy that writes down when it leaves the device and comes back."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def offload(self) -> None:
        self.told.append("offload")

    def onload(self) -> None:
        self.told.append("onload")


def on(device: str) -> Any:
    return SimpleNamespace(device=SimpleNamespace(type=device))


def test_on_a_gpu_the_policy_is_put_aside_while_a_model_scores():
    policy: Any = Moves()
    with aside(policy, on("cuda")):
        policy.told.append("score")
    assert policy.told == ["offload", "score", "onload"]
    with pytest.raises(RuntimeError, match="broke"), aside(policy, on("cuda")):
        raise RuntimeError("broke")
    assert policy.told[3:] == ["offload", "onload"]
    with aside(policy, on("cpu")):
        pass
    assert len(policy.told) == 5


def test_the_turn_puts_the_policy_aside(base: Path, mesh: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from r1mega.rewards.failures import Failures
    from r1mega.rollout.collect import Rollout
    from r1mega.stages import scorers

    policy: Any = Moves()
    monkeypatch.setattr(scorers, "scored_by_models", lambda *_, **__: (policy.told.append("score"), ({}, {}))[1])
    gpu: Any = SimpleNamespace(device=SimpleNamespace(type="cuda"), first=True)
    scoring = Scoring(recipe(base, {"helpful": HELPFUL}), gpu, policy, Failures(0.5), tmp_path, {})
    assert scoring.turn(Rollout(), 0)[0] == () and policy.told == ["offload", "score", "onload"]
    late = Scoring(recipe(base, {"helpful": {**HELPFUL, "from_step": 5}}), gpu, policy, Failures(0.5), tmp_path, {})
    assert late.turn(Rollout(), 0) == ((), {}, {}) and len(policy.told) == 3
