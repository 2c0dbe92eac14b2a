"""Mathematics: the table of pairs, where an answer stands, and answers built to break a verifier."""

import collections
import json
from pathlib import Path

import pytest
from hostile_mathematics import HOSTILE

from r1mega.rewards.math import can_be_right, judge, judge_response
from r1mega.rewards.mathematics import guards
from r1mega.rewards.mathematics.answer import find_answer
from r1mega.rewards.mathematics.verifier import Mathematics
from r1mega.rewards.pool import Pool
from r1mega.rewards.worker import Limits

PAIRS = [json.loads(line) for line in (Path(__file__).parent / "data/math_pairs.jsonl").open(encoding="utf-8")]
MISSES: dict[tuple[str, str], str] = {}
"""(truth, answer) -> why a right answer is not read as one. At most 1 % of the right ones."""


def test_the_table_is_broad():
    assert len(PAIRS) >= 1_000
    assert len({(pair["truth"], pair["answer"]) for pair in PAIRS}) == len(PAIRS)
    assert max(collections.Counter(pair["template"] for pair in PAIRS).values()) <= 20
    by_notation = collections.defaultdict(set)
    for pair in PAIRS:
        by_notation[pair["notation"]].add(pair["right"])
    assert len(by_notation) >= 40
    assert all(kinds == {True, False} for kinds in by_notation.values())


def test_no_wrong_answer_of_the_table_is_right_and_hardly_a_right_one_wrong():
    missed = {}
    for pair in PAIRS:
        judgement = judge(pair["answer"], pair["truth"])
        assert pair["right"] or not judgement.right, f"false positive: {pair}"
        if pair["right"] and not judgement.right:
            missed[pair["truth"], pair["answer"]] = judgement.reason
    assert missed.keys() == MISSES.keys()
    assert len(missed) <= 0.01 * sum(pair["right"] for pair in PAIRS)


def test_every_truth_of_the_table_can_be_right():
    for truth in {pair["truth"] for pair in PAIRS}:
        assert can_be_right(truth) is None, truth


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"<think>\boxed{1}</think> It is \boxed{2}.", "2"),
        (r"<think>\boxed{1}</think> It is 2.", None),
        (r"<think>a</think><answer>2</answer>", "2"),
        (r"<think>a</think><answer> so \boxed{3} </answer>", "3"),
        (r"<think>a</think>\boxed{9}<answer>2</answer>", "2"),
        (r"<think>a</think><answer>2</answer>\boxed{9}", "2"),
        (r"<think><answer>2</answer></think>", None),
        (r"<think>a</think><answer>1</answer><answer>2</answer>", None),
        (r"<think>a</think><answer>\boxed{1} or \boxed{2}</answer>", "1, 2"),
        (r"<think>a</think><answer>\boxed{2}, that is \boxed{2}</answer>", "2"),
        (r"<think>a \boxed{2}", None),
        (r"\boxed{1} then \boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {4}", "4"),
        (r"\boxed{4} and \boxed{5", None),
        (r"\boxed{}", None),
        ("<answer></answer>", None),
        ("42", None),
        ("", None),
    ],
)
def test_where_the_answer_stands(response, answer):
    assert find_answer(response) == answer


def test_an_answer_without_its_place_is_none():
    assert judge_response("42", "42").reason == "no answer"
    assert judge_response(r"</think>\boxed{41}\boxed{42}", "42").right
    assert not judge_response(r"</think>\boxed{42}\boxed{41}", "42").right
    assert not judge_response(r"<answer>\boxed{41}, \boxed{42}</answer>", "42").right
    assert not judge_response("</think>" + "".join(rf"\boxed{{{n}}}" for n in range(1, 300)), "42").right


@pytest.mark.parametrize("truth", ["", " ", "(" * 100 + "1" + ")" * 100, "1" * 5_000, "2^{10^{12}}+1" * 400])
def test_a_truth_that_nothing_equals_is_told(truth):
    assert can_be_right(truth) is not None


def test_hostile_answers_are_wrong_within_their_deadline_and_the_workers_live_on():
    assert len(HOSTILE) >= 60
    with Pool(2, Limits(cpu_s=5, wall_s=1_200, memory_mib=1024)) as pool:
        pool.submit(judge, "1/2", "0.5").result()
        futures = {}
        for name, answer in HOSTILE.items():
            futures[name] = (pool.submit(judge, answer, "42"), pool.submit(judge, r"\frac{84}{2}", "42"))
        for name, (hostile, right) in futures.items():
            outcome = hostile.result()
            assert outcome.status in ("done", "answer"), f"{name}: {outcome}"
            assert outcome.status == "answer" or not outcome.value.right, name
            assert right.result().value.right, name
        assert pool.counts.failed == 0


@pytest.mark.parametrize("truth", [r"\frac{x}{y}+\sqrt{2}", "(0,1)", "x>2", r"\{1,2\}", "y=2x", r"\text{yes}", "B"])
def test_hostile_answers_are_wrong_for_truths_of_any_kind(truth):
    slow = ("hard integral", "huge sum", "huge product", "hard limit")
    for name, answer in HOSTILE.items():
        if name not in slow:
            assert not judge(answer, truth).right, name


def test_limits_come_before_reading(monkeypatch):
    judge("7", "7 apples")  # the truth is read once
    monkeypatch.setattr("r1mega.rewards.math.read", lambda *_, **__: pytest.fail("it was read"))
    for answer in ("(" * 50 + "42" + ")" * 50, "4" * 2_000, "1+" * 3_000 + "1"):
        assert not judge(answer, "7 apples").right
    with pytest.raises(guards.TooBig):
        guards.check("{" * 41 + "}" * 41)
    guards.check("{" * 40 + "}" * 40)


def test_a_verifier_for_prompts_judges_in_a_worker():
    verifier = Mathematics()
    assert verifier.verify(r"\frac{3}{6}", "1/2", {})
    assert not verifier.verify("9^{9^{9^{9}}}", "1/2", {})
    assert verifier.last_answer(r"so \boxed{x+1}") == "x+1"
    assert verifier.last_answer("it is 12, or -3.5") == "-3.5"


def test_no_text_is_evaluated_as_code(tmp_path):
    mark = tmp_path / "mark"
    for code in (
        f"__import__('pathlib').Path('{mark}').touch()",
        f"open('{mark}', 'w')",
        f"exec(\"open('{mark}','w')\")",
    ):
        for answer in (code, rf"\sum_{{k=1}}^{{2}} {code}", rf"\int {code} dx", rf"\text{{{code}}}"):
            assert not judge(answer, r"\int_0^1 x\,dx").right
            assert not judge(answer, "42").right
    assert not mark.exists()
