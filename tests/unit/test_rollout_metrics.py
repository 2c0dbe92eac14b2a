"""What a rollout's figures are of: the answers with a verdict, those that are compared, all that were sampled."""

import dataclasses

import pytest

from r1mega.buffers import Float32s, Int32s
from r1mega.diagnostics.rollout import rollout_metrics
from r1mega.samples import Completion, FinishReason, Group, Prompt, Verdict, VerdictStatus


def group(name: str, rewards: list[float | None], lengths: list[int]) -> Group:
    """A reward of None is a verdict that failed."""
    completions = tuple(
        Completion(
            name,
            i,
            Int32s.repeated(5, n),
            Float32s.repeated(-0.1, n),
            "",
            FinishReason.LENGTH if n > 9 else FinishReason.STOP,
            0,
            i,
        )
        for i, n in enumerate(lengths)
    )
    verdicts = tuple(
        Verdict(VerdictStatus.FAILED, reason="broke")
        if reward is None
        else Verdict(VerdictStatus.SCORED, reward, {"accuracy": reward / 2})
        for reward in rewards
    )
    return Group(Prompt(name, "chain_sum", "q", "1", Int32s([1])), completions, verdicts)


def test_rewards_are_of_the_scored_answers_and_say_how_many_they_are():
    found = rollout_metrics([group("a", [2.0, None, 0.0], [4, 6, 10]), group("b", [1.0, 1.0, None], [2, 2, 12])])
    assert found == {
        "rollout/answers": 6.0,
        "rollout/failed": 2.0,
        "rollout/unscorable": 0.0,
        "reward/scored": 4.0,
        "reward/unscored": 1 - 4 / 6,
        "reward/total": 1.0,  # (2 + 0 + 1 + 1) / 4
        "reward/total_low": 1.0,  # both groups are as far above it as below
        "reward/total_high": 1.0,
        "reward/accuracy": 0.5,
        "groups/constant": 0.5,
        "response_length/mean": 6.0,  # of all six
        "response_length/max": 12.0,
        "response_length/truncated": 2 / 6,
        "rollout/tokens": 36.0,
        "repetition/mean": pytest.approx((0 + 2 / 3 + 6 / 7 + 0 + 0 + 8 / 9) / 6),  # of fours: all but one
    }


def test_the_rewards_interval_is_clustered_by_question():
    """Sums apart from the mean of 1: 2, -2 and 0; sqrt(3/2 x 8) / 6 = 0.57735, and t with 2 degrees is 4.30265."""
    found = rollout_metrics([group(name, [r, r], [4, 4]) for name, r in (("a", 2.0), ("b", 0.0), ("c", 1.0))])
    assert found["reward/total_low"] == pytest.approx(1 - 2.48414, abs=1e-5)
    assert found["reward/total_high"] == pytest.approx(1 + 2.48414, abs=1e-5)
    assert "reward/total_low" not in rollout_metrics([group("a", [2.0, 0.0], [4, 4])])


def test_where_nothing_has_a_verdict_there_is_no_reward_and_no_zero():
    found = rollout_metrics([group("a", [None, None], [1, 1])])
    assert (found["reward/scored"], found["reward/unscored"], found["rollout/answers"]) == (0.0, 1.0, 2.0)
    assert "reward/total" not in found and "reward/accuracy" not in found


def test_answers_that_a_stop_string_ended_are_counted_and_are_not_truncated():
    plain = group("a", [1.0, 0.0, 0.0, 0.0], [2, 4, 6, 12])
    ended = tuple(dataclasses.replace(c, finish_reason=FinishReason.STOP_STRING) for c in plain.completions[:1])
    found = rollout_metrics([dataclasses.replace(plain, completions=ended + plain.completions[1:])])
    assert (found["response_length/stop_string"], found["response_length/truncated"]) == (0.25, 0.25)
