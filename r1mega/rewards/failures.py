"""How many verdicts fail through no fault of the answers: past a bound the run stops and says why; from half of it
on it is told of."""

from collections import Counter, deque
from collections.abc import Callable, Sequence

from r1mega.errors import RewardError, listed
from r1mega.samples import Group, VerdictStatus

LEAST = 64
"""Verdicts before a share of them says anything: where 1 in 20 fails, more than 16 of 64 do once in 10^8."""
SHOWN = 3
"""Reasons that are told, the commonest first."""
REASON_CHARACTERS = 300
TOLD_AT, OVER_AT = 0.5, 0.25
"""Shares of the bound: from the first on it is told once that verdicts fail, until fewer than the second do."""


class Failures:
    """The verdicts of the latest rollouts, as many as `LEAST` of them take."""

    def __init__(self, max_failed: float, tell: Callable[[int, str], None] = lambda step, text: None) -> None:
        """
        Args:
            max_failed: the share of failed verdicts that training goes on with (`rollout.max_failed`).
            tell: called with the step and a sentence when verdicts begin to fail.
        """
        self._max_failed, self._tell, self._told = max_failed, tell, False
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
        bound = self._max_failed * max(total, LEAST)
        told = [f"{num} x {reason}" for reason, num in failed.most_common(SHOWN)]
        if failed.total() <= bound:
            if failed.total() > TOLD_AT * bound and not self._told:
                self._told = True
                self._tell(step, f"{failed.total()} of the latest {total} verdicts have failed: {'; '.join(told)}")
            elif failed.total() < OVER_AT * bound:
                self._told = False
            return
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
