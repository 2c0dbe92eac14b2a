"""What bias a judge of pairs is left with, whatever the votes come to: for the answer shown first, and for the
longer.

position: of the votes that prefer one answer, the share that prefers the one shown first, less 1/2. A pair is one
observation, its value the share among its own votes: four votes on a pair are not four pairs.

length: of the pairs whose votes prefer one answer, the share won by the longer, less 1/2. It holds what a judge likes
about length and what longer answers deserve: only where neither length is better by itself is it the judge's alone.

Both with 95% intervals clustered by pair (`evaluation.intervals`). Pairs that failed or are unscorable change
nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from r1mega.evaluation.intervals import interval_of
from r1mega.rewards.preference import PairVerdict


@dataclass(frozen=True)
class Residual:
    """A bias, from -1/2 to 1/2, with its 95% interval."""

    bias: float
    low: float
    high: float
    pairs: int
    """That say anything of it."""


def position_bias(verdicts: Sequence[PairVerdict]) -> Residual | None:
    """None where no vote prefers an answer."""
    shares = []
    for verdict in verdicts:
        decided = [vote.for_first for vote in verdict.votes if vote.for_first is not None] if verdict.scored else []
        if decided:
            shares.append(sum(decided) / len(decided))
    return _residual(shares)


def length_bias(verdicts: Sequence[PairVerdict]) -> Residual | None:
    """None where no pair of two lengths is decided."""
    won = []
    for verdict in verdicts:
        longer = verdict.characters[0] - verdict.characters[1]
        if verdict.scored and verdict.gap and longer:
            won.append(float((verdict.gap > 0) == (longer > 0)))
    return _residual(won)


def bias_figures(verdicts: Sequence[PairVerdict]) -> dict[str, float]:
    """Both, for a line of metrics: judge_bias/position, .../low, .../high, and of length."""
    found = {"position": position_bias(verdicts), "length": length_bias(verdicts)}
    figures: dict[str, float] = {}
    for name, residual in found.items():
        if residual is not None:
            figures |= {
                f"judge_bias/{name}": residual.bias,
                f"judge_bias/{name}/low": residual.low,
                f"judge_bias/{name}/high": residual.high,
                f"judge_bias/{name}/pairs": float(residual.pairs),
            }
    return figures


def bias_lines(verdicts: Sequence[PairVerdict]) -> list[str]:
    """The same, for people."""
    said = {"the answer shown first": position_bias(verdicts), "the longer answer": length_bias(verdicts)}
    return [
        f"the judge's bias for {what}: {one.bias:+.3f} [{one.low:+.3f}, {one.high:+.3f}] of {one.pairs:,} pairs"
        for what, one in said.items()
        if one is not None
    ]


def _residual(shares: Sequence[float]) -> Residual | None:
    if not shares:
        return None
    share = interval_of(shares)
    return Residual(share.mean - 0.5, share.low - 0.5, share.high - 0.5, len(shares))
