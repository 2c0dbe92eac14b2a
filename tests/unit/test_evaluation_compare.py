"""Two checkpoints on the same questions: the tests by hand and by simulation, what is no pair, and the exit code."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1mega import cli
from r1mega.diagnostics.student_t import t_quantile
from r1mega.errors import DataError
from r1mega.evaluation.compare import Outcome, bootstrap_interval, compare, mcnemar_of, outcome_of, refuse_different
from r1mega.evaluation.results import RECORD, RESULTS, QuestionResult, Record, SampleResult, digests_of, read, write
from r1mega.samples import FinishReason, VerdictStatus

SAMPLING = {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 64, "samples": 2}


def question(name: str, *values: float) -> QuestionResult:
    samples = tuple(
        SampleResult(VerdictStatus.SCORED, v, {"accuracy": v}, "17", 9, FinishReason.LENGTH) for v in values
    )
    return QuestionResult(name, f"digest of {name}", samples)


def rates(*values: float) -> list[QuestionResult]:
    """A question each, of 8 answers of which this share is right."""
    return [question(f"q{i}", *[1.0] * round(8 * v), *[0.0] * round(8 * (1 - v))) for i, v in enumerate(values)]


def record(results: list[QuestionResult], weights: str = "w", prompt: str = "p", **sampling: Any) -> Record:
    settings = SAMPLING | sampling
    return Record(digests_of(results, weights, prompt, settings), settings, {})


def test_mcnemar_by_hand():
    """Of 10 questions that one alone solves, 1 is A's: p = 2 (1 + 10) / 2^10."""
    a = np.array([1] * 5 + [1] + [0] * 9 + [0] * 4, bool)
    b = np.array([1] * 5 + [0] + [1] * 9 + [0] * 4, bool)
    found = mcnemar_of(a, b)
    assert (found.both, found.only_a, found.only_b, found.neither, found.p) == (5, 1, 9, 4, 22 / 1024)


def test_the_bootstrap_of_many_questions_is_the_normal_interval():
    d = np.random.default_rng(3).normal(0.1, 0.4, 500)
    low, high = bootstrap_interval(d)
    half = 1.96 * d.std(ddof=1) / math.sqrt(500)
    assert (low, high) == (
        pytest.approx(d.mean() - half, abs=half / 25),
        pytest.approx(d.mean() + half, abs=half / 25),
    )


def test_the_bootstrap_of_few_questions_is_that_of_all_resamples():
    """Of 4 questions there are 256 resamples: the quantile that widens for few questions, of their exact means."""
    d = np.array([0.0, 0.25, 0.5, 1.0])
    means = sorted(sum(pick) / 4 for pick in np.array(np.meshgrid(d, d, d, d)).T.reshape(-1, 4).tolist())
    share = 0.5 * math.erfc(t_quantile(3) * math.sqrt(4 / 3) / math.sqrt(2))
    assert share < 1e-3  # t of 3 degrees of freedom is 3.18: far below the 2.5% of plain percentiles
    low, high = bootstrap_interval(d)
    assert low == pytest.approx(means[0], abs=0.0626) and high == pytest.approx(means[-1], abs=0.0626)
    assert (low, high) == bootstrap_interval(d)  # seeded
    assert bootstrap_interval(np.zeros(9)) == (0.0, 0.0)


def test_better_worse_and_neither():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 6, 60) / 8
    better, worse = compare(rates(*a), rates(*(a + 0.25))), compare(rates(*(a + 0.25)), rates(*a))
    assert (better.outcome, worse.outcome) == (Outcome.BETTER, Outcome.WORSE)
    assert better.difference.mean == pytest.approx(0.25) and worse.difference.mean == pytest.approx(-0.25)
    assert compare(rates(*a), rates(*a)).outcome is Outcome.NO_DIFFERENCE
    shuffled = compare(rates(*a), rates(*rng.permutation(a)))
    assert shuffled.outcome is Outcome.NO_DIFFERENCE
    assert shuffled.difference.low < 0 < shuffled.difference.high


def test_pairs_are_told_by_their_questions_and_not_by_their_order():
    a, b = rates(*np.arange(40) / 40), rates(*(np.arange(40) + 1) / 40)
    expected = compare(a, b)
    assert compare(a, b[::-1]) == expected
    assert expected.difference.se < 0.02  # in the wrong order the spread is that of the questions


def test_within_the_margin_worse_passes():
    """A whole 0.25 below, on every question: worse by more than 0.2, and not by more than 0.3."""
    a, b = rates(*[0.5] * 10), rates(*[0.25] * 10)
    outcomes = [compare(a, b, margin=margin).outcome for margin in (0.0, 0.2, 0.3)]
    assert outcomes == [Outcome.WORSE, Outcome.WORSE, Outcome.NO_DIFFERENCE]
    assert compare(b, a, margin=0.3).outcome is Outcome.NO_DIFFERENCE
    for margin in (-0.1, 1.0, math.nan):
        with pytest.raises(DataError, match="margin"):
            compare(a, b, margin=margin)


def test_few_questions_decide_nothing():
    """Five that differ, all to one side, are p = 0.06; the sixth decides."""
    base, up = np.full(20, 0.5), np.full(20, 0.5)
    up[:5] = 1.0
    assert outcome_of(base, up, 0.02, 0.2) is Outcome.NO_DIFFERENCE
    up[5] = 1.0
    assert outcome_of(base, up, 0.02, 0.2) is Outcome.BETTER
    assert outcome_of(up, base, -0.2, -0.02) is Outcome.WORSE


def test_of_single_answers_mcnemar_has_to_agree():
    """Seven against one is p = 0.07, eight against one 0.04; an interval alone would decide both."""
    for more, outcome in ((7, Outcome.NO_DIFFERENCE), (8, Outcome.BETTER)):
        a, b = np.zeros(30), np.zeros(30)
        a[0], b[1 : 1 + more] = 1, 1
        low, high = bootstrap_interval(b - a)
        assert low > 0
        assert outcome_of(a, b, float(low), float(high)) is outcome


def test_questions_without_a_score_are_left_out_and_counted():
    lost = replace(question("q0", 0.0), samples=(SampleResult(VerdictStatus.FAILED),))
    a, b = rates(*[0.25] * 9), rates(*[0.75] * 9)
    found = compare([lost, *a[1:]], b)
    assert (found.num_questions, found.left_out, found.mean_a, found.mean_b) == (8, 1, 0.25, 0.75)
    with pytest.raises(DataError, match="1 questions have a scored answer in both evaluations"):
        compare(a[:1], b)


def test_what_is_no_pair_is_refused_with_what_differs():
    results = rates(0.5, 1.0)
    reference = record(results)
    refuse_different(reference, record(results[::-1], "other weights"), "A", "B")
    with pytest.raises(DataError, match="for their questions differ"):
        refuse_different(reference, record(rates(0.5)), "A", "B")
    with pytest.raises(DataError, match="for their prompt differ"):
        refuse_different(reference, record(results, prompt="q"), "A", "B")
    with pytest.raises(DataError, match=r"(?s)A and B .* sampling differ.*\n  sampling.temperature: 0.6 and 1.0$"):
        refuse_different(reference, record(results, temperature=1.0), "A", "B")


def test_results_there_and_back(tmp_path: Path):
    unscorable = SampleResult(VerdictStatus.UNSCORABLE, reason="no truth")
    results = [question("a", 1.0, 0.0), replace(question("b"), samples=(unscorable,))]
    write(tmp_path, results, record(results))
    assert read(tmp_path) == (record(results), results)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        (RECORD, "{", "evaluation.json: not the record of an evaluation"),
        (RECORD, '{"format": 2}', "evaluation.json: format 2; this version reads 1"),
        (RECORD, '{"format": 1, "digests": {"prompt": "x"}, "sampling": {}, "scores": {}}', "no digest of weights"),
        (RESULTS, '{"id": "a", "digest": "", "samples": []}\n{"id": 3', "results.jsonl, line 2: not the results of"),
        (RESULTS, '{"id": "a", "digest": "", "samples": []}\n' * 2, "line 2: question 'a' already stands in line 1"),
        (RESULTS, '{"id": "a", "digest": "", "samples": [{"status": "lost", "finish": "stop"}]}', "line 1: not the"),
        (
            RESULTS, '{"id": "a", "digest": "", "samples": [{"status": "scored", "finish": "stop", "value": 2}]}',
            r"line 1: not the results of a question: ValueError\('a value outside \[0, 1\]'\)",
        ),
    ],
)  # fmt: skip
def test_what_is_no_result_is_said_with_its_place(file: str, text: str, said: str, tmp_path: Path):
    results = rates(0.5, 1.0)
    write(tmp_path, results, record(results))
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=said):
        read(tmp_path)


def test_an_unfinished_evaluation_is_none(tmp_path: Path):
    with pytest.raises(DataError, match="no finished evaluation"):
        read(tmp_path)


def test_the_command_and_its_exit_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """0 for the same and for better, 1 for worse, 2 for what is no pair; and what it says of it."""
    a = np.arange(30) / 60
    runs = {"a": rates(*a), "b": rates(*(a + 0.5)), "other": rates(*a[:20])}
    for name, results in runs.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name, results, record(results, weights=name))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["r1mega", "compare", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0), *capsys.readouterr()

    code, out, err = run("a", "b", "-o", "found.json")
    assert (code, out.splitlines()[-1], err) == (0, "B is better than A", "")
    assert json.loads((tmp_path / "found.json").read_text())["outcome"] == "better"
    code, out, _ = run("b", "a", "--margin", "0.1")
    assert code == 1 and out.endswith("B is worse than A, beyond the margin of 0.1\n")
    code, out, _ = run("a", "a")
    assert code == 0 and out.endswith("no difference can be told\nnote: both are of the same weights\n")
    code, _, err = run("a", "other")
    assert code == 2 and "a and other cannot be compared question by question, for their questions differ" in err
