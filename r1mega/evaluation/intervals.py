"""95% intervals of a share, clustered by question: Wilson's score interval on the effective number of questions.

k answers to one question are not k questions. So each question is one observation, its value x_q in [0, 1] (the mean
over its answers, or an estimate of pass@k or cons@k), and with Q questions

    mean  = sum x_q / Q
    SE^2  = sum (x_q - mean)^2 / (Q (Q - 1))                     the standard error clustered by question
    n     = mean (1 - mean) / SE^2                               the effective number of independent yes-or-no answers
    c     = 0.975 quantile of Student's t with Q - 1 degrees of freedom
    [low, high] = (mean + c^2/2n -+ c sqrt(mean (1 - mean) / n + c^2/4n^2)) / (1 + c^2/n)

mean -+ c SE covers too little where questions are mostly right or mostly wrong, since the spread then depends on the
mean; Wilson's interval takes the spread at the mean that it tests, which is right for any spread in proportion to
mean (1 - mean), and stays within [0, 1]. What it covers, by population, number of questions and answers:
docs/measurements/evaluation_intervals.json.

Where all questions have one value nothing is known of their spread, and n is Q: as if each had been answered once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r1mega.diagnostics.student_t import t_quantile
from r1mega.errors import DataError


@dataclass(frozen=True)
class Interval:
    """A mean over questions with its standard error clustered by question, and its 95% interval."""

    mean: float
    se: float
    low: float
    high: float


def interval_of(values: Sequence[float] | NDArray[np.float64]) -> Interval:
    """The mean over questions and its interval.

    With one question nothing is known of the spread between questions: se is 0.5, the most that a share can have, and
    the interval [0, 1].

    Args:
        values: [questions], each in [0, 1].

    Raises:
        DataError: there is no question, or a value outside [0, 1].
    """
    given = np.asarray(values, np.float64)
    if not len(given):
        raise DataError("no question has a scored answer: there is nothing to take a mean of")
    if not np.all((given >= 0) & (given <= 1)):
        raise DataError(f"values of questions run from {given.min():g} to {given.max():g}; they have to be in [0, 1]")
    mean = float(given.mean())
    if len(given) == 1:
        return Interval(mean, 0.5, 0.0, 1.0)
    se = float(standard_error(given))
    low, high = wilson_t(np.asarray(mean), np.asarray(se), len(given))
    return Interval(mean, se, float(low), float(high))


def standard_error(values: NDArray[np.float64]) -> Any:
    """[..., questions] -> [...]: the standard error of the mean over questions."""
    num = values.shape[-1]
    return values.std(-1, ddof=1) / np.sqrt(num)


def wilson_t(
    mean: NDArray[np.float64], se: NDArray[np.float64], num: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Low and high ends of the interval (see the module), for many evaluations at once.

    Args:
        mean: [...], in [0, 1].
        se: [...], clustered by question.
        num: of questions, at least 2.
    """
    c = t_quantile(num - 1)
    spread = mean * (1 - mean)
    known = (se > 0) & (spread > 0)
    inverse_n = np.where(known, np.square(se) / np.where(known, spread, 1.0), 1 / num)
    middle = mean + c * c / 2 * inverse_n
    half = c * np.sqrt(spread * inverse_n + np.square(c / 2 * inverse_n))
    scale = 1 + c * c * inverse_n
    return np.maximum((middle - half) / scale, 0.0), np.minimum((middle + half) / scale, 1.0)
