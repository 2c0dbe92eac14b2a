"""Answers judged by endpoints, over real sockets, in a stage's own way."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import EndpointServer
from one_pool import this_process_pool
from rule_judge_here import rule_judge

from r1mega.buffers import Float32s, Int32s
from r1mega.rewards.callers import connected
from r1mega.rewards.judge import Judge
from r1mega.rewards.judges import Judges
from r1mega.rewards.reward import Reward
from r1mega.rewards.rubric import Rubric
from r1mega.samples import Completion, FinishReason, Prompt, Verdict

PROMPT = Prompt("p", "none", "Who wrote it?", "Mary Shelley", Int32s([1]), domain="stem")
QUICK = {"first_wait_s": 0.001, "longest_wait_s": 0.002, "attempts": 3}
RIGHT = "<think>It was her.</think><answer>Mary Shelley</answer>"
WRONG = "<think>It was him.</think><answer>Lord Byron</answer>"


def completion(text: str, index: int = 0, finish: FinishReason = FinishReason.STOP) -> Completion:
    tokens = Int32s([5, index + 1])
    return Completion("p", index, tokens, Float32s.repeated(-0.1, 2), text, finish, 0, index)


def by_rule(body: dict[str, Any]) -> str:
    return rule_judge.RuleJudge(rule_judge.RULES["equal"]).answer(body)


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with EndpointServer(by_rule) as server:
        yield server


def judge(server: EndpointServer, **settings: Any) -> Judge:
    endpoint = {"url": server.url, "model": "m", **QUICK, **settings.pop("endpoint", {})}
    return Judge.model_validate({"endpoint": endpoint, **settings})


def verdicts(
    rewards: dict[str, Reward], answers: Sequence[str], prompt: Prompt = PROMPT, folder: Path | None = None
) -> tuple[Verdict, ...]:
    with this_process_pool() as pool, connected(rewards, folder) as callers:
        asked = [completion(text, i) for i, text in enumerate(answers)]
        return Judges(pool, callers).judge(Rubric(rewards, "zero"), prompt, asked, 0).result(60)
