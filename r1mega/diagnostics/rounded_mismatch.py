"""How far engine and trainer are apart where either of them computes in bf16 or fp8.

There a token's difference d = log pi_trainer - log pi_engine is rounding, and where a router chose another expert,
any amount: the largest one says nothing of the engine's weights, a rollout's mean |d| and its KL do. Tokens are the
engine's samples, so that

    KL(engine || trainer) = E[exp(d) - 1 - d]

(k3: never negative, and of far less variance than -d; algos/kl.py). The 99.9th percentile is of a histogram that all
ranks add up exactly, with 128 equal parts between any two powers of two: what is given is the lower end of its part,
and so too small by at most 1/128 of it. Sums over ranks are exact up to float64's rounding.

That the engine holds the policy's weights is not shown here, but by checksums of what it received
(`cluster.weights.verify`).
"""

import math
import sys
from array import array
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from r1mega.config.cluster import Cluster
from r1mega.diagnostics.settings import Mismatch
from r1mega.diagnostics.trend import trend_test
from r1mega.errors import MismatchError
from r1mega.samples import Sample

MEAN = {"dense": 1e-2, "mixture of experts": 3e-2}
"""`mismatch.mean` where it is left out, nats."""
KL = {"dense": 1e-3, "mixture of experts": 1e-2}
"""`mismatch.kl` where it is left out, nats a token."""
FAR = 1.0
"""Nats past which a token counts as far apart."""


@dataclass(frozen=True)
class Spread:
    """The differences of one rank's sampled tokens."""

    answers: int
    tokens: int
    total: float
    """Sum of |d|, nats."""
    divergence: float
    """Sum of exp(d) - 1 - d, nats."""
    largest: float
    """Of |d|; NaN where a log-probability is no finite number."""
    far: int
    """Tokens of |d| > `FAR`."""
    histogram: Mapping[int, int]
    """Leading 16 bits of |d| as float32 -> tokens."""


def measure_spread(samples: Sequence[Sample]) -> Spread:
    """Of one rank's answers, both log-probabilities attached."""
    histogram = Counter[int]()
    totals, divergences, largest, far = [0.0], [0.0], [0.0], 0
    for sample in samples:  # one answer at a time: a float object a token is many times the buffer
        pairs = zip(sample.old_logp.tolist(), sample.behaviour_logp.tolist(), strict=True)
        differences = [old - behaviour for old, behaviour in pairs]
        gaps = [abs(d) for d in differences]
        if not all(map(math.isfinite, gaps)):
            largest.append(math.nan)
            continue
        histogram.update(_leading_bits(gaps))
        totals.append(math.fsum(gaps))
        divergences.append(math.fsum(map(_k3, differences)))
        largest.append(max(gaps, default=0.0))
        far += sum(gap > FAR for gap in gaps)
    return Spread(
        answers=len(samples),
        tokens=sum(len(s.completion_ids) for s in samples),
        total=math.fsum(totals),
        divergence=math.fsum(divergences),
        largest=max(largest) if all(map(math.isfinite, largest)) else math.nan,
        far=far,
        histogram=dict(histogram),
    )


def spread(parts: Sequence[Spread]) -> dict[str, float]:
    """What all data-parallel ranks' differences come to.

    Returns:
        `mismatch/mean`, `mismatch/p999` and `mismatch/max` of |d| over the `mismatch/tokens` tokens of the
        `mismatch/answers` answers that are compared; `mismatch/far`, the share of tokens more than 1 nat apart;
        `mismatch/kl`, nats a token.

    Raises:
        MismatchError: a log-probability is not finite.
    """
    if any(math.isnan(part.largest) for part in parts):
        raise MismatchError("a log-probability of a sampled token is not finite: the policy has diverged")
    tokens, histogram = sum(p.tokens for p in parts), Counter[int]()
    for part in parts:
        histogram.update(part.histogram)
    return {
        "mismatch/mean": math.fsum(p.total for p in parts) / tokens,
        "mismatch/p999": _percentile(histogram, tokens),
        "mismatch/max": max(p.largest for p in parts),
        "mismatch/far": sum(p.far for p in parts) / tokens,
        "mismatch/kl": math.fsum(p.divergence for p in parts) / tokens,
        "mismatch/answers": float(sum(p.answers for p in parts)),
        "mismatch/tokens": float(tokens),
    }


@dataclass(frozen=True)
class RolloutBounds:
    """What a rollout's mean |d| and KL may be, and what to look at where they are more."""

    mean: float
    kl: float
    causes: str

    @classmethod
    def of(cls, settings: Mismatch, cluster: Cluster, *, moe: bool) -> "RolloutBounds":
        """The bounds of a run; moe: whether its model is a mixture of experts."""
        kind = "mixture of experts" if moe else "dense"
        return cls(settings.mean or MEAN[kind], settings.kl or KL[kind], _causes(cluster, moe=moe))

    def refuse(self, found: Mapping[str, float]) -> None:
        """Raises MismatchError where the figures of `spread` are past a bound."""
        mean, kl = found["mismatch/mean"], found["mismatch/kl"]
        past = [
            f"{what} is {value:.3g}, more than mismatch.{name} = {bound:g}"
            for what, value, name, bound in (
                ("the mean difference of log-probabilities, in nats,", mean, "mean", self.mean),
                ("KL(engine || trainer), in nats a token,", kl, "kl", self.kl),
            )
            if value > bound
        ]
        if past:
            raise MismatchError(
                f"engine and trainer disagree on {found['mismatch/tokens']:,.0f} sampled tokens: {'; '.join(past)}. "
                f"One token in 1,000 is off by {found['mismatch/p999']:.3g} or more, {found['mismatch/far']:.2%} by "
                f"more than {FAR:g} nat. {self.causes}"
            )


def _causes(cluster: Cluster, *, moe: bool) -> str:
    """What may be to blame, the likeliest and the quickest to rule out first."""
    verify = cluster.weights.verify
    one_sided_fp8 = cluster.weights.fp8 != (cluster.trainer.precision.fp8 != "none")
    push = (
        f"What the engine holds is proven by checksums (cluster.weights.verify = {verify}), so look at how the two "
        "compute"
        if verify
        else "Nobody has proven what the engine holds: set cluster.weights.verify = 1 first. If that holds, look at "
        "how the two compute"
    )
    steps = [
        'answers replayed from a journal of another layout or engine (rollout.replay = "live" samples them again)',
        f"what rounds: {', '.join(cluster.roundings)}"
        + (", fp8 on one side alone" if one_sided_fp8 else "")
        + "; the engine's head"
        + (" and router" if moe else "")
        + " must compute in fp32",
    ]
    if moe:
        steps.append(
            "the engine's kernels of experts "
            f'(cluster.rollout.moe_backend = "{cluster.rollout.moe_backend}"; "triton" is the most exact)'
        )
    steps.append(
        "the dtype of rotary tables and kernels of attention (tools/compare_logprobs.py sets both sides apart)"
    )
    return f"{push}, in this order: " + "; ".join(f"({i}) {step}" for i, step in enumerate(steps, 1))


class KLWatch:
    """Sees the KL of every rollout of a run in turn, and warns once where it rises.

    A rise: the t test of the slope over the last `window` rollouts (diagnostics/trend.py) at alpha over the number of
    windows that the run has, so that all looks together err with a chance of at most alpha; and the line at least
    doubles within the window, since drift that is certain and small is of no interest.
    """

    def __init__(self, settings: Mismatch, rollouts: int) -> None:
        """rollouts: of the whole run."""
        self._window = settings.window
        self.level = settings.alpha / max(1, rollouts - settings.window + 1)
        """At which each window is tested."""
        self.seen = deque[float](maxlen=settings.window)
        self.said = False

    def see(self, kl: float) -> tuple[dict[str, float], str]:
        """Take in a rollout's `mismatch/kl`.

        Returns:
            `mismatch/kl_change`, by how much its line rose over the window, nats a token, and `mismatch/kl_p`, the p
            of "it does not rise", once there is a window; and a warning, "" where there is none.
        """
        self.seen.append(kl)
        if len(self.seen) < self._window:
            return {}, ""
        trend = trend_test(self._window)(tuple(self.seen))
        figures = {"mismatch/kl_change": trend.change, "mismatch/kl_p": trend.p_up}
        if self.said or trend.p_up > self.level or trend.change < max(trend.start, 0.0):
            return figures, ""
        self.said = True
        return figures, (
            f"engine and trainer drift apart: over {self._window} rollouts KL(engine || trainer) rose by "
            f"{trend.change:.3g} nats a token, from {max(trend.start, 0.0):.3g} (p = {trend.p_up:.1g})"
        )


def _k3(d: float) -> float:
    try:
        return math.expm1(d) - d
    except OverflowError:  # d > 709: past every bound
        return math.inf


def _leading_bits(gaps: Sequence[float]) -> memoryview:
    """[T] uint16: sign, exponent and the first 7 bits of the mantissa of each as float32, which grow with it."""
    halves = memoryview(array("f", gaps)).cast("B").cast("H")
    return halves[1::2] if sys.byteorder == "little" else halves[::2]


def _percentile(histogram: Mapping[int, int], tokens: int) -> float:
    """The lower end of the part that holds the token of rank ceil(0.999 x tokens)."""
    left = -(-999 * tokens // 1000)
    for bits in sorted(histogram):
        if (left := left - histogram[bits]) <= 0:
            (edge,) = memoryview((bits << 16).to_bytes(4, sys.byteorder)).cast("f").tolist()
            return edge
    raise ValueError(f"a histogram of fewer than {tokens} tokens")
