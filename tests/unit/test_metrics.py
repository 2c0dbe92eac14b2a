"""What an evaluation's answers come to: figures by hand, verdicts that are no scores, and what goes to disk."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mega.buffers import Float32s, Int32s
from r1mega.data.template import TAGS
from r1mega.errors import ConfigError, DataError, RewardError
from r1mega.evaluation.metrics import EvalResult, Graded, grade, results_of, summarise
from r1mega.rewards.reasoning_gym import ReasoningGym
from r1mega.samples import Completion, FinishReason, Prompt

PROMPTS = [Prompt(f"p{i}", "chain_sum", f"{i} - 1 =", str(i - 1), Int32s([1])) for i in range(3)]


def completion(prompt, text, finish=FinishReason.STOP, tokens=4):
    return Completion(prompt.id, 0, Int32s.repeated(7, tokens), Float32s.repeated(0.0, tokens), text, finish, 0, 0)


def graded(prompts, completions):
    by_id = {prompt.id: prompt for prompt in prompts}
    return [grade(by_id[one.prompt_id], one) for one in completions]


def evaluate(prompts, completions):
    return summarise(graded(prompts, completions))


def test_one_evaluation_by_hand():
    a, b, _ = PROMPTS
    answers = [
        (a, completion(a, "<think>0-1=-1</think><answer>-1</answer>", tokens=10)),
        (a, completion(a, "The answer is -1.", tokens=2)),
        (b, completion(b, "1-1=0. So it is 0.", tokens=6)),
        (b, completion(b, "<think>1-1=0</think><answer>0</answer>", FinishReason.LENGTH, tokens=12)),
        (b, completion(b, "<think></think><answer>7</answer>", tokens=5)),
        (b, completion(b, "<think>1-1=0</think><answer>0", FinishReason.LENGTH, tokens=12)),
    ]
    result = summarise([grade(prompt, answer) for prompt, answer in answers])
    assert (result.num_questions, result.num_answers) == (2, 6)
    assert result.strict.mean == pytest.approx((1 / 2 + 0) / 2)
    assert result.lenient.mean == pytest.approx((1 + 3 / 4) / 2)
    assert result.format == pytest.approx(2 / 6)
    assert result.truncated == pytest.approx(2 / 6)
    assert result.mean_tokens == pytest.approx(47 / 6)
    assert result.works == pytest.approx(3 / 6)
    shares = {style: (share.share * 6, share.lenient) for style, share in result.by_style.items()}
    assert {style: (round(num), right) for style, (num, right) in shares.items()} == {
        "think": (2, 1),
        "tags": (1, 0),
        "steps": (1, 1),
        "plain": (1, 1),
        "other": (1, 1),
    }
    assert result.metrics()["eval/strict"] == result.strict.mean
    # The questions' means are 1/2 and 0: standard deviation sqrt(1/8), of two of them 1/4.
    assert result.strict.se == pytest.approx(1 / 4)


def test_json_there_and_back():
    result = summarise([grade(p, completion(p, "The answer is 0.")) for p in PROMPTS])
    text = json.dumps(result.to_json(), allow_nan=False)
    assert EvalResult.from_json(json.loads(text)) == result
    for broken in ({}, {**result.to_json(), "strict": 0.5}, {**result.to_json(), "more": 1}):
        with pytest.raises(DataError, match="not the record of an evaluation"):
            EvalResult.from_json(broken)


def test_no_answers_are_no_evaluation():
    with pytest.raises(DataError, match="no answers"):
        summarise([])


@pytest.fixture
def broken_at_minus_one(monkeypatch):
    """A verifier that breaks at the answer -1, and holds any other right."""

    def verify(answer, truth, entry):
        if answer == "-1":
            raise OSError("gone")
        return True

    monkeypatch.setattr(ReasoningGym, "verify", lambda self, *given: verify(*given))


def test_a_broken_verifier_makes_no_answer_wrong(broken_at_minus_one):
    a, b, _ = PROMPTS
    survivors = [completion(a, "<think></think><answer>5</answer>"), completion(b, "<answer>6</answer>")]
    lost = completion(a, "<think></think><answer>-1</answer>")
    result = evaluate(PROMPTS, [survivors[0], lost, survivors[1]])
    assert dataclasses.replace(result, failed=0) == evaluate(PROMPTS, survivors)
    assert (result.failed, result.unscorable, result.num_answers) == (1, 0, 2)
    with pytest.raises(
        RewardError, match=r"none of 1 answers could be scored; the first: the verifier of chain_sum "
    ):
        evaluate(PROMPTS, [lost])
    with pytest.raises(ConfigError, match="unknown verifier"):
        grade(dataclasses.replace(a, verifier="absent"), lost)


def test_a_question_without_a_truth_is_no_wrong_answer():
    without = dataclasses.replace(PROMPTS[0], truth=" ")
    right = completion(PROMPTS[1], "<think></think><answer>0</answer>")
    result = evaluate([without, PROMPTS[1]], [completion(without, "<answer>3</answer>"), right])
    assert (result.unscorable, result.num_questions, result.strict.mean) == (1, 1, 1.0)


def test_results_as_they_go_to_disk(broken_at_minus_one):
    a, b, _ = PROMPTS
    completions = [
        completion(a, "<think></think><answer>5</answer>", tokens=3),
        completion(b, "<think></think><answer>6</answer>", FinishReason.LENGTH),
        completion(a, "<think></think><answer>-1</answer>"),
        completion(a, "no tags 5"),
    ]
    first, second, third = results_of(PROMPTS, graded(PROMPTS, completions))
    assert [(s.status, s.value, s.parts, s.answer, s.tokens, s.finish) for s in first.samples] == [
        ("scored", 1.0, {"lenient": 1.0, "format": 1.0}, "5", 3, "stop"),
        ("failed", 0.0, {}, "-1", 4, "stop"),
        ("scored", 0.0, {"lenient": 1.0, "format": 0.0}, None, 4, "stop"),
    ]
    assert "broke on question p0: OSError('gone')" in first.samples[1].reason
    (cut,) = second.samples
    assert (cut.value, cut.parts, cut.answer, cut.finish) == (0.0, {"lenient": 1.0, "format": 0.0}, None, "length")
    assert third.samples == () and (first.id, second.id) == ("p0", "p1")
    other = dataclasses.replace(a, truth="7")
    (changed,) = results_of([other], [])
    assert changed.digest != first.digest != second.digest


pieces = ["3", "+3", "03", "3.0", "3,", "4", "-", " ", "=", ".", "<think></think>", *TAGS]


@given(st.lists(st.sampled_from(pieces), max_size=8).map("".join), st.booleans())
def test_strict_implies_lenient_and_format(text, wrapped):
    prompt = Prompt("p", "chain_sum", "4 - 1 =", "3", Int32s([1]))
    graded = grade(prompt, completion(prompt, f"<think>{text}</think><answer>{text}</answer>" if wrapped else text))
    assert isinstance(graded, Graded)
    if graded.strict:
        assert graded.lenient and graded.formatted and not graded.truncated
