"""From a completion to a verdict."""

import dataclasses

import pytest

from r1mega.buffers import Float32s, Int32s
from r1mega.errors import ConfigError
from r1mega.rewards import reasoning_gym
from r1mega.rewards.accuracy import Accuracy, ends_right, is_right
from r1mega.rewards.format import Format
from r1mega.rewards.rubric import Rubric
from r1mega.samples import Completion, FinishReason, Prompt, VerdictStatus

PROMPT = Prompt("p", "chain_sum", "4 - 1 =", "3", Int32s([1]))


def judge(prompt, answer, truncated="zero", accuracy=1.0, form=1.0):
    rubric = Rubric({"accuracy": Accuracy(weight=accuracy), "format": Format(weight=form)}, truncated)
    (verdict,) = rubric.judge(prompt, [answer], 0)
    return verdict


def completion(text, finish=FinishReason.STOP):
    return Completion("p", 0, Int32s([7, 2]), Float32s([-0.1, -0.1]), text, finish, 0, 0)


@pytest.mark.parametrize(
    ("text", "accuracy", "formatted"),
    [
        ("<think>4-1=3</think><answer>3</answer>", 1, 1),
        ("<think></think><answer>3</answer>", 1, 1),
        ("<think>4-1=3</think><answer>+03.0</answer>", 1, 1),
        ("<think>4-1=2</think><answer>2</answer>", 0, 1),
        ("<answer>3</answer>", 1, 0),
        ("<think>4-1=3</think><answer>3</answer> as you see", 1, 0),
        ("The answer is 3.", 0, 0),
        ("<think><answer>3</answer></think>", 0, 0),
        ("<answer>2</answer><answer>3</answer>", 0, 0),
        ("<think>4-1=3</think><answer>2 or 3</answer>", 0, 1),
        ("<think>4-1=3</think><answer>٣</answer>", 0, 1),
        ("", 0, 0),
    ],
)
def test_parts_and_their_sum(text, accuracy, formatted):
    verdict = judge(PROMPT, completion(text))
    assert verdict.status is VerdictStatus.SCORED
    assert verdict.parts == {"accuracy": accuracy, "format": formatted}
    assert verdict.reward == accuracy + formatted
    weighted = judge(PROMPT, completion(text), accuracy=2.0, form=0.25)
    assert weighted.reward == 2 * accuracy + 0.25 * formatted


def test_a_prefill_is_judged_with_the_completion():
    prompt = dataclasses.replace(PROMPT, prefill="<think>")
    assert judge(prompt, completion("4-1=3</think><answer>3</answer>")).reward == 2
    assert judge(prompt, completion("<think>4-1=3</think><answer>3</answer>")).parts == {
        "accuracy": 1,
        "format": 0,
    }


def test_a_truncated_answer_is_zero_masked_or_judged():
    cut = completion("<think>4-1=3</think><answer>3</answer>", FinishReason.LENGTH)
    zero = judge(PROMPT, cut)
    assert (zero.status, zero.reward, zero.parts) == (VerdictStatus.SCORED, 0, {"accuracy": 0, "format": 0})
    assert judge(PROMPT, cut, "mask").status is VerdictStatus.UNSCORABLE
    assert judge(PROMPT, cut, "judge").reward == 2
    ended = completion("<think>4-1=3</think><answer>3</answer>", FinishReason.STOP_STRING)
    assert judge(PROMPT, ended).reward == judge(PROMPT, ended, "mask").reward == 2


def test_a_prompt_without_truth_is_unscorable():
    verdict = judge(dataclasses.replace(PROMPT, truth=" "), completion("3"))
    assert verdict.status is VerdictStatus.UNSCORABLE


def test_a_broken_verifier_is_failed_and_never_zero(monkeypatch):
    def broken(answer, entry):
        raise TimeoutError("sandbox gone")

    monkeypatch.setattr(reasoning_gym, "_rule", lambda name: broken)
    verdict = judge(PROMPT, completion("<think></think><answer>3</answer>"))
    assert verdict.status is VerdictStatus.FAILED
    assert "reward accuracy of a question of chain_sum raised TimeoutError: sandbox gone" in verdict.reason
    assert not verdict.parts


def test_partial_credit_of_the_library_is_no_credit(monkeypatch):
    monkeypatch.setattr(reasoning_gym, "_rule", lambda name: lambda answer, entry: 0.999)
    assert judge(PROMPT, completion("<think></think><answer>3</answer>")).reward == 1


def test_an_unknown_verifier_is_an_error_of_the_config():
    prompt = dataclasses.replace(PROMPT, verifier="chess")
    for text in ("3", "<answer>3</answer>"):
        with pytest.raises(ConfigError, match="unknown verifier 'chess'"):
            judge(prompt, completion(text))


@pytest.mark.parametrize(
    ("text", "anywhere"),
    [("The answer is 3.", True), ("4-1=3. So it is 3.", True), ("3 or 4", False), ("", False), ("4-1=3", True)],
)
def test_ends_right_takes_the_last_number_wherever_it_stands(text, anywhere):
    assert ends_right(PROMPT, text) is anywhere
    assert not is_right(PROMPT, text)
