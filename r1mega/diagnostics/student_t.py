"""Quantiles of Student's t and tails of the binomial distribution, so that intervals need no scipy."""

import functools
import math

_TINY = 1e-300
_MAX_TERMS = 500


@functools.cache
def t_quantile(df: int, p: float = 0.975) -> float:
    """The value below which a share `p` of Student's t distribution with `df` degrees of freedom lies, p in [0.5, 1).

    Bisection of the distribution function, to the last bits of a float.
    """
    if df < 1 or not 0.5 <= p < 1:
        raise ValueError(f"no quantile of t at df={df}, p={p}")
    low, high = 0.0, 2.0
    while t_cdf(high, df) < p:
        high *= 2
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return middle


def t_cdf(t: float, df: float) -> float:
    """The share of Student's t distribution below `t` >= 0: 1 - I_x(df/2, 1/2) / 2 at x = df / (df + t^2)."""
    x = df / (df + t * t)
    return 1.0 - 0.5 * _regularised_beta(x, df / 2, 0.5)


def t_tail(t: float, df: float) -> float:
    """The share of Student's t distribution above `t`, small shares to their last digits."""
    if math.isinf(t):
        return float(t < 0)
    tail = 0.5 * _regularised_beta(df / (df + t * t), df / 2, 0.5)
    return tail if t >= 0 else 1.0 - tail


def binomial_two_sided(successes: int, trials: int) -> float:
    """p of the exact two-sided test that a coin is fair: twice the smaller tail, at most 1. In whole numbers."""
    tail = sum(math.comb(trials, i) for i in range(min(successes, trials - successes) + 1))
    return min(1.0, 2 * tail / 2**trials)


def _regularised_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b) by its continued fraction (Lentz's method), on the side where that converges quickly."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _regularised_beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, _MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            fraction *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return front * fraction / a


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
