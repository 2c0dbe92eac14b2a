"""The test of a trend: held against numpy's dense matrices, and its error rate and power against simulated noise."""

import random

import numpy as np
import pytest

from r1mega.diagnostics.student_t import t_cdf, t_quantile, t_tail
from r1mega.diagnostics.trend import LEAST_RHO, MOST_RHO, STEP, trend_test

W = 16


def ar1(rng: random.Random, size: int, rho: float) -> list[float]:
    """Gaussian noise of variance 1."""
    values = [rng.gauss(0, 1)]
    while len(values) < size:
        values.append(rho * values[-1] + (1 - rho * rho) ** 0.5 * rng.gauss(0, 1))
    return values


def by_matrices(values: list[float]) -> tuple[float, float, float]:
    """Slope, t and degrees of freedom as the docstring defines them, by dense matrices."""
    y, size = np.array(values), len(values)
    t = np.arange(size) - (size - 1) / 2

    def without(place: int):
        design = np.column_stack([np.ones(size), t, np.arange(size) >= place])
        return np.eye(size) - design @ np.linalg.pinv(design)

    fits = [without(place) for place in range(size // 4, size - size // 4 + 1)]
    fit = min(fits, key=lambda fit: y @ fit @ y)
    lag = (np.eye(size, k=1) + np.eye(size, k=-1)) / 2
    slope, contrast = np.polyfit(t, y, 1)[0], t / (t @ t)
    residuals = fit @ y
    seen = residuals @ lag @ residuals / (residuals @ residuals)
    for rho in np.arange(LEAST_RHO, MOST_RHO + 1e-9, STEP):
        noise = rho ** np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
        total = np.trace(fit @ noise)
        if np.trace(fit @ lag @ fit @ noise) / total >= seen:
            break
    variance = residuals @ residuals / total * (contrast @ noise @ contrast)
    return slope, slope / variance**0.5, total**2 / np.trace(fit @ noise @ fit @ noise)


def test_the_statistic_is_the_one_of_the_docstring():
    rng, test, bounds = random.Random(1), trend_test(W), 0
    for rho in (-0.5, 0.0, 0.5, 0.8, 0.95):
        for drift in (-0.3, 0.0, 0.1):
            values = [3 + x + drift * i for i, x in enumerate(ar1(rng, W, rho))]
            slope, t, df = by_matrices(values)
            found = test(values)
            assert found.change == pytest.approx(slope * (W - 1), rel=1e-9)
            assert found.start == pytest.approx(np.mean(values) - found.change / 2)
            assert found.p_up == pytest.approx(1 - t_cdf(t, df) if t > 0 else t_cdf(-t, df), rel=1e-6)
            assert found.p_up + found.p_down == pytest.approx(1)
            bounds += df == by_matrices([float(x) for x in random.Random(2).sample(range(99), W)])[2]
    assert 0 < bounds < 15  # the least autocorrelation is used, and not always


def test_steps_and_lines_without_noise_are_certain_and_constants_are_no_trend():
    test = trend_test(W)
    for falls in ([-float(i) for i in range(W)], [0.9] * 5 + [0.1] * (W - 5)):
        found = test(falls)
        assert found.p_down < 1e-12 < 1 - found.p_up + 1e-11 and found.change < 0
        assert test([-x for x in falls]).p_up == found.p_down
    assert [getattr(test([x] * W), p) for x in (0.0, 0.3, 1e6 / 3) for p in ("p_up", "p_down")] == [1.0] * 6
    with pytest.raises(ValueError, match="15 values for a window of 16"):
        test([0.0] * 15)
    with pytest.raises(ValueError, match="take 12 or more"):
        trend_test(11)


def test_the_tail_of_t_is_exact_where_one_minus_the_distribution_is_not():
    assert t_tail(t_quantile(9, 0.999), 9) == pytest.approx(0.001, rel=1e-9)
    assert t_tail(-1.3, 5.5) + t_tail(1.3, 5.5) == pytest.approx(1)
    # Of 1 degree of freedom the tail is 1/2 - arctan(t) / pi, which is 1 / (pi t) far out.
    assert t_tail(1e12, 1) == pytest.approx(1 / (np.pi * 1e12), rel=1e-9)
    assert (t_tail(float("inf"), 3), t_tail(float("-inf"), 3)) == (0.0, 1.0)


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_a_single_look_errs_no_oftener_than_it_says(rho):
    """2,000 windows: at 5% 100 false ones are expected, and 131 come once in a thousand."""
    rng, test = random.Random(f"one look {rho}"), trend_test(W)
    false = sum(test(ar1(rng, W, rho)).p_down <= 0.05 for _ in range(2000))
    assert false <= 131, false
    assert rho == 0.0 or false > 40, "so cautious that nothing would be found"
