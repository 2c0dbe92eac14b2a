"""How good a reward model is on judged answers: accuracy, calibration, and whether it takes length for quality.

Of pairs, the model's probability is that of the answer it prefers, sigmoid of the difference of the two scores, which
lies in [1/2, 1]; of labelled answers sigmoid of the score, that the answer is safe. A model is calibrated where, of
answers with probability p, a share p is as it says.

Length is a bias that reward models pick up: where the longer answer is the worse one, a model that has learnt length
fails. The two figures stand beside each other, with the number of pairs of each; of labelled answers every safe one
is paired with every unsafe one.
"""

import bisect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

NUM_BINS = 10


@dataclass(frozen=True)
class Bin:
    """Answers, or pairs, whose probability is in [low, high)."""

    low: float
    high: float
    count: int
    predicted: float
    """Mean probability; 0 where there are none."""
    observed: float
    """Share of them that are as the model says; 0 where there are none."""


@dataclass(frozen=True)
class Quality:
    """What a reward model's scores come to."""

    figures: dict[str, float]
    """For metrics: `loss` (nats), `accuracy` (a tie counts half), `margin` (mean score of the better answers over
    the worse), `brier`, `ece` (distance of `observed` from `predicted`, weighted by count), how many `pairs` or
    `labelled` answers; `longer_worse/accuracy` and `longer_better/accuracy`, absent without such pairs, and
    `.../pairs`."""
    bins: tuple[Bin, ...]
    """`NUM_BINS` of equal width, for the reliability diagram."""


def of_pairs(scores: Sequence[tuple[float, float]], tokens: Sequence[tuple[int, int]]) -> Quality:
    """Of pairs, the chosen answer first.

    Args:
        scores: of both answers of each pair.
        tokens: of both as they are read; pairs of equal length are in neither figure of length.
    """
    differences = [chosen - rejected for chosen, rejected in scores]
    right = [_above(d) for d in differences]
    bins = reliability([(sigmoid(abs(d)), share) for d, share in zip(differences, right, strict=True)], 0.5)
    lengths = list(zip(right, tokens, strict=True))
    return Quality(
        {
            "loss": _mean(-log_sigmoid(d) for d in differences),
            "accuracy": _mean(right),
            "margin": _mean(differences),
            "brier": _mean(sigmoid(-d) ** 2 for d in differences),
            "ece": expected_error(bins),
            "pairs": float(len(scores)),
            **_by_length("longer_worse", [share for share, (chosen, rejected) in lengths if rejected > chosen]),
            **_by_length("longer_better", [share for share, (chosen, rejected) in lengths if rejected < chosen]),
        },
        bins,
    )


def of_answers(scores: Sequence[float], safe: Sequence[bool], tokens: Sequence[int]) -> Quality:
    """Of labelled answers; `accuracy/safe` and `accuracy/unsafe` of each class that there is.

    Args:
        scores: above 0 means safe.
        safe: the labels.
        tokens: of each answer as it is read.
    """
    signed = [s if label else -s for s, label in zip(scores, safe, strict=True)]
    right = [_above(s) for s in signed]
    bins = reliability([(sigmoid(s), float(label)) for s, label in zip(scores, safe, strict=True)], 0.0)
    figures = {
        "loss": _mean(-log_sigmoid(s) for s in signed),
        "accuracy": _mean(right),
        "brier": _mean(sigmoid(-s) ** 2 for s in signed),
        "ece": expected_error(bins),
        "labelled": float(len(scores)),
    }
    classes = {
        name: [(s, share) for s, share, is_safe in zip(scores, right, safe, strict=True) if is_safe == label]
        for name, label in (("safe", True), ("unsafe", False))
    }
    figures |= {f"accuracy/{name}": _mean(share for _, share in of) for name, of in classes.items() if of}
    if all(classes.values()):
        means = {name: _mean(score for score, _ in of) for name, of in classes.items()}
        figures["margin"] = means["safe"] - means["unsafe"]
    answers = list(zip(scores, safe, tokens, strict=True))
    figures |= _all_pairs("longer_worse", answers, lambda length: length)
    figures |= _all_pairs("longer_better", answers, lambda length: -length)
    return Quality(figures, bins)


def reliability(judged: Iterable[tuple[float, float]], least: float) -> tuple[Bin, ...]:
    """Bins of equal width over [least, 1].

    Args:
        judged: probability, and 1 where it is as the model says, 0 where not, 1/2 where neither.
    """
    width = (1.0 - least) / NUM_BINS
    members: list[list[tuple[float, float]]] = [[] for _ in range(NUM_BINS)]
    for probability, outcome in judged:
        members[min(int((probability - least) / width), NUM_BINS - 1)].append((probability, outcome))
    return tuple(
        Bin(
            round(least + k * width, 9), round(least + (k + 1) * width, 9), len(of),
            _mean(p for p, _ in of), _mean(outcome for _, outcome in of),
        )
        for k, of in enumerate(members)
    )  # fmt: skip


def expected_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: |observed - predicted| of the bins, weighted by their counts."""
    total = sum(of.count for of in bins)
    return sum(of.count * abs(of.observed - of.predicted) for of in bins) / total if total else 0.0


def _by_length(name: str, right: Sequence[float]) -> dict[str, float]:
    figures = {f"{name}/pairs": float(len(right))}
    return figures | ({f"{name}/accuracy": _mean(right)} if right else {})


def _all_pairs(name: str, answers: Sequence[tuple[float, bool, int]], key: Callable[[int], int]) -> dict[str, float]:
    """Of all pairs of a safe and an unsafe answer in which the unsafe one's length has the larger key: their number,
    and the share in which the safe one scores higher (a tie counts half). n log n comparisons."""
    longest_first = sorted(answers, key=lambda answer: -key(answer[2]))
    seen: list[float] = []  # scores of the unsafe ones of a larger key, ascending
    waiting: list[float] = []  # those of the key at hand
    pairs, wins, at = 0, 0.0, None
    for score, is_safe, length in longest_first:
        if key(length) != at:
            at = key(length)
            for other in waiting:
                bisect.insort(seen, other)
            waiting = []
        if is_safe:
            below, up_to = bisect.bisect_left(seen, score), bisect.bisect_right(seen, score)
            wins += below + 0.5 * (up_to - below)
            pairs += len(seen)
        else:
            waiting.append(score)
    return {f"{name}/pairs": float(pairs), **({f"{name}/accuracy": wins / pairs} if pairs else {})}


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), of any size of x."""
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def log_sigmoid(x: float) -> float:
    """Its logarithm, of any size of x."""
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


def _above(difference: float) -> float:
    return 1.0 if difference > 0 else 0.5 if difference == 0 else 0.0


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found) if found else 0.0
