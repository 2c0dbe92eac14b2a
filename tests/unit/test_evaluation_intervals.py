"""Intervals of an evaluation: by hand, by the equation that they solve, against mpmath, and what they cover."""

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import rotation
from hypothesis import given
from hypothesis import strategies as st

from r1mega.diagnostics.student_t import binomial_two_sided, t_quantile
from r1mega.errors import DataError
from r1mega.evaluation.intervals import interval_of, standard_error, wilson_t

BENCH = Path(__file__).parents[2] / "tools/bench"
COVERED = {30: (0.93, 0.97), 200: (0.94, 0.96)}


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The module, as a script's folder gives it."""
    sys.path.insert(0, str(BENCH))
    yield importlib.import_module("evaluation_intervals")
    sys.path.remove(str(BENCH))


@pytest.mark.parametrize("df", [1, 2, 7, 29, 199, 4999])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.975, 0.9995])
def test_quantiles_of_t_are_those_of_mpmath(df: int, p: float):
    x = df / (df + mpmath.mpf(t_quantile(df, p)) ** 2)
    below = 1 - mpmath.betainc(mpmath.mpf(df) / 2, mpmath.mpf("0.5"), 0, x, regularized=True) / 2
    assert float(below) == pytest.approx(p, abs=1e-12)


def test_the_normal_quantile_is_the_limit_and_a_printed_table_agrees():
    assert [round(t_quantile(df), 3) for df in (1, 4, 10, 30, 120)] == [12.706, 2.776, 2.228, 2.042, 1.980]
    assert t_quantile(10**7) == pytest.approx(1.959964, abs=1e-5)


def test_a_fair_coin_by_hand():
    assert binomial_two_sided(1, 10) == binomial_two_sided(9, 10) == 2 * (1 + 10) / 1024
    assert binomial_two_sided(5, 10) == binomial_two_sided(0, 0) == 1.0


def test_an_interval_by_hand():
    """4 of 10 questions right: mean 0.4, SE^2 = 0.24 / 9, so n = 9, and c^2 = 2.262157^2 = 5.117355."""
    found = interval_of([1, 0, 0, 1, 0, 1, 0, 0, 1, 0])
    assert (found.mean, found.se) == (0.4, pytest.approx(math.sqrt(0.24 / 9)))
    half = 2.262157 * math.sqrt(0.24 / 9 + 5.117355 / 324)
    middle, scale = 0.4 + 5.117355 / 18, 1 + 5.117355 / 9
    assert found.low == pytest.approx((middle - half) / scale, abs=1e-6)
    assert found.high == pytest.approx((middle + half) / scale, abs=1e-6)


@given(st.lists(st.integers(0, 8), min_size=2, max_size=60))
def test_both_ends_are_where_the_mean_is_c_standard_deviations_away(rights: list[int]):
    """Wilson's equation (mean - end)^2 = c^2 end (1 - end) / n, whatever the values, and the ends mirror."""
    values = np.array(rights) / 8
    found, mirrored = interval_of(values), interval_of(1 - values)
    mean, se = found.mean, float(np.std(values, ddof=1)) / math.sqrt(len(values))
    n = mean * (1 - mean) / se**2 if se > 0 and 0 < mean < 1 else len(values)
    for end in (found.low, found.high):
        assert (mean - end) ** 2 == pytest.approx(t_quantile(len(values) - 1) ** 2 * end * (1 - end) / n, abs=1e-9)
    assert 0 <= found.low <= mean + 1e-12 and mean - 1e-12 <= found.high <= 1
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low), abs=1e-9)


def test_small_and_extreme_evaluations():
    assert interval_of([0.3]).__dict__ == {"mean": 0.3, "se": 0.5, "low": 0.0, "high": 1.0}
    nothing, all_right = interval_of([0.0] * 30), interval_of([1.0] * 30)
    assert nothing.low == 0 and nothing.high == pytest.approx(2.04523**2 / (30 + 2.04523**2), abs=1e-5)
    assert (all_right.low, all_right.high) == (pytest.approx(1 - nothing.high), 1)
    for wrong in ([], [0.5, 1.5], [-0.1, 0.3], [math.nan, 0.5]):
        with pytest.raises(DataError):
            interval_of(wrong)


def test_many_evaluations_at_once_are_each_by_itself():
    values = np.random.default_rng(0).beta(0.5, 2, (20, 30))
    low, high = wilson_t(values.mean(1), standard_error(values), 30)
    alone = [interval_of(row) for row in values]
    assert np.allclose(low, [one.low for one in alone], rtol=0, atol=1e-15)
    assert np.allclose(high, [one.high for one in alone], rtol=0, atol=1e-15)


CELLS = rotation.rows(
    "populations of simulated evaluations",
    rotating=[(population, num, k) for population in range(13) for num in (30, 200) for k in (4, 16, 64)],
    take=6,
)


@pytest.mark.parametrize(("population", "num", "k"), CELLS)
def test_the_interval_covers_what_it_promises(bench: Any, population: int, num: int, k: int):
    assert len(bench.STATED) == 13
    name = list(bench.STATED)[population]
    found = bench.coverage(bench.STATED[name], num, k, 5000, bench.rng_of(name, num, k))
    least, most = COVERED[num]
    assert least <= found["coverage"] <= most, name


def test_an_interval_without_care_would_be_seen(bench: Any):
    """Of hard questions mean -+ t SE covers too little, and answers taken for questions make that much worse."""
    name = "hard, most near 0: Beta(0.5, 4.5), mean 0.1"
    rng, (draw, truth) = bench.rng_of("fault"), bench.STATED[name]
    assert bench.coverage(bench.STATED[name], 30, 64, 5000, rng)["t"] < COVERED[30][0]
    mean = bench.evaluations(draw, 30, 64, 5000, rng).mean(1)
    low, high = wilson_t(mean, np.sqrt(mean * (1 - mean) / (30 * 64)), 30)
    assert np.mean((low <= truth) & (truth <= high)) < 0.6
