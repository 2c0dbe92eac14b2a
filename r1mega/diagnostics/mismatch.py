"""Whether engine and trainer give the same tokens the same log-probabilities.

In fp32 they do, to a few 1e-5 at most, as long as both hold the same weights and compute the same model. The one
exception is a tie of the router: where two experts lead to within rounding, either may be chosen, and every token
after that differs by any amount. Such answers are counted; any other difference past the bound is a fault and stops
the run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from r1mega.errors import MismatchError
from r1mega.samples import Sample

MAX_TIED_SHARE = 0.25
"""Share of answers that ties may exempt; ties come one in some 100,000 tokens, so more is a fault."""


@dataclass(frozen=True)
class Gaps:
    """|behaviour_logp - old_logp| over the sampled tokens of one rank's answers, in nats."""

    answers: int
    tokens: int
    total: float
    largest: float
    largest_within: float
    """Over the answers without a token past the bound."""
    past: int
    """Answers with a token past the bound."""
    largest_lead: float
    """Over those, of the router's smallest lead before the first such token; -inf where there are none."""


def answers_past(samples: Sequence[Sample], max_abs: float) -> list[Sample]:
    """The answers with a token whose two log-probabilities differ by more than `max_abs`, and are numbers."""
    return [s for s in samples if _largest(s) > max_abs]


def measure(samples: Sequence[Sample], margins: Sequence[Sequence[float]], *, max_abs: float) -> Gaps:
    """The gaps of one rank's answers.

    Args:
        samples: with both logprobs attached.
        margins: for each of `answers_past`, the router's smallest lead at every position of prompt + completion but
            the last.
        max_abs: the bound.
    """
    largest = [_largest(s) for s in samples]
    past = answers_past(samples, max_abs)
    leads = [-math.inf]
    for sample, leads_of in zip(past, margins, strict=True):
        first = next(i for i, g in enumerate(_gap(sample)) if g > max_abs)
        # Completion token i is predicted by the positions up to the one before it.
        leads.append(min(leads_of[: len(sample.prompt_ids) + first]))
    return Gaps(
        answers=len(samples),
        tokens=sum(len(s.completion_ids) for s in samples),
        total=math.fsum(chain.from_iterable(map(_gap, samples))),  # the gaps of one answer at a time
        largest=max(largest, default=0.0) if all(map(math.isfinite, largest)) else math.nan,
        largest_within=max((gap for gap in largest if gap <= max_abs), default=0.0),
        past=len(past),
        largest_lead=max(leads),
    )


def mismatch(parts: Sequence[Gaps], *, max_abs: float, tie_margin: float) -> dict[str, float]:
    """What all ranks' gaps come to.

    Args:
        parts: of every data-parallel rank.
        max_abs: the bound on a token's gap.
        tie_margin: a lead below this is a tie.

    Returns:
        `mismatch/mean` and `mismatch/max` over all tokens of the `mismatch/answers` answers that are compared, which
        are those that are learnt from; `mismatch/max_untied` over the answers without a token past the bound, and
        `mismatch/answers_after_tie`, how many the others are.

    Raises:
        MismatchError: an answer is past the bound and no tie stands before its first such token; more than
            `MAX_TIED_SHARE` of the answers are past it; or a log-probability is not finite.
    """
    if any(math.isnan(part.largest) for part in parts):
        raise MismatchError("a log-probability of a sampled token is not finite: the policy has diverged")
    worst, lead = max(p.largest for p in parts), max(p.largest_lead for p in parts)
    past, answers = sum(p.past for p in parts), sum(p.answers for p in parts)
    if past and (lead > tie_margin or past > MAX_TIED_SHARE * answers):
        raise MismatchError(
            f"engine and trainer disagree on the log-probability of a sampled token by up to {worst:.3g}, more than "
            f"mismatch.max_abs = {max_abs:g}, in {past} of {answers} answers, and no tie of the router "
            f"explains it (smallest lead {lead:.3g}, mismatch.tie_margin = {tie_margin:g}): the engine "
            "does not hold the policy's weights, or one of the two computes something else; look at the push and "
            "the shims. Answers replayed from a journal that another layout wrote are of weights that differ by "
            'rounding, which grows step by step: rollout.replay = "live" samples them again'
        )
    return {
        "mismatch/mean": math.fsum(p.total for p in parts) / sum(p.tokens for p in parts),
        "mismatch/max": worst,
        "mismatch/max_untied": max(p.largest_within for p in parts),
        "mismatch/answers": float(answers),
        "mismatch/answers_after_tie": float(past),
    }


def _gap(sample: Sample) -> list[float]:
    """[T] float64: of each token."""
    pairs = zip(sample.behaviour_logp.tolist(), sample.old_logp.tolist(), strict=True)
    return [abs(behaviour - old) for behaviour, old in pairs]


def _largest(sample: Sample) -> float:
    """Of a sample's gaps; NaN where one of them is no finite number."""
    gaps = _gap(sample)
    return max(gaps) if all(map(math.isfinite, gaps)) else math.nan
