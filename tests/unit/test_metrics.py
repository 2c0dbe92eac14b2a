"""pass@1 and its interval, by hand and against simulation."""

import dataclasses
import json
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mega.buffers import Float32s, Int32s
from r1mega.data.template import TAGS
from r1mega.errors import DataError, RewardError
from r1mega.evaluation.metrics import EvalResult, Graded, clustered_rate, evaluate, grade, summarise
from r1mega.rewards import reasoning_gym
from r1mega.samples import Completion, FinishReason, Prompt

PROMPTS = [Prompt(f"p{i}", "chain_sum", f"{i} - 1 =", str(i - 1), Int32s([1])) for i in range(3)]


def completion(prompt, text, finish=FinishReason.STOP, tokens=4):
    return Completion(prompt.id, 0, Int32s.repeated(7, tokens), Float32s.repeated(0.0, tokens), text, finish, 0, 0)


def test_one_evaluation_by_hand():
    a, b, _ = PROMPTS
    result = evaluate(
        PROMPTS,
        [
            completion(a, "<think>0-1=-1</think><answer>-1</answer>", tokens=10),
            completion(a, "The answer is -1.", tokens=2),
            completion(b, "1-1=0. So it is 0.", tokens=6),
            completion(b, "<think>1-1=0</think><answer>0</answer>", FinishReason.LENGTH, tokens=12),
            completion(b, "<think></think><answer>7</answer>", tokens=5),
            completion(b, "<think>1-1=0</think><answer>0", FinishReason.LENGTH, tokens=12),
        ],
    )
    assert (result.num_questions, result.num_answers) == (2, 6)
    assert result.strict.mean == pytest.approx(1 / 6)
    assert result.lenient.mean == pytest.approx(5 / 6)
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
    # Deviations: question a 1 - 2/6, question b 0 - 4/6; SE = sqrt(2 / 1 * (4/9 + 4/9)) / 6.
    assert result.strict.se == pytest.approx(math.sqrt(16 / 9) / 6)


def test_json_there_and_back():
    result = summarise([grade(p, completion(p, "The answer is 0.")) for p in PROMPTS])
    text = json.dumps(result.to_json(), allow_nan=False)
    assert EvalResult.from_json(json.loads(text)) == result
    for broken in ({}, {**result.to_json(), "strict": 0.5}, {**result.to_json(), "more": 1}):
        with pytest.raises(DataError, match="not the record of an evaluation"):
            EvalResult.from_json(broken)


def test_equal_k_gives_the_standard_error_of_the_question_means():
    rng = random.Random(0)
    outcomes = [(f"q{q}", rng.random() < q / 20) for q in range(20) for _ in range(4)]
    means = [statistics.mean(right for name, right in outcomes if name == f"q{q}") for q in range(20)]
    assert clustered_rate(outcomes).se == pytest.approx(statistics.stdev(means) / math.sqrt(20))


def test_the_interval_covers_where_answers_of_a_question_agree():
    # Each question is right or wrong in all of 8 answers: a standard error per answer would be 8 ** 0.5 too small.
    rng, covered = random.Random(1), 0
    for _ in range(400):
        rights = [rng.random() < 0.4 for _ in range(60)]
        rate = clustered_rate([(str(q), right) for q, right in enumerate(rights) for _ in range(8)])
        covered += rate.low <= 0.4 <= rate.high
    assert 0.91 < covered / 400 < 0.985


def test_small_and_extreme_evaluations():
    assert dataclasses.astuple(clustered_rate([("a", True), ("a", False)])) == (0.5, 0.5, 0, 1)
    assert dataclasses.astuple(clustered_rate([("a", True), ("b", True)])) == (1, 0, 1, 1)
    rate = clustered_rate([("a", True), ("b", True), ("c", False)])
    assert rate.low >= 0 and rate.high == 1
    with pytest.raises(DataError, match="no answers"):
        summarise([])


def test_a_broken_verifier_stops_the_evaluation(monkeypatch):
    def broken(answer, entry):
        raise OSError("gone")

    monkeypatch.setattr(reasoning_gym, "_rule", lambda name: broken)
    with pytest.raises(RewardError, match="verifier of chain_sum broke on question p0"):
        grade(PROMPTS[0], completion(PROMPTS[0], "The answer is -1."))


pieces = ["3", "+3", "03", "3.0", "3,", "4", "-", " ", "=", ".", "<think></think>", *TAGS]


@given(st.lists(st.sampled_from(pieces), max_size=8).map("".join), st.booleans())
def test_strict_implies_lenient_and_format(text, wrapped):
    prompt = Prompt("p", "chain_sum", "4 - 1 =", "3", Int32s([1]))
    graded = grade(prompt, completion(prompt, f"<think>{text}</think><answer>{text}</answer>" if wrapped else text))
    assert isinstance(graded, Graded)
    if graded.strict:
        assert graded.lenient and graded.formatted and not graded.truncated
