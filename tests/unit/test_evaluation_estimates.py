"""pass@k and cons@k: by enumeration, by closed forms, and untouched by answers that could not be scored."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1mega.errors import DataError
from r1mega.evaluation.compare import compare
from r1mega.evaluation.passes import pass_at_k
from r1mega.evaluation.results import QuestionResult, SampleResult
from r1mega.evaluation.scores import doubling, score
from r1mega.evaluation.voting import Vote, classes, cons_at_k, same_answer
from r1mega.samples import VerdictStatus

SCORED = VerdictStatus.SCORED


def binomial(n: int, i: int, p: float) -> float:
    return math.comb(n, i) * p**i * (1 - p) ** (n - i)


def winner(votes: tuple[Vote, ...]) -> float:
    """The value of the answer with most votes, the mean over ties: the rule in words."""
    count = Counter(vote.answer for vote in votes if vote.answer is not None)
    most = [answer for answer, num in count.items() if num == max(count.values())]
    by_class = [[vote.value for vote in votes if vote.answer == answer] for answer in most]
    return sum(sum(values) / len(values) for values in by_class) / len(most) if most else 0.0


@pytest.mark.parametrize(("n", "right"), [(1, 0), (1, 1), (5, 2), (6, 0), (6, 6), (8, 3)])
def test_pass_at_k_is_the_share_of_sets_with_a_right_answer(n: int, right: int):
    answers = [True] * right + [False] * (n - right)
    for k in range(1, n + 1):
        sets = list(itertools.combinations(answers, k))
        assert pass_at_k(n, right, k) == sum(map(any, sets)) / len(sets)


@pytest.mark.parametrize("p", [0.0, 0.03, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("n", "k"), [(4, 1), (4, 4), (64, 8), (64, 64), (200, 32)])
def test_pass_at_k_is_unbiased(n: int, k: int, p: float):
    """Over all numbers of right answers among n its expected value is 1 - (1 - p)^k."""
    expected = sum(binomial(n, right, p) * pass_at_k(n, right, k) for right in range(n + 1))
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 5), (8, 8), (16, 5), (16, 6), (33, 16)])
def test_cons_at_k_of_two_answers_is_the_binomial_majority(n: int, k: int, p: float):
    """P(more than k/2 right) + half of P(exactly k/2 right), whether k is all of the answers or a part of them."""
    expected = sum(
        binomial(n, right, p) * cons_at_k([Vote("1", 1.0)] * right + [Vote("2", 0.0)] * (n - right), k)
        for right in range(n + 1)
    )
    majority = sum(binomial(k, i, p) * (1.0 if 2 * i > k else 0.5 if 2 * i == k else 0.0) for i in range(k + 1))
    assert expected == pytest.approx(majority, abs=1e-12)


votes = st.lists(
    st.builds(Vote, st.sampled_from(["a", "b", "c", "d", None]), st.sampled_from([0.0, 0.5, 1.0])),
    min_size=1,
    max_size=8,
)


@settings(max_examples=40)
@given(votes, st.data())
def test_cons_at_k_is_the_mean_over_all_sets_of_k(votes: list[Vote], data: Any):
    value = {vote.answer: vote.value for vote in votes}  # a verifier that judges one answer in one way
    votes = [replace(vote, value=value[vote.answer]) for vote in votes]
    k = data.draw(st.integers(1, len(votes)))
    sets = list(itertools.combinations(votes, k))
    expected = sum(map(winner, sets)) / len(sets)
    assert cons_at_k(votes, k) == pytest.approx(expected, abs=1e-12)
    assert cons_at_k(votes[::-1], k) == pytest.approx(expected, abs=1e-12)


def test_votes_by_hand():
    """Three votes for a half outvote two for 2; an answer without a final one has no vote, and loses alone."""
    half, two = [Vote("1/2", 1.0)] * 3, [Vote("2", 0.0)] * 2
    assert cons_at_k([*two, *half], 5) == 1.0
    assert cons_at_k([*two, *half[:2], Vote(None, 0.0)], 5) == 0.5  # a tie: one of the two is drawn
    assert cons_at_k([*two, half[0], Vote("3", 0.0), Vote("4", 0.0)], 5) == 0.0
    assert cons_at_k([Vote(None, 0.0)] * 3, 3) == 0.0
    for k in (0, 6):
        with pytest.raises(DataError, match=f"cons@{k} of 5 scored answers"):
            cons_at_k([*two, *half], k)


UNITS = {"3": {"3 cm", "3 m"}, "3 cm": {"3"}, "3 m": {"3"}, "4": set[str]()}
"""What each is equal to, by a verifier to which a unit on one side only is nothing: no transitive relation."""


@given(st.permutations(["3", "3 cm", "3 m", "4"]))
def test_classes_by_hand_in_any_order(order: list[str]):
    """The most voted answer that another equals represents it; two that differ are never one class by a third."""

    def alike(a: str, b: str) -> bool:
        return b in UNITS[a]

    voted = {"3 cm": 5, "3 m": 4, "3": 2, "4": 9}
    counts_as = {"4": "4", "3 cm": "3 cm", "3 m": "3 m", "3": "3 cm"}
    assert classes({text: voted[text] for text in order}, alike) == counts_as
    voted |= {"3": 4, "3 m": 2}
    assert classes({text: voted[text] for text in order}, alike) == counts_as
    assert classes(dict.fromkeys(order, 1), alike) == {text: "3" if text != "4" else "4" for text in order}


def test_answers_are_compared_with_representatives_alone():
    asked = list[tuple[str, str]]()
    classes(dict.fromkeys("abcdef", 1), lambda a, b: asked.append((a, b)) is None)
    assert asked == [("a", other) for other in "bcdef"]


@pytest.mark.parametrize(
    ("a", "b"), [("17", " 17 "), ("0.5", "1/2"), (".50", "+0.5"), ("X + 1", "x+1"), ("-3/6", "-0.5"), ("7.", "007")]
)
def test_answers_that_are_the_same(a: str, b: str):
    assert same_answer(a, b) and same_answer(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("17", "18"),
        ("1/2", "2/1"),
        ("1/0", "2/0"),
        ("1e9", "1000000000"),
        ("", "0"),
        ("x", "y"),
        ("9" * 50, "9" * 49),
    ],
)
def test_answers_that_are_not(a: str, b: str):
    assert not same_answer(a, b) and same_answer(a, a)


def test_ks_double_up_to_the_most_answers():
    sizes = {0: [], 1: [], 2: [2], 3: [2, 3], 8: [2, 4, 8], 12: [2, 4, 8, 12]}
    for most, ks in sizes.items():
        assert doubling([question(0, [SampleResult(SCORED)] * most), question(1, [])]) == ks


scored = st.builds(
    SampleResult, st.just(SCORED), st.sampled_from([0.0, 1.0]), vote=st.sampled_from(["1", "2", "3", None])
)
lost = st.builds(
    SampleResult,
    st.sampled_from([VerdictStatus.FAILED, VerdictStatus.UNSCORABLE]),
    st.sampled_from([0.0, 1.0, -7.0]),
    vote=st.sampled_from(["1", "2", "9"]),
)


def question(name: int, samples: list[SampleResult]) -> QuestionResult:
    return QuestionResult(str(name), f"digest {name}", tuple(samples))


def with_siblings(result: QuestionResult, others: list[SampleResult], seed: int) -> QuestionResult:
    samples = [*result.samples, *others]
    survivors = iter(result.samples)
    random.Random(seed).shuffle(samples)
    in_order = [next(survivors) if sample.scored else sample for sample in samples]  # they keep their order
    return replace(result, samples=tuple(in_order))


ESTIMATORS: dict[str, Callable[[list[QuestionResult]], Any]] = {
    "pass@1": lambda results: score(results).pass_at_1,
    "pass@k": lambda results: score(results, ks=(1, 2)).pass_at_k,
    "cons@k": lambda results: score(results, votes=(1, 2)).cons_at_k,
    "counts": lambda results: [score(results).num_questions, score(results).num_scored],
    "better": lambda results: compare(results, REFERENCE),
    "worse": lambda results: compare(REFERENCE, results),
}
REFERENCE = [question(i, [SampleResult(SCORED, float(i % 2))] * 3) for i in range(4)]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@settings(max_examples=15)
@given(st.lists(st.lists(scored, min_size=2, max_size=5), min_size=2, max_size=4), st.data())
def test_what_could_not_be_scored_changes_nothing(estimator: str, answers: list[list[SampleResult]], data: Any):
    results = [question(i, samples) for i, samples in enumerate(answers)]
    others = [data.draw(st.lists(lost, max_size=3)) for _ in results]
    lonely = question(99, data.draw(st.lists(lost, max_size=2)))  # a question of which no answer survives
    beside = [*(with_siblings(r, o, i) for i, (r, o) in enumerate(zip(results, others, strict=True))), lonely]
    before, after = ESTIMATORS[estimator](results), ESTIMATORS[estimator](beside)
    if estimator in ("better", "worse"):
        after = replace(after, left_out=after.left_out - 1)  # the lonely one, which is said
    assert after == before


def test_an_evaluation_by_hand():
    """Questions with 2 of 4, 0 of 2 and 1 of 1 right; one more without a score."""
    failed, unscorable = SampleResult(VerdictStatus.FAILED), SampleResult(VerdictStatus.UNSCORABLE)
    right, wrong = SampleResult(SCORED, 1.0, vote="1"), SampleResult(SCORED, 0.0, vote="2")
    found = score(
        [
            question(0, [right, wrong, failed, right, wrong]),
            question(1, [wrong, SampleResult(SCORED, 0.0), unscorable]),
            question(2, [right]),
            question(3, [failed, unscorable]),
        ],
        ks=(2,),
        votes=(2, 4),
    )
    assert (found.num_questions, found.num_scored, found.failed, found.unscorable) == (3, 7, 2, 2)
    assert found.without_score == ("3",)
    assert found.pass_at_1.mean == pytest.approx((0.5 + 0 + 1) / 3)
    (passes,) = found.pass_at_k
    assert (passes.num_questions, passes.too_few) == (2, 1)
    assert passes.interval.mean == pytest.approx((5 / 6 + 0) / 2)
    two, four = found.cons_at_k
    assert two.interval.mean == pytest.approx((0.5 + 0) / 2)
    assert (four.interval.mean, four.num_questions, four.too_few) == (0.5, 1, 2)
    with pytest.raises(DataError, match="pass@5: no question has 5 scored answers, the most is 4"):
        score([question(0, [right] * 4)], ks=(5,))
    with pytest.raises(DataError, match="no question has a scored answer"):
        score([question(3, [failed])])
