"""What a rubric makes of several rewards: which are asked, what they are worth together, whose failure it is."""

import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import Literal

import pytest
from pydantic import TypeAdapter, ValidationError

from r1mega.buffers import Float32s, Int32s
from r1mega.config.scheduled import Scheduled
from r1mega.rewards.accuracy import Accuracy
from r1mega.rewards.format import Format
from r1mega.rewards.registry import REWARDS, Rewards
from r1mega.rewards.reward import Answer, RuleReward, Score, failed, scored, unscorable
from r1mega.rewards.rubric import Rubric
from r1mega.samples import Completion, FinishReason, Prompt, VerdictStatus

PROMPT = Prompt("p", "chain_sum", "4 - 1 =", "3", Int32s([1]), domain="math")


class Letters(RuleReward):
    """Letters of an answer; "?" breaks it and "!" has no verdict."""

    kind: Literal["letters"] = "letters"

    def judge(self, prompt: Prompt, answer: Answer, group: Sequence[Answer]) -> Score:
        assert group == ()
        if "?" in answer.text:
            return failed("no sandbox")
        return unscorable("no tests") if "!" in answer.text else scored(float(len(answer.text)), "counted")


class Longest(RuleReward):
    """1 for the longest answer to a question."""

    kind: Literal["longest"] = "longest"
    whole_group = True

    def judge(self, prompt: Prompt, answer: Answer, group: Sequence[Answer]) -> Score:
        return scored(float(answer.num_tokens == max(other.num_tokens for other in group)))


def completion(text: str, tokens: int = 2, finish: FinishReason = FinishReason.STOP) -> Completion:
    return Completion("p", 0, Int32s.repeated(7, tokens), Float32s.repeated(-0.1, tokens), text, finish, 0, 0)


def judge(rewards, *texts: str, step: int = 0, domain: str = "math"):
    prompt = dataclasses.replace(PROMPT, domain=domain)
    return Rubric(rewards, "zero").judge(prompt, [completion(text) for text in texts], step)


def test_the_reward_is_the_weighted_sum_and_each_part_is_told_by_its_name():
    rewards = {"short": Letters(weight=0.5), "long": Letters(weight=2), "measured": Letters(weight=0)}
    one, three = judge(rewards, "a", "abc")
    assert (one.reward, three.reward) == (2.5, 7.5)
    assert three.parts == {"short": 3, "long": 3, "measured": 3}
    assert three.reason == "counted; counted; counted"


def test_a_failure_is_no_zero_and_outweighs_a_missing_verdict():
    rewards = {"a": Letters(), "b": Letters()}
    broken, missing, both, fine = judge(rewards, "x?", "x!", "x?!", "x")
    assert [v.status for v in (broken, missing, both, fine)] == ["failed", "unscorable", "failed", "scored"]
    assert broken.reason == "no sandbox; no sandbox" and missing.reason == "no tests; no tests"
    assert not broken.parts and not missing.parts


def test_rewards_are_chosen_by_domain_and_from_a_step_on():
    rewards = {"a": Letters(domains=("math", "code")), "b": Letters(weight=10, from_step=3)}
    (early,), (late,) = judge(rewards, "x", step=2), judge(rewards, "x", step=3)
    assert early.parts == {"a": 1} and late.parts == {"a": 1, "b": 1} and late.reward == 11
    (other,) = judge(rewards, "x", step=3, domain="general")
    assert other.parts == {"b": 1}
    (nothing,) = judge(rewards, "x", step=2, domain="general")
    assert nothing.status is VerdictStatus.UNSCORABLE and nothing.reason == "no reward is for general at step 2"


def test_rewards_are_asked_in_the_last_steps_of_a_run_and_weighed_as_at_their_step():
    """Of 20 steps: a weighs 1, from step 8 on 3; b is asked in the last 4, and goes from 0 to 10 in two of them."""
    weights = [{"value": 0}, {"last_steps": 4, "over_steps": 2, "value": 10}]
    tables = {"a": [{"value": 1}, {"from_step": 8, "value": 3}], "b": {"last_steps": 4, "weight": weights}}
    kinds = {name: Letters.model_validate(t if isinstance(t, dict) else {"weight": t}) for name, t in tables.items()}
    rewards = {name: reward.of_run(20, Scheduled.always(1)) for name, reward in kinds.items()}
    worth = {step: judge(rewards, "x", step=step)[0] for step in (0, 7, 8, 15, 16, 17, 18, 20)}
    assert {step: v.reward for step, v in worth.items()} == {
        0: 1, 7: 1, 8: 3, 15: 3, 16: 3, 17: 8, 18: 13, 20: 13,
    }  # fmt: skip
    assert [step for step, v in worth.items() if "b" in v.parts] == [16, 17, 18, 20]
    with pytest.raises(ValueError, match="last_steps = 4 counts from the end of a run, which is not known here"):
        judge(kinds, "x")


def test_a_truncated_answer_has_a_zero_of_those_rewards_that_would_be_asked():
    cut = completion("xyz", finish=FinishReason.LENGTH)
    rewards = {"a": Letters(), "code": Letters(domains=("code",)), "late": Letters(from_step=9)}
    (verdict,) = Rubric(rewards, "zero").judge(PROMPT, [cut], 0)
    assert verdict.scored and verdict.reward == 0 and verdict.parts == {"a": 0}


def test_a_rule_that_asks_for_it_sees_the_whole_group():
    answers = [completion("a", 3), completion("b", 5), completion("c", 4)]
    rubric = Rubric({"longest": Longest(), "letters": Letters()}, "zero")
    assert [v.parts["longest"] for v in rubric.judge(PROMPT, answers, 0)] == [0, 1, 0]


# ---- settings -----------------------------------------------------------------------------------------------


def read(table: object) -> dict:
    return TypeAdapter(Rewards).validate_python(table)


def test_a_weight_alone_is_a_reward_and_a_table_may_name_its_kind():
    found = read({"accuracy": 1.0, "format": 0, "prose": {"kind": "format", "weight": 0.5, "domains": ["general"]}})
    assert found == {
        "accuracy": Accuracy(weight=1.0), "format": Format(weight=0.0),
        "prose": Format(weight=0.5, domains=("general",)),
    }  # fmt: skip
    assert read(found) == found
    assert read({name: reward.model_dump(mode="json") for name, reward in found.items()}) == found


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"acuracy": 1.0}, r"there is no reward 'acuracy' \(did you mean 'accuracy'\?\): choose of accuracy, format"),
        ({"mine": {"kind": "jury"}}, "there is no reward 'jury': choose of accuracy, format"),
        ({"accuracy": True}, "accuracy should be a weight, written without quotes, or a table"),
        ({"accuracy": "1.0"}, "accuracy should be a weight, written without quotes, or a table"),
        ({"accuracy": -1}, "greater than or equal to 0"),
        ({"accuracy": {"wieght": 1}}, "Extra inputs are not permitted"),
        ({"format": {"domains": ["maths"]}}, "Input should be 'math', 'code'"),
        (1.0, "should be a valid dict"),
    ],
)
def test_what_is_no_reward_is_refused(table: object, message: str):
    with pytest.raises(ValidationError, match=message):
        read(table)


def test_a_reward_travels_to_a_worker_as_it_is():
    rubric = Rubric(read({"accuracy": 2.0, "format": 1.0}), "judge")
    again = pickle.loads(pickle.dumps(rubric))
    answer = completion("<think></think><answer>3</answer>")
    assert again == rubric and again.judge(PROMPT, [answer], 0)[0].reward == 3.0


def test_settings_reach_no_library_that_judges_or_trains():
    code = (
        "import sys, r1mega.rewards.registry as r; r.TypeAdapter = __import__('pydantic').TypeAdapter;"
        "r.TypeAdapter(r.Rewards).validate_python({'accuracy': 1.0, 'format': 1.0});"
        "print([m for m in ('torch', 'numpy', 'transformers', 'reasoning_gym', 'sympy') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
    assert list(REWARDS) == [
        "accuracy",
        "format",
        "language",
        "overlong",
        "own",
        "constraints",
        "judge",
        "served_reward_model",
        "reward_model",
    ]
