"""What a push does with its proof: when it is made, and what becomes of servers that hold something else. No vLLM."""

from types import SimpleNamespace
from typing import Any

import pytest
from test_weights_push import NAMES, PUSHED, Rig, rig

from r1mega.errors import RolloutError, ServerLostError
from r1mega.weights.push import Pusher
from r1mega.weights.verify import ProofError, Result

there = rig


class Disproof:
    """A proof in whose outcomes servers hold something else, or not."""

    def __init__(self, rig: Rig, *outcomes: list[int]) -> None:
        self.rig, self.outcomes, self.is_due = rig, list(outcomes), True

    def due(self, servers: Any) -> bool:
        return self.is_due

    def begin(self, client: Any) -> Any:
        self.rig.told.append("plan")
        return SimpleNamespace(watch=lambda stream: ((name, value + 1) for name, value in stream))

    def check(self, client: Any, ledger: Any) -> None:
        self.rig.told.append("held")
        if wrong := self.outcomes.pop(0):
            raise ProofError({self.rig.servers[i]: [f"tensor {i}"] for i in wrong})

    def again(self) -> Result | None:
        self.check(None, None)
        return Result((), 0.5, 6, 0)

    def succeeded(self) -> Result | None:
        return Result((), 1.5, 6, 0) if self.is_due else None


PROVEN = ["plan", *PUSHED[:2], "held", *PUSHED[2:]]


def test_a_push_is_proven_before_anyone_samples_from_it(rig: Rig) -> None:
    seen = list[Any]()
    rig.send = lambda source, client: seen.extend(source)
    rig.pusher._proof = Disproof(rig, [])  # type: ignore[assignment]
    report = rig.pusher.push(4)
    assert rig.told == PROVEN and report.proof == Result((), 1.5, 6, 0)
    assert seen == [(name, i + 1) for i, name in enumerate(NAMES)]  # the ledger looks at what is sent
    rig.pusher._proof.is_due = False  # type: ignore[attr-defined]
    assert rig.pusher.push(5).proof is None and rig.told[len(PROVEN) :] == [c.replace("4", "5") for c in PUSHED]


def test_a_server_that_holds_something_else_is_restarted_and_gets_the_weights_once_more(rig: Rig) -> None:
    rig.pusher._proof = Disproof(rig, [1], [])  # type: ignore[assignment]
    (recovery,) = rig.pusher.push(4).recoveries
    assert recovery.url == "http://s1" and "does not hold what was sent" in recovery.reason
    assert "http://s1: tensor 1" in recovery.reason and rig.told == [*PROVEN[:4], *PROVEN]
    assert rig.versions == ["incomplete push of 4", "incomplete push of 4", "4"]


def test_a_server_that_holds_something_else_twice_ends_the_run(rig: Rig) -> None:
    rig.pusher._proof = Disproof(rig, [0], [1], [0, 1])  # type: ignore[assignment]
    with pytest.raises(RolloutError, match=r"(?s)the push of weights 4 failed: .*http://s1: tensor 1.*verify = 0"):
        rig.pusher.push(4)
    assert [server.incarnation for server in rig.servers] == [2, 2] and "4" not in rig.versions
    rig.pusher._proof.outcomes = [[0], []]  # type: ignore[attr-defined]
    assert len(rig.pusher.push(5).recoveries) == 1  # and the next push begins anew


def test_what_is_not_read_back_after_a_sleep_ends_the_run(rig: Rig) -> None:
    rig.pusher._proof = Disproof(rig, [], [], [1])  # type: ignore[assignment]
    rig.pusher.push(4)
    assert rig.pusher.read_back() == Result((), 0.5, 6, 0)
    with pytest.raises(RolloutError, match=r"(?s)not read back: .*http://s1: tensor 1"):
        rig.pusher.read_back()
    assert rig.servers[1].incarnation == 1
    assert Pusher(rig, rig.servers, verify=3).read_back() is None


@pytest.mark.parametrize("every", [0, 3])
def test_the_setting_reaches_the_proof(rig: Rig, every: int) -> None:
    assert Pusher(rig, rig.servers, verify=every)._proof.due(rig.servers) is (every > 0)


# ---- where trainer and engine share their GPUs, and no server can be started in the middle of a push ---------------


@pytest.mark.parametrize("when", ["before", "meanwhile", "proof"])
def test_a_server_that_fails_on_shared_gpus_ends_the_run_for_launchers_to_start_again(rig: Rig, when: str) -> None:
    rig.pusher._may_restart = Pusher(rig, rig.servers, restarts=False)._may_restart

    def dies(source: Any, client: Any) -> None:
        rig.servers[1].ok = False
        raise RuntimeError("connection reset")

    if when == "before":
        rig.servers[1].ok = False
    elif when == "meanwhile":
        rig.once(dies)
    else:
        rig.pusher._proof = Disproof(rig, [1])  # type: ignore[assignment]
    with pytest.raises(ServerLostError, match=r"(?s)http://s1: .*go on with --resume"):
        rig.pusher.push(4)
    assert [server.incarnation for server in rig.servers] == [1, 1] and "4" not in rig.versions
    assert rig.passes == ([] if when == "before" else [6])  # what others read along is read to its end


def test_a_server_that_does_not_answer_when_it_is_read_back_is_lost_and_no_fault_of_the_weights(rig: Rig) -> None:
    rig.pusher._proof = Disproof(rig, [])  # type: ignore[assignment]
    rig.pusher.push(4)

    def silent() -> None:
        raise RuntimeError("http://s0 does not answer")

    rig.pusher._proof.again = silent  # type: ignore[method-assign, assignment]
    with pytest.raises(ServerLostError, match=r"not read back: http://s0 does not answer.*--resume"):
        rig.pusher.read_back()
