"""Answers made candidates: which can be judged, which are equal, and which go together."""

import itertools
import math

import pytest

from r1mega.data.pairing import AnswerSettings, PairSettings, SampledAnswer, pairs_of, usable
from r1mega.data.scope import Scope


def answers(*texts: str) -> list[SampledAnswer]:
    return [SampledAnswer(i, 100 + i, text, len(text)) for i, text in enumerate(texts)]


def indices(found: tuple[list[tuple[SampledAnswer, SampledAnswer]], int]) -> list[tuple[int, int]]:
    return [(a.index, b.index) for a, b in found[0]]


WHOLE = ("<think>a</think> One.", "<think>never ends", "Two.", "<think>b</think>", "<think>c</think> Thr")


def test_an_answer_is_cut_to_its_scope_or_counted():
    given = [(answer, answer.index == 4) for answer in answers(*WHOLE)]
    kept, dropped = usable(AnswerSettings(), "summary", given)
    assert [(a.index, a.seed, a.text, a.tokens) for a in kept] == [(0, 100, "One.", 21), (2, 102, "Two.", 4)]
    assert dropped == {"truncated": 1, "no_summary": 2}
    kept, dropped = usable(AnswerSettings(truncated="keep"), "summary", given)
    assert [a.text for a in kept] == ["One.", "Two.", "Thr"] and dropped == {"no_summary": 2}
    kept, dropped = usable(AnswerSettings(), "response", given)
    assert [a.text for a in kept] == list(WHOLE[:4]) and dropped == {"truncated": 1}


def test_marks_of_another_template():
    marks = AnswerSettings.model_validate({"marks": ("|special_token|", "|special_token|")})
    scope: Scope = "summary"
    kept, _ = usable(marks, scope, [(answers("|special_token|a|special_token| One.")[0], False)])
    assert [a.text for a in kept] == ["One."]


def test_equal_answers_are_never_a_pair_and_are_counted():
    for choose in ("disjoint", "random", "closest"):
        of = PairSettings(choose=choose, per_question=2)
        found = pairs_of(answers("same", "other", " same\n", "same", "third"), of, 0, "q")
        assert found[1] == 2
        assert {index for pair in indices(found) for index in pair} <= {0, 1, 4}
    assert pairs_of(answers("same", "same "), PairSettings(), 0, "q") == ([], 1)
    assert pairs_of(answers("alone"), PairSettings(), 0, "q") == ([], 0)
    assert pairs_of([], PairSettings(), 0, "q") == ([], 0)


def test_disjoint_pairs_share_no_answer_and_take_all():
    found = indices(pairs_of(answers(*"abcdefg"), PairSettings(per_question=3), 0, "q"))
    assert len(found) == 3 and len({index for pair in found for index in pair}) == 6
    assert all(a < b for a, b in found)


def test_random_pairs_are_drawn_of_all():
    drawn = [
        indices(pairs_of(answers(*"abcd"), PairSettings(choose="random", per_question=2), 0, str(question)))
        for question in range(300)
    ]
    counts = {pair: sum(pair in of for of in drawn) for pair in itertools.combinations(range(4), 2)}
    assert sum(counts.values()) == 600 and all(60 < num < 140 for num in counts.values())  # 100 each in the mean
    assert len(indices(pairs_of(answers(*"abcd"), PairSettings(choose="random", per_question=6), 0, "q"))) == 6


def test_the_closest_lengths_go_together():
    given = answers("a" * 100, "b" * 10, "c" * 90, "d" * 40)  # ratios 1.11, 2.25, 2.5, 4, 9, 10
    found = pairs_of(given, PairSettings(choose="closest", per_question=3), 0, "q")
    assert indices(found) == [(0, 2), (2, 3), (0, 3)]


def test_draws_follow_from_seed_and_question_alone():
    given, of = answers(*"abcdefgh"), PairSettings(choose="random", per_question=2)
    first = indices(pairs_of(given, of, 0, "q"))
    assert indices(pairs_of(given[::-1], of, 0, "q")) == first
    others = [indices(pairs_of(given, of, seed, q)) for seed, q in ((1, "q"), (0, "r"))]
    assert all(other != first for other in others)


@pytest.mark.parametrize(
    ("choose", "answers", "per_question", "most"),
    [("disjoint", 5, 3, 2), ("random", 4, 7, math.comb(4, 2)), ("closest", 3, 4, 3)],
)
def test_more_pairs_than_there_can_be_are_refused(choose: str, answers: int, per_question: int, most: int):
    pairs = PairSettings.model_validate({"choose": choose, "per_question": per_question})
    (fault,) = pairs.faults(answers)
    assert fault.startswith(f"pairs.per_question: {per_question} pairs asked for, and {answers} answers make {most}")
    assert PairSettings.model_validate({"choose": choose, "per_question": most}).faults(answers) == []
    assert "there is no pair" in PairSettings().faults(1)[0]
