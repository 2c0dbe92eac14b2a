"""Whether engine and trainer give the same tokens the same log-probabilities.

In fp32 they do, to a few 1e-6, as long as both hold the same weights and compute the same model. The one exception
is a tie of the router: where two experts lead to within rounding, either may be chosen, and every token after that
differs by any amount. Such answers are counted; any other difference past the bound is a fault and stops the run.
"""

import math
from collections.abc import Callable, Sequence

from r1mega.errors import MismatchError
from r1mega.samples import Sample

MarginsOf = Callable[[Sequence[Sample]], Sequence[Sequence[float]]]
"""For each sample, the router's smallest lead at every position of prompt + completion but the last."""


MAX_TIED_SHARE = 0.25
"""Share of answers that ties may exempt; ties come one in some 100,000 tokens, so more is a fault."""


def mismatch(
    samples: Sequence[Sample], margins_of: MarginsOf, *, max_abs: float, tie_margin: float
) -> dict[str, float]:
    """|behaviour_logp - old_logp| over all sampled tokens, in nats.

    Args:
        samples: with both logprobs attached.
        margins_of: called only for the samples with a token past `max_abs`.
        max_abs: the bound.
        tie_margin: a lead below this is a tie.

    Returns:
        `mismatch/mean` and `mismatch/max` over all tokens; `mismatch/max_untied` over the answers without a token
        past the bound, and `mismatch/answers_after_tie`, how many the others are.

    Raises:
        MismatchError: an answer is past the bound and no tie stands before its first such token; more than
            `MAX_TIED_SHARE` of the answers are past it; or a log-probability is not finite.
    """
    gaps = [[abs(b - o) for b, o in zip(s.behaviour_logp, s.old_logp, strict=True)] for s in samples]
    if not all(math.isfinite(g) for gap in gaps for g in gap):
        raise MismatchError("a log-probability of a sampled token is not finite: the policy has diverged")
    past = [(s, gap) for s, gap in zip(samples, gaps, strict=True) if max(gap) > max_abs]
    leads = []
    for (sample, gap), margins in zip(past, margins_of([s for s, _ in past]) if past else (), strict=True):
        first = next(i for i, g in enumerate(gap) if g > max_abs)
        # Completion token i is predicted by the positions up to the one before it.
        leads.append(min(margins[: len(sample.prompt_ids) + first]))
    worst = max(max(gap) for gap in gaps)
    if leads and (max(leads) > tie_margin or len(past) > MAX_TIED_SHARE * len(samples)):
        raise MismatchError(
            f"engine and trainer disagree on the log-probability of a sampled token by up to {worst:.3g}, more than "
            f"mismatch.max_abs = {max_abs:g}, in {len(past)} of {len(samples)} answers, and no tie of the router "
            f"explains it (smallest lead {max(leads):.3g}, mismatch.tie_margin = {tie_margin:g}): the engine "
            "does not hold the policy's weights, or one of the two computes something else; look at the push and "
            "the shims"
        )
    flat = [g for gap in gaps for g in gap]
    return {
        "mismatch/mean": sum(flat) / len(flat),
        "mismatch/max": worst,
        "mismatch/max_untied": max((max(gap) for gap in gaps if max(gap) <= max_abs), default=0.0),
        "mismatch/answers_after_tie": float(len(past)),
    }
