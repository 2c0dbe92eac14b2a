"""How many verdicts fail through no fault of the answers: past a bound the run stops and says why."""

from collections import Counter, deque
from collections.abc import Sequence

from r1mega.errors import RewardError, listed
from r1mega.samples import Group, VerdictStatus

LEAST = 64
"""Verdicts before a share of them says anything: where 1 in 20 fails, more than 16 of 64 do once in 10^8."""
SHOWN = 3
"""Reasons that are told, the commonest first."""
REASON_CHARACTERS = 300


class Failures:
    """The verdicts of the latest rollouts, as many as `LEAST` of them take."""

    def __init__(self, max_failed: float) -> None:
        """max_failed: the share of failed verdicts that training goes on with (`rollout.max_failed`)."""
        self._max_failed = max_failed
        self._latest: deque[tuple[int, Counter[str]]] = deque()
        """Of each rollout its verdicts, and the reasons of those that failed."""

    def see(self, step: int, groups: Sequence[Group]) -> None:
        """Take in a rollout's verdicts.

        Raises:
            RewardError: more than `max_failed` of the latest verdicts have failed; with the commonest reasons.
        """
        verdicts = [verdict for group in groups for verdict in group.verdicts]
        reasons = Counter(v.reason[:REASON_CHARACTERS] for v in verdicts if v.status is VerdictStatus.FAILED)
        self._latest.append((len(verdicts), reasons))
        while sum(num for num, _ in self._latest) - self._latest[0][0] >= LEAST:
            self._latest.popleft()
        total = sum(num for num, _ in self._latest)
        failed = sum((reasons for _, reasons in self._latest), Counter[str]())
        if failed.total() <= self._max_failed * max(total, LEAST):
            return
        told = [f"{num} x {reason}" for reason, num in failed.most_common(SHOWN)]
        if (more := len(failed) - SHOWN) > 0:
            told.append(f"and {more} other reasons")
        raise RewardError(
            listed(
                f"step {step}: {failed.total()} of the latest {total} verdicts have failed, through no fault of the "
                f"answers, and rollout.max_failed allows {self._max_failed:g}. Mend what they say, and go on with "
                "--resume:",
                told,
            )
        )

    def see_again(self, step: int, groups: Sequence[Group]) -> None:
        """The same rollout's verdicts when models have scored it as well. Raises as `see`."""
        self._latest.pop()
        self.see(step, groups)
