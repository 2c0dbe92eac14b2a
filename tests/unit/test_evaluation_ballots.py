"""cons@k by what answers mean: the mathematics verifier says which are one vote, within its limits."""

import itertools
import logging

import pytest

from r1mega.buffers import Int32s
from r1mega.errors import RewardError
from r1mega.evaluation import ballots
from r1mega.evaluation.ballots import Equality, with_votes
from r1mega.evaluation.results import QuestionResult, SampleResult
from r1mega.evaluation.scores import score
from r1mega.rewards.math import same
from r1mega.rewards.mathematics.verifier import Mathematics
from r1mega.rewards.pool import TaskOutcome
from r1mega.samples import Prompt, VerdictStatus

SCORED, FAILED = VerdictStatus.SCORED, VerdictStatus.FAILED
HALF = ["1/2", "0.5", r"\frac{1}{2}", r"\dfrac12", r"$\frac{2}{4}$", "50%"]


def prompt(verifier: str = "math", truth: str = "1/2") -> Prompt:
    return Prompt("q", verifier, "What is it?", truth, Int32s())


def voted(answers: list[str | None], right: str, verifier: str = "math") -> QuestionResult:
    samples = tuple(SampleResult(SCORED, float(a in right.split("; ")), answer=a) for a in answers)
    (result,) = with_votes([QuestionResult("q", "d", samples)], [prompt(verifier)])
    return result


def blocs(answers: list[str | None], verifier: str = "math") -> set[frozenset[str]]:
    votes = [(s.answer, s.vote) for s in voted(answers, "", verifier).samples if s.answer is not None]
    key = lambda pair: pair[1] or ""  # noqa: E731
    return {frozenset(a for a, _ in group) for _, group in itertools.groupby(sorted(votes, key=key), key)}


def test_answers_that_are_written_in_many_ways_are_one_vote():
    assert blocs([*HALF, "2", "x^2-1", "(x-1)(x+1)", "x^2 + 1", None]) == {
        frozenset(HALF), frozenset({"2"}), frozenset({"x^2-1", "(x-1)(x+1)"}), frozenset({"x^2 + 1"}),
    }  # fmt: skip


def test_the_majority_is_of_classes():
    """Of 9 answers 4 are a half in four ways and 3 are 2: by text a tie of 2 and nothing, by meaning a half."""
    result = voted([*HALF[:4], "2", "2", "2", "3", None], "; ".join(HALF))
    (votes,) = score([result], votes=(9,)).cons_at_k
    assert votes.interval.mean == 1.0
    by_text = QuestionResult("q", "d", tuple(SampleResult(s.status, s.value, vote=s.answer) for s in result.samples))
    assert score([by_text], votes=(9,)).cons_at_k[0].interval.mean == 0.0
    # All sets of 3 of 4 halves, 3 twos, a 3 and a silent one, by counting: 4 of a class win, others tie.
    expected = 0.0
    names = ["h"] * 4 + ["2"] * 3 + ["3", None]
    sets = list(itertools.combinations(names, 3))
    for some in sets:
        cast = [name for name in some if name]
        most = max(map(cast.count, cast))
        tied = {name for name in cast if cast.count(name) == most}
        expected += ("h" in tied) / len(tied) / len(sets)
    assert score([result], votes=(3,)).cons_at_k[0].interval.mean == pytest.approx(expected, abs=1e-12)


def test_equality_holds_both_ways_round():
    """25% is right where 25 is the truth, since it may have been asked for in per cent; they are not one vote."""
    assert Mathematics().verify("25%", "25", {}) and not Mathematics().verify("25", "25%", {})
    assert not same("25%", "25") and not same("25", "25%") and same("25%", "1/4")
    assert blocs(["25%", "25", "1/4"]) == {frozenset({"25%", "1/4"}), frozenset({"25"})}


@pytest.mark.parametrize(
    ("verifier", "answers", "expected"),
    [
        ("choice", ["B", "(B)", "B. Paris", "C"], {frozenset({"B", "(B)", "B. Paris"}), frozenset({"C"})}),
        ("chain_sum", ["17", " 17", "17.0", "-17"], {frozenset({"17", " 17", "17.0"}), frozenset({"-17"})}),
    ],
)
def test_each_questions_own_verifier_is_asked(verifier: str, answers: list[str | None], expected: object):
    assert blocs(answers, verifier) == expected


def test_a_right_answer_is_no_vote_for_a_wrong_one_where_the_verifier_looks_at_the_question():
    entry = {"answer": "1 + 2 + 3", "metadata": {"numbers": [1, 2, 3], "target": 6, "expression": "1 + 2 + 3"}}
    equal = Equality(Prompt("q", "countdown", "Make 6 of 1, 2, 3.", "1 + 2 + 3", Int32s(), "", entry))
    assert equal("3 + 2 + 1", "1 + 2 + 3")  # it solves the question as well
    assert not equal("3 + 2 + 1", "7") and not equal("7", "3 + 2 + 1") and equal.broken == 0


def test_what_was_not_scored_votes_for_nothing():
    samples = (SampleResult(FAILED, answer="7"), SampleResult(SCORED, 1.0, answer="0.5"))
    (result,) = with_votes([QuestionResult("q", "d", samples)], [prompt()])
    assert [sample.vote for sample in result.samples] == [None, "0.5"]


def test_comparisons_that_take_too_much_are_bounded_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    asked = list[tuple[str, str]]()

    def same(self: Mathematics, a: str, b: str) -> TaskOutcome:
        asked.append((a, b))
        return TaskOutcome("answer", reason="took more than 5 s")

    monkeypatch.setattr(Mathematics, "same", same)
    with caplog.at_level(logging.WARNING):
        assert blocs(["0.5", "1/2", *(f"9^9^{i}" for i in range(30))]) >= {frozenset({"9^9^3"})}
    assert len(asked) == ballots.COSTLY == 8
    assert "8 comparisons of answers took too much and 0 broke the verifier" in caplog.text
    equality = Equality(prompt(), costly=ballots.COSTLY)
    assert equality("0.5", "1/2") and not equality("0.5", r"\frac12")  # as plain numbers


def test_a_pool_that_cannot_judge_stops_the_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Mathematics, "same", lambda *_: TaskOutcome("failed", reason="no worker"))
    with pytest.raises(RewardError, match=r"question q cannot be compared: no worker; .* --resume compares"):
        voted(["x", "y"], "")


def test_a_real_answer_without_end_is_cut_off():
    """Towers of powers beside right answers: nothing hangs, and the others are counted."""
    found = blocs(["0.5", r"\frac12", "9^{9^{9^{9}}}", "(" * 3000, "x" * 100_000])
    assert frozenset({"0.5", r"\frac12"}) in found and len(found) == 4
