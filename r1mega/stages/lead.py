"""The first rank of an RL stage at work alone: the others wait for its orders, and take part in its pushes."""

from collections.abc import Callable
from typing import Any, Literal

from r1mega.runtime.interrupt import Interrupt, StopNow
from r1mega.stages.sampling import Sampling
from r1mega.trainer.policy import Policy
from r1mega.weights.source import PolicySource

Order = Literal["push", "go on"]


class Lead:
    """Every rank has one, and calls `alone` at the same points of its loop."""

    def __init__(self, policy: Policy, sampling: Sampling | None, interrupt: Interrupt) -> None:
        """
        Args:
            sampling: on the first rank alone; its engine is given the policy's weights from here on.
        """
        self._mesh, self._sampling, self._interrupt = policy.mesh, sampling, interrupt
        self._source = PolicySource(policy, include_mtp=False)
        if sampling is not None:
            sampling.live.connect(self._source, announce=self._announce_push)
            sampling.live.prepare()

    def alone(self, work: Callable[[Sampling], Any]) -> int | None:
        """Let the first rank do what only it can do; the signal that has come meanwhile, on every rank.

        A signal breaks the work off where it waits.
        """
        if self._sampling is None:
            while self._order() == "push":
                for _ in self._source:
                    pass
            return self._mesh.from_first(lambda: None)
        try:
            work(self._sampling)
        except StopNow:
            self._sampling.live.halt()
        self._order("go on")
        return self._mesh.from_first(lambda: self._interrupt.received)

    def _announce_push(self) -> None:
        self._order("push")

    def _order(self, order: Order = "go on") -> Order:
        """The first rank's, on every rank."""
        return self._mesh.from_first(lambda: order)
