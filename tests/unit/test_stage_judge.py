"""A GRPO run whose reward an endpoint gives: what it logs, what is checked, and that a resumed one is the same."""

import hashlib
import itertools
import threading
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import EndpointServer, fails
from grpo_run import SUMS, Run, base, config
from recording import stop_signal
from rule_judge_here import rule_judge

from r1mega.errors import RewardError, RunDirError
from r1mega.runtime.interrupt import Interrupted

__all__ = ["base"]  # a fixture


def grade(answer: str) -> int:
    return hashlib.sha256(answer.encode()).digest()[0] % 11


def graded(body: dict[str, Any]) -> str:
    return f"[[{grade(shown(body))}]]"


def shown(body: dict[str, Any]) -> str:
    return rule_judge.framed(body["messages"][-1]["content"])["model's answer"]


def judged_by(server: EndpointServer, **endpoint: Any) -> dict[str, Any]:
    quick = {"first_wait_s": 0.001, "longest_wait_s": 0.002, "attempts": 2}
    judge = {"kind": "judge", "form": "share", "scope": "response", "floor": -1.0}
    return {"rewards": {"judge": {**judge, "endpoint": {"url": server.url, "model": "m", **quick, **endpoint}}}}


def figures(run: Run) -> list[dict[str, float]]:
    """The lines of the run without what a second start changes by its nature."""
    other = ("seconds", "judging/", "replay", "rollout/replayed", "time", "part")
    return [{k: v for k, v in row.items() if not any(word in k for word in other)} for row in run.rows()]


def test_a_judges_grades_are_learnt_from_and_what_was_asked_is_logged(base: Path, tmp_path: Path):
    with EndpointServer(graded) as server:
        run = Run(tmp_path / "run").start(base, judged_by(server))
        first = run.rows()[0]
        answers = [c for asked in run.engines.rollouts()[0] for c in asked.answers]
        # A truncated answer is worth 0, and one that says nothing the floor, neither asked about.
        worth = [0.0 if c.truncated else grade(c.text) / 10 if c.text.strip() else -1.0 for c in answers]
        assert first["reward/judge"] == pytest.approx(sum(worth) / len(worth))
        sent = {(asked.request.prompt.question, c.text) for asked in run.engines.rollouts()[0] for c in asked.answers
                if not c.truncated and c.text.strip()}  # fmt: skip
        assert first["judging/asked"] - first["judging/cached"] == len(sent) > 3
        assert first["judging/unreadable"] == first["judging/given_up"] == 0.0
        lines = (run.folder / "judgements.jsonl").read_text().splitlines()
        assert len(lines) == len(server.bodies) == sum(r.get("judging/asked", 0) - r.get("judging/cached", 0)
                                                       for r in run.rows()[::2])  # fmt: skip


def test_a_run_that_is_stopped_while_it_is_judged_goes_on_as_one_that_was_not(base: Path, tmp_path: Path):
    """It is stopped in the second of its rollouts, each of other questions, when three of its answers are judged."""
    questions = {"questions": [{**SUMS, "num": 9}]}
    with EndpointServer(graded) as server:
        whole = Run(tmp_path / "whole").start(base, {**judged_by(server), **questions})
        total = len(server.bodies)
        in_first = int(whole.rows()[0]["judging/asked"] - whole.rows()[0]["judging/cached"])
    assert total > in_first + 4
    come, release = itertools.count(1), threading.Event()

    def stops(body: dict[str, Any]) -> str:
        if next(come) == in_first + 4:
            stop_signal()
            release.wait(60)
        return graded(body)

    with EndpointServer(stops) as server:
        run, settings = Run(tmp_path / "run"), {**judged_by(server, concurrency=1), **questions}
        with pytest.raises(Interrupted):
            run.start(base, settings)
        release.set()
        kept = (run.folder / "judgements.jsonl").read_text().splitlines()
        assert len(kept) == in_first + 3 and len(run.rows()) == 2
        # A judge that has changed its mind of what it has said: nobody asks it.
        said = {shown(body) + body["messages"][-1]["content"] for body in server.bodies[: len(kept)]}
        server.say = lambda body: "[[0]]" if shown(body) + body["messages"][-1]["content"] in said else graded(body)
        with pytest.raises(RunDirError, match=r"rewards.judge.votes: 1 -> 2"):
            rewards = {"judge": {**settings["rewards"]["judge"], "votes": 2}}
            run.start(base, {**settings, "rewards": rewards}, resume=True)
        # How hard the endpoint is asked may change.
        run.start(base, {**settings, **judged_by(server, concurrency=2, attempts=5, budget_requests=99)}, resume=True)
        assert len(server.bodies) == total + 1  # the one that was under way
    assert figures(run) == figures(whole)
    assert run.policies[-1].theta.tolist() == whole.policies[-1].theta.tolist()


def test_a_dead_endpoint_stops_the_run_and_says_why(base: Path, tmp_path: Path):
    with EndpointServer(graded) as server:
        server.faults = [fails(503)] * 10_000
        changes = {**judged_by(server), "rollout": {"num_prompts": 3, "max_failed": 0.1}}
        with pytest.raises(RewardError, match=r"verdicts have failed[\s\S]*reward judge: http://[\s\S]*answered 503"):
            Run(tmp_path / "run").start(base, changes)


def test_check_asks_for_the_key_and_sends_nothing(base: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with EndpointServer(graded) as server:
        recipe = config(base, judged_by(server, api_key_env="JUDGE_KEY"))
        assert list(recipe.lacks()) == [
            "rewards.judge.endpoint.api_key_env: the environment variable JUDGE_KEY is not set; export it where the "
            "run starts"
        ]
        monkeypatch.setenv("JUDGE_KEY", "sk-1")
        assert list(recipe.lacks()) == [] and not server.bodies
