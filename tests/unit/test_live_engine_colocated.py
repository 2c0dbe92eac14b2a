"""The live engine on the policy's own GPUs, over servers that are none: what of the policy is where while weights are
pushed, while answers are drawn, and afterwards; on every rank, and when a signal comes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from grpo_run import Run, base
from recording import RecordingPolicy
from test_live_engine import PARAMS, TRANSFER, Rig
from trainer_data import nll

from r1mega.config.cluster import Cluster
from r1mega.errors import ServerLostError
from r1mega.rollout.served import NotServed
from r1mega.runtime.interrupt import StopNow, Stopped
from r1mega.weights import placement
from r1mega.weights.live_engine import live_engine

ALL = ("optimizer", "gradients", "weights")
models = base


class Shared(Rig):
    """Rank 0 has a real policy, whose stages are written down beside what is done with the servers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, policy: Any) -> None:
        super().__init__(monkeypatch)
        self.policy = policy
        self.on_generate = lambda: self.did.append(("asked", policy.aside)) or []
        monkeypatch.setattr(placement.Colocated.__init__, "__defaults__", (lambda _, path: self.did.append(path),))

    def push(self, version: int, servers: Sequence[Any] | None = None) -> Any:
        found = super().push(version, servers)
        self.did[-1] = ("pushed", version, self.policy.aside)
        return found

    def start(self, *arguments: Any, **options: Any) -> Any:
        found = super().start(*arguments, **options)
        self.did[-1] = ("start", self.policy.aside)
        return found

    def engine(self, *, colocated: bool = True) -> Any:
        return live_engine(
            self.policy, self.served, interrupt=self.interrupt, transfer=TRANSFER, pusher=self.pusher,
            room=lambda version: self.room(version), colocated=colocated,
        )  # fmt: skip


PUSHED = [
    "/wake_up?tags=weights", ("pushed", 0, ("optimizer", "gradients")), "/wake_up?tags=kv_cache", "read back",
    ("asked", ALL),
]  # fmt: skip


def test_each_has_the_memory_while_it_works(monkeypatch, make_policy, documents) -> None:
    """Two steps of learning between rollouts are bit for bit those of a policy that never moved."""
    moved, plain = make_policy(mtp="joint"), make_policy(mtp="joint")
    rig = Shared(monkeypatch, moved)
    with rig.engine() as engine:
        for version in range(2):
            with engine.alone():
                engine.generate([], PARAMS, version=version)
                engine.generate([], PARAMS, version=version)  # without a push, and without a move
            assert moved.aside == ()
            learned = [(p.forward_backward(documents, nll), p.optim_step(1e-3)) for p in (moved, plain)]
            assert learned[0] == learned[1]
        with engine.alone():  # all of it was in the journal
            pass
    assert engine.proven() == {"push/verify_s": 1.5, "push/verified": 360, "push/verified_loaded": 12}
    first, second = (PUSHED, [("pushed", 1, p[2]) if p[0] == "pushed" else p for p in PUSHED])
    assert rig.did == [
        ("start", ALL), "ready", "/sleep?level=2", *first, ("asked", ALL), "/sleep?level=2",
        *second, ("asked", ALL), "/sleep?level=2", "close",
    ]  # fmt: skip
    for name, tensor in plain.state().items():
        assert torch.equal(moved.state()[name], tensor), name


def test_what_has_slept_is_given_its_weights_again_though_the_version_is_the_same(monkeypatch, make_policy) -> None:
    """As in an evaluation after a rollout."""
    rig = Shared(monkeypatch, make_policy())
    with rig.engine() as engine:
        for _ in range(2):
            with engine.alone():
                engine.generate([], PARAMS, version=0)
    assert rig.did[3:] == [*PUSHED, "/sleep?level=2", *PUSHED, "/sleep?level=2", "close"]


def test_longer_answers_start_the_server_anew_where_the_policy_has_nothing(monkeypatch, make_policy) -> None:
    policy = make_policy()
    rig = Shared(monkeypatch, policy)
    rig.server.lengthen = lambda tokens: rig.did.append(("anew", policy.aside)) or 1.0
    with rig.engine() as engine:
        for version, tokens in ((0, 9), (1, 15)):
            rig.room = lambda _, tokens=tokens: tokens
            with engine.alone():
                engine.generate([], PARAMS, version=version)
    assert rig.did[9:11] == [("anew", ALL), "/sleep?level=2"]


@pytest.mark.parametrize("where", ["start", "answers"])
def test_a_signal_leaves_the_policy_whole(monkeypatch, make_policy, where) -> None:
    """So that it can be saved; a server that is only starting would take the memory that it needs."""
    policy = make_policy()
    rig = Shared(monkeypatch, policy)

    def stop() -> Any:
        rig.interrupt.received = 15
        raise StopNow

    if where == "start":
        rig.server.wait_ready = stop
    rig.on_generate = stop
    with pytest.raises(Stopped), rig.engine() as engine, engine.alone():
        engine.generate([], PARAMS, version=0)
    assert policy.aside == ()
    assert rig.did[-2:] == ([("start", ALL), "stop"] if where == "start" else ["/sleep?level=2", "close"])


@pytest.mark.parametrize("colocated", [True, False])
def test_no_server_is_started_anew_in_the_middle_of_a_push_to_shared_gpus(
    monkeypatch, make_policy, colocated
) -> None:
    rig = Shared(monkeypatch, make_policy())
    with rig.engine(colocated=colocated) as engine, engine.alone():
        engine.generate([], PARAMS, version=0)
    assert rig.may_restart is not colocated


def test_a_server_that_was_lost_meanwhile_ends_the_run_with_the_remedy(monkeypatch, make_policy) -> None:
    rig = Shared(monkeypatch, make_policy())
    with rig.engine() as engine, engine.alone():
        engine.generate([], PARAMS, version=0)
        with pytest.raises(ServerLostError, match="go on with --resume"):  # launchers start the run again
            rig.reload(rig.server, 0)
    rig = Shared(monkeypatch, make_policy())
    with rig.engine(colocated=False) as engine, engine.alone():
        engine.generate([], PARAMS, version=0)
        rig.reload(rig.server, 0)
        assert rig.policy.aside == ()
    assert rig.did == [("start", ()), "ready", ("pushed", 0, ()), ("asked", ()), ("pushed", 0, ()), "close"]


def test_the_other_ranks_do_as_the_first_and_are_waited_for(monkeypatch, make_policy) -> None:
    rig, did = Shared(monkeypatch, make_policy()), list[Any]()
    zero = SimpleNamespace(
        mesh=SimpleNamespace(from_first=rig.ranks.zero.from_first, barrier=lambda: did.append("zero is there")),
        offload=lambda *s: did.append(("zero", "aside", s)), onload=lambda *s: did.append(("zero", "back", s)),
        aside=(),
    )  # fmt: skip
    one = SimpleNamespace(
        mesh=SimpleNamespace(from_first=rig.ranks.one.from_first, barrier=lambda: did.append("one is there")),
        offload=lambda *s: did.append(("one", "aside", s)), onload=lambda *s: did.append(("one", "back", s)),
    )  # fmt: skip
    rig.policy = zero

    def rank_one() -> None:
        with live_engine(one, NotServed(), interrupt=rig.interrupt) as engine, engine.alone():  # type: ignore[arg-type]
            did.append("one goes on")

    with ThreadPoolExecutor(1) as threads, rig.engine() as engine:
        follower = threads.submit(rank_one)
        with engine.alone():
            engine.generate([], PARAMS, version=0)
        follower.result(60)
    moves = [("aside", ("gradients", "optimizer", "weights")), ("back", ("weights",)), ("aside", ("weights",))]
    moves.append(("back", ("gradients", "optimizer", "weights")))
    for rank in ("zero", "one"):
        assert [entry[1:] for entry in did if entry[0] == rank] == moves
        assert did.count(f"{rank} is there") == len(moves)
    assert rig.passes == 1
    assert did[-1] == "one goes on"


@pytest.mark.parametrize("placement_of", ["cpu", "colocated"])
def test_a_run_takes_turns_where_its_cluster_file_says_so(monkeypatch, models, tmp_path, placement_of) -> None:
    """From the stage on: its server is not started before the policy has made room, and each rollout is a round."""
    did = list[Any]()
    for verb in ("offload", "onload"):
        said = lambda self, *stages, verb=verb: did.append((verb, *stages))  # noqa: E731
        monkeypatch.setattr(RecordingPolicy, verb, said, raising=False)
    monkeypatch.setattr(placement.Colocated.__init__, "__defaults__", (lambda _, path: did.append(path),))
    run = Run(tmp_path / "run", cluster=Cluster(device="cpu", placement=placement_of))
    started = run.engines.make
    monkeypatch.setattr(run.engines, "make", lambda *a, **o: did.append(o["give"] is not None) or started(*a, **o))
    run.start(models, {"num_steps": 2, "evaluation": {"every_steps": 2}})
    everything = ("gradients", "optimizer", "weights")
    if placement_of == "cpu":
        assert did == [True]
        return
    assert did[:3] == [False, ("offload", *everything), "/sleep?level=2"]
    assert did[-2:] == ["/sleep?level=2", ("onload", *everything)]
    assert did.count("/wake_up?tags=weights") == did.count("/wake_up?tags=kv_cache") >= 1
