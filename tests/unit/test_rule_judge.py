"""tools/rule_judge.py: it judges by its rule, and plants as many faults as it is told, whatever the order."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from judging import PROMPT, QUICK, RIGHT, WRONG, completion
from one_pool import this_process_pool
from rule_judge_here import InPlace, rule_judge

from r1mega.data.constraint_language import Constraints
from r1mega.rewards.callers import connected
from r1mega.rewards.judge import Judge
from r1mega.rewards.judge_forms import ANSWER_FORMS, ANSWER_PROMPT, PAIR_FORMS, PAIR_PROMPT, messages
from r1mega.rewards.judges import Judges
from r1mega.rewards.preference import Comparing, compare
from r1mega.rewards.rubric import Rubric
from r1mega.samples import Verdict

ROOT = Path(__file__).parents[2]
ASKED = Constraints(3, order=True)
GOOD, BAD = "apple banana cherry", "cherry banana apple kiwi"


def judge(rule: str = "constraints", seed: int = 0, **faults: Any) -> Any:
    return rule_judge.RuleJudge(rule_judge.RULES[rule], rule_judge.Faults(**faults), seed)


def single(judge: Any, form: str, answer: str, truth: str = "", seed: int = 0) -> float | None:
    system, read = ANSWER_FORMS[form]
    texts = {"question": ASKED.text, "truth": truth, "answer": answer}
    return read(judge.answer({"messages": list(messages(system, ANSWER_PROMPT, texts)), "seed": seed}))


def pair(judge: Any, form: str, a: str, b: str, seed: int = 0) -> float | None:
    system, read = PAIR_FORMS[form]
    texts = {"question": ASKED.text, "answer_a": a, "answer_b": b}
    return read(judge.answer({"messages": list(messages(system, PAIR_PROMPT, texts)), "seed": seed}))


def test_every_form_by_rule():
    """GOOD meets both constraints, BAD none, and "apple cherry" one of two: so much better is each than others."""
    half = "apple cherry"
    assert [single(judge(), "right", said) for said in (GOOD, BAD, half)] == [1.0, 0.0, 0.0]
    assert [single(judge(), "share", said) for said in (GOOD, BAD, half)] == [1.0, 0.0, 0.5]
    assert [single(judge("equal"), "right", said, "a  b") for said in ("a b", "b a")] == [1.0, 0.0]
    assert [pair(judge(), "verdict", *two) for two in ((GOOD, BAD), (BAD, GOOD), (GOOD, half), (half, half))] == [
        3.0, -3.0, 1.0, 0.0,
    ]  # fmt: skip
    assert [pair(judge(), "ratings", *two) for two in ((GOOD, BAD), (half, GOOD), (half, half))] == [4.0, -2.0, 0.0]
    assert pair(judge("longer"), "verdict", "long", "x") == 3.0


def test_faults_are_of_requests_and_not_of_their_order():
    order = list(range(400))
    faults = {"malformed": 0.2, "position_bias": 0.3}
    found = {i: pair(judge(seed=3, **faults), "verdict", BAD, GOOD, i) for i in order}
    random.Random(0).shuffle(order)
    one = judge(seed=3, **faults)
    assert {i: pair(one, "verdict", BAD, GOOD, i) for i in order} == found
    assert {i: pair(judge(seed=4, **faults), "verdict", BAD, GOOD, i) for i in order} != found
    unread, first = sum(v is None for v in found.values()), sum(v == 3.0 for v in found.values())
    # 80 of 400 and 0.3 of the other 320, five standard deviations either way.
    assert abs(unread - 80) < 41 and abs(first - 96) < 43
    assert {v for v in found.values() if v not in (None, 3.0)} == {-3.0}


def test_half_of_a_votes_replies_babbled_are_asked_again():
    asker = InPlace(judge(malformed=0.5))
    many = [compare(asker, ASKED.text, (GOOD, BAD), Comparing(retries=9), seed=s).result(0) for s in range(20)]
    assert all(one.gap == 3.0 for one in many) and 40 < sum(one.unreadable for one in many) < 140
    few = [compare(asker, ASKED.text, (GOOD, BAD), Comparing(retries=0), seed=s).result(0) for s in range(40)]
    kept = sum(one.scored for one in few)
    assert {one.status for one in few} == {"scored", "unscorable"} and kept < 12  # one in sixteen
    assert all(one.gap == (3.0 if one.scored else 0.0) for one in few)


def verdicts(url: str, **endpoint: Any) -> tuple[Verdict, ...]:
    settings = {"url": url, "model": "rule-judge", **QUICK, "concurrency": 1, **endpoint}
    rewards: Any = {"judge": Judge.model_validate({"endpoint": settings})}
    with this_process_pool() as pool, connected(rewards, None) as callers:
        answers = [completion(text, i) for i, text in enumerate([RIGHT, WRONG, "Percy", "Polidori"])]
        return Judges(pool, callers).judge(Rubric(rewards, "zero"), PROMPT, answers, 0).result(120)


@pytest.mark.parametrize("fault", ["--dies-after", "--hangs-after"])
def test_a_server_that_dies_or_hangs_leaves_verdicts_that_failed_and_none_that_is_zero(fault: str):
    command = [sys.executable, str(ROOT / "tools/rule_judge.py"), "--rule", "equal", "--port", "0", fault, "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        try:
            first, second, *others = verdicts(url, timeout_s=5.0 if fault == "--dies-after" else 0.5)
        finally:
            server.kill()
    assert (first.reward, second.reward) == (1.0, 0.0) and first.scored and second.scored
    assert [verdict.status for verdict in others] == ["failed", "failed"]
    assert all(verdict.reason.startswith("reward judge: http://") and not verdict.parts for verdict in others)


def test_what_is_no_question_is_refused_and_the_model_is_named():
    with rule_judge.Server(judge()) as server:
        said = httpx.post(f"{server.url}/chat/completions", json={"messages": []}, trust_env=False)
        assert said.status_code == 400 and "not a chat completion" in said.json()["error"]["message"]
        models = httpx.get(f"{server.url}/models", trust_env=False).json()
        assert models["data"][0]["id"] == "rule-judge"
        command = [sys.executable, str(ROOT / "tools/rule_judge.py"), "--port", str(server.server_port)]
        taken = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert taken.returncode == 2 and "take another --port" in taken.stderr and "Traceback" not in taken.stderr
