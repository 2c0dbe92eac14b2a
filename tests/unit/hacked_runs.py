"""Rollouts of made-up runs, as `diagnostics.hacking` sees them."""

import random
from collections.abc import Mapping, Sequence

from r1mega.buffers import Float32s, Int32s
from r1mega.samples import Completion, FinishReason, Group, Prompt, Verdict, VerdictStatus

FILLER = tuple(range(1000, 3000))
"""Tokens of which none comes twice."""


def rollout(answers: Sequence[Mapping[str, float]], tokens: Sequence[Sequence[int]] = ()) -> list[Group]:
    """One group: each answer's verdict by its parts (failed where there are none), and its tokens."""
    tokens = tokens or [FILLER[:10]] * len(answers)
    prompt = Prompt("p", "none", "q", "", Int32s([1]))
    completions = tuple(
        Completion("p", i, Int32s(ids), Float32s([0.0] * len(ids)), "", FinishReason.STOP, 0, seed=i)
        for i, ids in enumerate(tokens)
    )
    verdicts = tuple(
        Verdict(VerdictStatus.SCORED, 0.0, parts) if parts else Verdict(VerdictStatus.FAILED) for parts in answers
    )
    return [Group(prompt, completions, verdicts)]


def ar1(rng: random.Random, size: int, rho: float) -> list[float]:
    """Gaussian noise of variance 1 and autocorrelation rho."""
    values = [rng.gauss(0, 1)]
    while len(values) < size:
        values.append(rho * values[-1] + (1 - rho * rho) ** 0.5 * rng.gauss(0, 1))
    return values
