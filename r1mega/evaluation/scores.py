"""The figures of an evaluation, from each question's judged answers: pass@1, pass@k and cons@k with their intervals.

Every figure is a mean over questions of an unbiased estimate for each question, so that a question counts once,
however many of its answers could be scored. An answer that is unscorable or failed is no wrong answer: it is counted
apart and enters no estimate, and a question without a scored answer enters no mean. pass@k and cons@k need k scored
answers of a question; questions that have fewer are left out of that figure, and how many is said.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from r1mega.errors import DataError
from r1mega.evaluation.intervals import Interval, interval_of
from r1mega.evaluation.passes import pass_at_k
from r1mega.evaluation.results import QuestionResult
from r1mega.evaluation.voting import Vote, cons_at_k
from r1mega.samples import VerdictStatus

RIGHT = 1.0
"""The least value that counts as right for pass@k; pass@1 and cons@k are means of values."""


@dataclass(frozen=True)
class AtK:
    """pass@k or cons@k."""

    k: int
    interval: Interval
    num_questions: int
    """That have k scored answers."""
    too_few: int
    """That have fewer, and are left out."""


@dataclass(frozen=True)
class Scores:
    """One evaluation. Shares are in [0, 1]."""

    num_questions: int
    """With a scored answer."""
    num_scored: int
    unscorable: int
    """Answers whose question or truth cannot be judged."""
    failed: int
    """Answers that could not be judged, through no fault of theirs."""
    without_score: tuple[str, ...]
    """Ids of the questions that have no scored answer."""
    pass_at_1: Interval
    pass_at_k: tuple[AtK, ...]
    cons_at_k: tuple[AtK, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers, by these fields' names."""
        return asdict(self) | {"without_score": list(self.without_score)}


def score(results: Sequence[QuestionResult], *, ks: Sequence[int] = (), votes: Sequence[int] = ()) -> Scores:
    """The figures of all results.

    Args:
        ks: of pass@k, beside pass@1.
        votes: k of cons@k.

    Raises:
        DataError: no question has a scored answer, or none has enough of them for a k.
    """
    statuses = [sample.status for result in results for sample in result.samples]
    means = [mean for result in results if (mean := result.mean) is not None]
    return Scores(
        num_questions=len(means),
        num_scored=statuses.count(VerdictStatus.SCORED),
        unscorable=statuses.count(VerdictStatus.UNSCORABLE),
        failed=statuses.count(VerdictStatus.FAILED),
        without_score=tuple(result.id for result in results if not result.scored),
        pass_at_1=interval_of(means),
        pass_at_k=tuple(_at_k("pass", results, k, _passes) for k in ks),
        cons_at_k=tuple(_at_k("cons", results, k, _consensus) for k in votes),
    )


def doubling(results: Sequence[QuestionResult]) -> list[int]:
    """2, 4, 8, ... and last the most scored answers that a question has: k's that an evaluation can give."""
    most = max((len(result.scored) for result in results), default=0)
    ks = [2**i for i in range(1, most.bit_length()) if 2**i < most]
    return [*ks, most] if most > 1 else []


def _at_k(
    name: str, results: Sequence[QuestionResult], k: int, estimate: Callable[[QuestionResult, int], float]
) -> AtK:
    enough = [result for result in results if len(result.scored) >= k]
    if not enough:
        most = max((len(result.scored) for result in results), default=0)
        raise DataError(f"{name}@{k}: no question has {k} scored answers, the most is {most}; ask for a smaller k")
    too_few = sum(0 < len(result.scored) < k for result in results)
    return AtK(k, interval_of([estimate(result, k) for result in enough]), len(enough), too_few)


def _passes(result: QuestionResult, k: int) -> float:
    return pass_at_k(len(result.scored), sum(sample.value >= RIGHT for sample in result.scored), k)


def _consensus(result: QuestionResult, k: int) -> float:
    return cons_at_k([Vote(sample.vote, sample.value) for sample in result.scored], k)
