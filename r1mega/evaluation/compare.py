"""Two checkpoints on the same questions, question by question: is the second one better, worse, or neither?

d_q is the mean value of the second's answers to a question minus that of the first's. The interval of the mean of d
is a paired bootstrap: questions are drawn with replacement, both checkpoints' answers with them, and the interval's
ends are quantiles of the resampled means. Percentiles of few questions cover too little (Hesterberg 2015, "What
teachers should know about the bootstrap"): so the quantiles taken are Phi(-+ c sqrt(Q / (Q - 1))), with c the 0.975
quantile of Student's t with Q - 1 degrees of freedom, which tends to 2.5% and 97.5% as Q grows.

McNemar's exact test looks at the questions that one of them solves and the other does not (solved: more than half of
its scored answers are right): were they equally good, each such question would be a fair coin.

The verdict: better or worse where the interval of the mean difference lies beyond the margin on that side. Two guards
keep a handful of questions from deciding. Fewer than six questions on which the two differ decide nothing: of five,
all on one side, an exact test has p = 0.06. And where each question is simply right or wrong, McNemar's p must be at
most 0.05 as well. Simulated: docs/measurements/evaluation_intervals.json.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r1mega.diagnostics.student_t import binomial_two_sided, t_quantile
from r1mega.errors import DataError
from r1mega.evaluation.intervals import Interval, standard_error
from r1mega.evaluation.results import COMPARED, QuestionResult, Record

RESAMPLES = 10_000
SEED = 0
LEAST_DIFFERENT = 6
"""Questions that must differ before anything is decided: 2 / 2^6 is below 0.05, 2 / 2^5 is not."""
BLOCK = 2**21
"""Resampled values in memory at once."""


class Outcome(StrEnum):
    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE = "no difference"


@dataclass(frozen=True)
class McNemar:
    """Questions by who solves them, and the exact two-sided p."""

    both: int
    only_a: int
    only_b: int
    neither: int
    p: float


@dataclass(frozen=True)
class PairedComparison:
    """B against A, on the questions for which both have a scored answer."""

    num_questions: int
    left_out: int
    """Questions for which one of the two, or both, have no scored answer."""
    mean_a: float
    mean_b: float
    difference: Interval
    """Of B's mean minus A's, in [-1, 1]."""
    mcnemar: McNemar
    margin: float
    outcome: Outcome

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and numbers, by these fields' names, and how the bootstrap was made."""
        return {**asdict(self), "bootstrap": {"resamples": RESAMPLES, "seed": SEED}}


def refuse_different(a: Record, b: Record, name_a: str, name_b: str) -> None:
    """Refuse what is no pair.

    Raises:
        DataError: the two are not of the same questions, prompt and sampling; says which of them differ, and how.
    """
    different = [name for name in COMPARED if a.digests[name] != b.digests[name]]
    if not different:
        return
    said = [f"{name}: {a.digests[name]} and {b.digests[name]}" for name in different]
    if "sampling" in different:
        settings = sorted({*a.sampling, *b.sampling})
        said += [
            f"sampling.{name}: {a.sampling.get(name)} and {b.sampling.get(name)}"
            for name in settings
            if a.sampling.get(name) != b.sampling.get(name)
        ]
    raise DataError(
        f"{name_a} and {name_b} cannot be compared question by question, for their {' and '.join(different)} differ: "
        "evaluate both checkpoints with one config\n  " + "\n  ".join(said)
    )


def compare(a: Sequence[QuestionResult], b: Sequence[QuestionResult], *, margin: float = 0.0) -> PairedComparison:
    """B against A, paired by question id.

    Args:
        margin: how far the interval of the difference must lie from 0, in [0, 1): 0.02 lets two points pass.

    Raises:
        DataError: fewer than two questions have a scored answer in both; margin is out of range.
    """
    if not 0 <= margin < 1:
        raise DataError(f"margin {margin}: give a share of at least 0 and below 1")
    means_b = {result.id: result.mean for result in b}
    everything = len({result.id for result in a} | set(means_b))
    pairs = [
        (mean_a, mean_b)
        for result in a
        if (mean_a := result.mean) is not None and (mean_b := means_b.get(result.id)) is not None
    ]
    if len(pairs) < 2:
        raise DataError(f"{len(pairs)} questions have a scored answer in both evaluations: a comparison needs two")
    values_a, values_b = np.asarray(pairs, np.float64).T
    d = values_b - values_a
    low, high = bootstrap_interval(d)
    difference = Interval(float(d.mean()), float(standard_error(d)), float(low), float(high))
    mcnemar = mcnemar_of(values_a > 0.5, values_b > 0.5)
    return PairedComparison(
        num_questions=len(pairs),
        left_out=everything - len(pairs),
        mean_a=float(values_a.mean()),
        mean_b=float(values_b.mean()),
        difference=difference,
        mcnemar=mcnemar,
        margin=margin,
        outcome=outcome_of(values_a, values_b, difference.low, difference.high, margin),
    )


def outcome_of(
    values_a: NDArray[np.float64], values_b: NDArray[np.float64], low: float, high: float, margin: float = 0.0
) -> Outcome:
    """The verdict (see the module) from each question's mean values, [questions], and the difference's interval."""
    if np.count_nonzero(values_a != values_b) < LEAST_DIFFERENT:
        return Outcome.NO_DIFFERENCE
    yes_or_no = bool(np.isin(values_a, (0, 1)).all() and np.isin(values_b, (0, 1)).all())
    if yes_or_no and mcnemar_of(values_a > 0.5, values_b > 0.5).p > 0.05:
        return Outcome.NO_DIFFERENCE
    if low > margin:
        return Outcome.BETTER
    return Outcome.WORSE if high < -margin else Outcome.NO_DIFFERENCE


def mcnemar_of(solved_a: NDArray[np.bool_], solved_b: NDArray[np.bool_]) -> McNemar:
    """The table of two checkpoints' solved questions, [questions] each, and its exact test."""
    only_a, only_b = int(np.sum(solved_a & ~solved_b)), int(np.sum(solved_b & ~solved_a))
    both, neither = int(np.sum(solved_a & solved_b)), int(np.sum(~solved_a & ~solved_b))
    return McNemar(both, only_a, only_b, neither, binomial_two_sided(only_a, only_a + only_b))


def bootstrap_interval(
    differences: NDArray[np.float64], *, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends of the 95% interval of the mean of [..., questions] differences, at least two of them (see the module).

    All rows of `differences` meet the same resamples.
    """
    num = differences.shape[-1]
    draw = np.random.default_rng(seed)
    means = [
        differences @ _times_drawn(draw, min(rows, resamples - at), num).T / num
        for rows in [max(1, BLOCK // num)]
        for at in range(0, resamples, rows)
    ]
    share = NormalDist().cdf(-t_quantile(num - 1) * math.sqrt(num / (num - 1)))
    low, high = np.quantile(np.concatenate(means, -1), (share, 1 - share), axis=-1)
    return low, high


def _times_drawn(draw: np.random.Generator, rows: int, num: int) -> NDArray[np.float64]:
    """[rows, num]: how often each question is drawn, of num draws with replacement, in each of `rows` resamples."""
    drawn = draw.integers(0, num, (rows, num)) + np.arange(rows)[:, None] * num
    return np.bincount(drawn.ravel(), minlength=rows * num).reshape(rows, num).astype(np.float64)
