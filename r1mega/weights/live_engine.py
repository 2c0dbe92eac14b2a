"""The engine that is always at the policy's weights, and what the other ranks do while rank 0 asks it.

    with live_engine(policy, served, interrupt=interrupt) as engine:     # every rank
        with engine.alone():
            rollout = source.next(step)    # on rank 0 the groups; elsewhere `NoGroups`, after rank 0 has ended
        samples = scatter(...)             # every rank again

Who waits for whom, downwards in time:

    rank 0, main thread              a restart's thread (Fleet)      every other rank, main thread
    -------------------              --------------------------      -----------------------------
    enters alone()                                                   enters alone(), waits for an order
     generate(version)                                               |
      push: Pusher's lock
        order "push"  -----------------------------------------> reads the source once, rank 0 taking
        sends what it reads to                                       its parts; waits for the next order
        the servers, reads versions                                  |
      Fleet asks and waits;
        a server fails ------------> restarts it, then
        (the others answer on)        takes `turn`, Pusher's lock
                                      order "push" ------------> reads the source once
                                      lets go of both
                       <------------ it serves again
     judged answers come, on and on
     last one, or a signal: StopNow
      then takes `turn` for good  <-- whoever has it pushes to its
                                      end; nobody begins after that
    order "go on"  --------------------------------------------> body of alone(), which has nothing to do
    signal or none  -------------------------------------------> the same; both raise Stopped, or go on

An order is a broadcast, so all ranks must be at one together: the Pusher's lock keeps pushes apart, and a thread that
was still restarting a server when a signal came must not order a push where the others await "go on" (`turn`). Where
no signal came no such thread is left: `Fleet.generate` returns when every server serves. What ends a broadcast that
nobody answers is the mesh's own time limit (`trainer.meeting`). A signal breaks off waiting for servers alone, never
a push, which is a collective.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from r1mega.errors import RolloutError, ServerLostError
from r1mega.layout.turns import Stage
from r1mega.rollout.engine import OnAnswer, Request, SamplingParams
from r1mega.rollout.recovery import Recovery
from r1mega.rollout.served import Lengthened, NotServed, ServedModel
from r1mega.rollout.server import Server
from r1mega.runtime import heartbeat
from r1mega.runtime.interrupt import Interrupt, StopNow, Stopped
from r1mega.samples import Completion
from r1mega.trainer.mesh import Mesh
from r1mega.trainer.policy import Policy
from r1mega.weights.fp8 import Fp8Weights
from r1mega.weights.placement import Apart, Colocated, Turns
from r1mega.weights.push import BACKENDS, Pusher
from r1mega.weights.sender import Transfer
from r1mega.weights.source import PolicySource
from r1mega.weights.verify import Result

Moved = tuple[tuple[Stage, ...], tuple[Stage, ...]]
"""Stages of the policy that every rank puts aside, and those that it takes back."""
Order = Literal["push", "go on"] | Moved
OnRecovery = Callable[[int, Recovery], None]
"""Takes the version of the weights that were asked for, and what happened to a server."""
OnLengthened = Callable[[int, Lengthened], None]
"""Takes the version of the weights that were asked for, and what became of the server."""


@contextmanager
def live_engine(
    policy: Policy,
    served: ServedModel | NotServed,
    *,
    interrupt: Interrupt,
    transfer: Transfer = Transfer(),  # noqa: B008 (it never changes)
    room: Callable[[int], int] = lambda version: 0,
    on_recovery: OnRecovery = lambda version, recovery: None,
    on_lengthened: OnLengthened = lambda version, lengthened: None,
    pusher: Callable[..., Pusher] = Pusher,
    colocated: bool = False,
) -> "Iterator[LiveEngine | Follower]":
    """Rank 0's engine, and what follows it on the others. Every rank enters it at the same time.

    Args:
        served: rank 0's server; it is started when it is first asked, where it was not before.
        interrupt: breaks off waiting for servers or their answers, and nothing else.
        transfer: how weights go to the servers.
        room: for how many tokens of prompt and answer the server must be laid out at a version of the weights; where
            that is more than before, it is started anew.
        on_recovery: called for every server that failed and serves again, from any thread.
        on_lengthened: called when the server was started anew for longer sequences.
        pusher: as `Pusher`.
        colocated: the servers are on the policy's GPUs, and each side's memory is put aside while the other works.
    """
    backend, bucket_mib = BACKENDS[transfer.transport], transfer.bucket_mib
    source: PolicySource | Fp8Weights = PolicySource(policy, include_mtp=False, everywhere=backend.everywhere)
    if transfer.fp8:
        source = Fp8Weights(source)
    if isinstance(served, NotServed):
        yield Follower(policy, lambda: backend.follow(source, bucket_mib * 2**20))
        return

    def push_with(servers: Sequence[Server]) -> Pusher:
        announce = Orders(policy.mesh).push
        return pusher(
            source, servers, announce=announce, backend=transfer.transport, bucket_mib=bucket_mib,
            address=transfer.address, verify=transfer.verify, restarts=not colocated, breakable=interrupt.at_once,
        )  # fmt: skip

    orders = Orders(policy.mesh)
    turns = Colocated(lambda aside, back: orders.move(policy, (tuple(aside), tuple(back)))) if colocated else Apart()
    engine = LiveEngine(served, orders, push_with, interrupt, on_recovery, room, on_lengthened, turns)
    try:
        yield engine
    finally:
        engine.close()


class Orders:
    """What rank 0 tells the others, who wait for it."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def push(self) -> None:
        """Take part in a push."""
        self._give("push")

    def move(self, policy: Policy, moved: Moved) -> None:
        """Put stages of every rank's policy aside and take others back, the present rank's too; wait for all."""
        self._give(moved)
        self.obey(policy, moved)

    def obey(self, policy: Policy, moved: Moved) -> None:
        """Do what `move` orders, on one rank; returns when all have."""
        aside, back = moved
        if aside:
            policy.offload(*aside)
        if back:
            policy.onload(*back)
        self._mesh.barrier()

    def go_on(self, signum: int | None = None) -> int | None:
        """Wait no longer; the signal that has come, or none. Rank 0's, on every rank."""
        self._give("go on")
        return self._mesh.from_first(lambda: signum)

    def next(self) -> Order:
        """Rank 0's next one, on the others."""
        return self._give("go on")

    def signal(self) -> int | None:
        """What came with "go on", on the others."""
        return self._mesh.from_first(lambda: None)

    def _give(self, order: Order) -> Order:
        return self._mesh.from_first(lambda: order)


class LiveEngine:
    """Rank 0's: an `Engine` whose servers are given the policy's weights before they answer at a new version."""

    def __init__(
        self,
        served: ServedModel,
        orders: Orders,
        push_with: Callable[[Sequence[Server]], Pusher],
        interrupt: Interrupt,
        on_recovery: OnRecovery,
        room: Callable[[int], int],
        on_lengthened: OnLengthened,
        turns: Turns,
    ) -> None:
        """push_with: makes what pushes to these servers. room, on_lengthened: see `live_engine`. turns: who has the
        memory."""
        self._turns, self._starting = turns, False
        self._room, self._on_lengthened = room, on_lengthened
        self._served, self._orders, self._interrupt = served, orders, interrupt
        self._push_with, self._on_recovery = push_with, on_recovery
        self._pusher: Pusher | None = None
        self._turn, self._halted = threading.Lock(), False
        self._version = -1
        self.push_seconds = 0.0
        """Of all pushes so far."""
        self._proven = dict[str, float]()

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        version: int,
        on_answer: OnAnswer | None = None,
    ) -> list[tuple[Completion, ...]]:
        """See `Engine.generate`; `version` is the policy's present one. StopNow at a signal while it waits."""
        room = self._room(version)
        if starts := self._served.must_start(room):
            self._turns.before_start()
            self._starting = True
        if (lengthened := self._served.make_room(room)) is not None:
            self._version = -1  # its weights are the folder's own again
            self._on_lengthened(version, lengthened)
        client = self._served.client(self._reload, self._recovered)
        if starts:
            self._starting = False
            self._turns.started(self._served.servers)
        if pushes := version != self._version:
            self._turns.before_push()
            self._push(version)
        self._turns.before_answers()
        if pushes and self._turns.shared:  # they have woken since
            self._count(self._pusher_of(self._served.servers).read_back())
        with self._interrupt.at_once():
            return client.generate(requests, params, version=version, on_answer=on_answer)

    def proven(self) -> dict[str, float]:
        """Metrics of the proofs of pushes since this was last asked: seconds, and boxes of weights; none, of none."""
        proven, self._proven = self._proven, {}
        return proven

    @contextmanager
    def alone(self) -> Iterator[None]:
        """For what rank 0 does while the others wait; a signal breaks it off where it waits.

        Raises:
            Stopped: at its end, on every rank, where a signal has come.
        """
        try:
            yield
        except StopNow:
            with self._turn:  # a thread may be in the middle of a push; none begins one after this
                self._halted = True
            if self._starting and self._turns.shared:
                self._served.stop()  # or it would take the memory that the policy is to be saved from
        self._turns.before_learning()
        if self._turns.shared:
            self._version = -1
        if (signum := self._orders.go_on(self._interrupt.received)) is not None:
            raise Stopped(signum)

    def close(self) -> None:
        """Take leave of the servers, which go on."""
        if self._pusher is not None:
            self._pusher.close()

    def _push(self, version: int) -> None:
        with heartbeat.within("push"):
            report = self._pusher_of(self._served.servers).push(version)
        self._version = version
        self.push_seconds += report.seconds
        self._count(report.proof)
        for recovery in report.recoveries:
            self._recovered(recovery)

    def _reload(self, server: Server, version: int) -> None:
        """Give one restarted server its weights again, in the thread that restarted it."""
        with self._turn:
            if self._halted:
                raise RolloutError("the run is stopping: the restarted server gets no weights")
            if self._turns.shared:
                raise ServerLostError(
                    "a rollout server was lost while the trainer's memory is put aside for it, and the one in its "
                    "place cannot be given the weights: go on with --resume; no answer that was given is lost"
                )
            report = self._pusher_of(self._served.servers).push(version, [server])
            self._count(report.proof)
        for recovery in report.recoveries:
            self._recovered(recovery)

    def _count(self, proof: Result | None) -> None:
        if proof is not None:
            loaded = ("push/verified_loaded", proof.loaded)
            for name, value in (("push/verify_s", proof.seconds), ("push/verified", proof.boxes), loaded):
                self._proven[name] = self._proven.get(name, 0) + value

    def _recovered(self, recovery: Recovery) -> None:
        recovery.tell()
        self._on_recovery(self._version, recovery)

    def _pusher_of(self, servers: Sequence[Server]) -> Pusher:
        if self._pusher is None:
            self._pusher = self._push_with(servers)
        return self._pusher


class Follower:
    """`LiveEngine` on the other ranks: takes part in rank 0's pushes, and asks nothing."""

    push_seconds = 0.0

    def __init__(self, policy: Policy, take_part: Callable[[], None]) -> None:
        """take_part: this rank's part of a push."""
        self._policy, self._orders, self._take_part = policy, Orders(policy.mesh), take_part

    def proven(self) -> dict[str, float]:
        return {}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Serve rank 0 until it goes on; see `LiveEngine.alone`."""
        while (order := self._orders.next()) != "go on":
            if order == "push":
                with heartbeat.within("push"):
                    self._take_part()
            else:
                self._orders.obey(self._policy, order)
        yield
        if (signum := self._orders.signal()) is not None:
            raise Stopped(signum)
