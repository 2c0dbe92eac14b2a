"""The engine at the policy's weights, over servers that are none: what is pushed to which of them and when, what the
other ranks do meanwhile, and who still pushes when a signal comes."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from r1mega.config.cluster import RolloutLayout
from r1mega.errors import RolloutError
from r1mega.rollout import served as served_module
from r1mega.rollout.engine import SamplingParams
from r1mega.rollout.recovery import Recovery
from r1mega.rollout.served import Lengthened, NotServed, ServedModel
from r1mega.runtime.interrupt import Interrupt, StopNow, Stopped
from r1mega.weights import live_engine as module
from r1mega.weights.live_engine import Follower, LiveEngine, live_engine
from r1mega.weights.sender import Transfer
from r1mega.weights.verify import Result

RECOVERY = Recovery("http://s", "gone", 1.0, 2)
PARAMS = SamplingParams(temperature=1.0, max_new_tokens=4)


class Ranks:
    """Two meshes whose ranks are threads: what rank 0 gives, the other one gets."""

    def __init__(self) -> None:
        self._sent = queue.Queue[Any]()
        self.zero = SimpleNamespace(from_first=self._send)
        self.one = SimpleNamespace(from_first=lambda _: self._sent.get(timeout=60))

    def _send(self, value: Callable[[], Any]) -> Any:
        sent = value()
        self._sent.put(sent)
        return sent


TRANSFER = Transfer("nccl", 3, "here", 7)


class Rig:
    """What `LiveEngine` makes and asks, in place of servers, pushers and fleets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.did, self.recovered = list[Any](), list[tuple[int, Recovery]]()
        self.ranks, self.interrupt = Ranks(), Interrupt()
        self.passes, self.on_push = 0, lambda: None
        self.on_generate: Callable[[], Any] = lambda: []
        self.room: Callable[[int], int] = lambda version: 9
        self.lengthened = list[tuple[int, Lengthened]]()
        self.server = SimpleNamespace(
            url="http://s", log_file=Path("log"), foreign=False, model_dir=Path("model"), max_model_len=9,
            wait_ready=lambda: self.did.append("ready"), stop=lambda: self.did.append("stop"), lengthen=self.lengthen,
        )  # fmt: skip
        monkeypatch.setattr(served_module, "begin_own", self.start)
        monkeypatch.setattr(served_module, "Fleet", self.fleet)
        monkeypatch.setattr(module, "PolicySource", lambda policy, include_mtp, everywhere: self)
        layout = RolloutLayout()
        self.served = ServedModel(
            Path("model"), layout, max_model_len=9, seed=0, log_file=Path("log"), interrupt=self.interrupt
        )

    def __iter__(self) -> Iterator[Any]:
        """The policy's weights, read once."""
        self.passes += 1
        return iter(())

    def start(self, *_: Any, **options: Any) -> Any:
        self.options = options
        self.did.append("start")
        return (self.server,)

    def lengthen(self, max_model_len: int) -> float:
        self.did.append(f"anew for {max_model_len}")
        return 3.0

    def fleet(self, servers: Sequence[Any], *, reload: Any, on_recovery: Any) -> Any:
        assert list(servers) == [self.server]
        self.reload = reload
        return SimpleNamespace(generate=lambda *_, version, on_answer: self.on_generate())

    def pusher(self, source: Any, servers: Sequence[Any], **options: Any) -> Any:
        assert source is self
        of_transfer = {name: options[name] for name in ("backend", "bucket_mib", "address", "verify")}
        assert of_transfer == {"backend": "nccl", "bucket_mib": 3, "address": "here", "verify": 7}
        self.announce = options["announce"]
        self.may_restart = options["restarts"]
        return SimpleNamespace(push=self.push, close=lambda: self.did.append("close"), read_back=self.read_back)

    def read_back(self) -> Any:
        self.did.append("read back")
        return Result((), 0.25, 90, 3)

    def push(self, version: int, servers: Sequence[Any] | None = None) -> Any:
        self.announce()
        self.on_push()
        self.did.append((version, servers))
        proof = Result((), 0.5, 90, 3) if version != 2 else None
        return SimpleNamespace(seconds=2.0, recoveries=(RECOVERY,) if version == 4 else (), proof=proof)

    def engine(self) -> contextlib.AbstractContextManager[Any]:
        policy: Any = SimpleNamespace(mesh=self.ranks.zero)
        return live_engine(
            policy, self.served, interrupt=self.interrupt, transfer=TRANSFER, pusher=self.pusher,
            on_recovery=lambda version, recovery: self.recovered.append((version, recovery)),
            room=lambda version: self.room(version),
            on_lengthened=lambda version, found: self.lengthened.append((version, found)),
        )  # fmt: skip

    def follower(self) -> contextlib.AbstractContextManager[Any]:
        policy: Any = SimpleNamespace(mesh=self.ranks.one)
        return live_engine(policy, NotServed(), interrupt=self.interrupt)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


def test_each_version_is_pushed_once_to_all_servers(rig: Rig) -> None:
    with rig.engine() as engine:
        for version in (0, 0, 2, 2, 4):
            engine.generate([], PARAMS, version=version)
    assert rig.did == ["start", "ready", (0, None), (2, None), (4, None), "close"]
    assert (engine.push_seconds, rig.recovered) == (6.0, [(4, RECOVERY)])
    # Two of the three were proven, of the same weights both times.
    assert engine.proven() == {"push/verify_s": 1.0, "push/verified": 180, "push/verified_loaded": 6}
    assert engine.proven() == {}
    rig.served.stop()
    assert rig.did[-1] == "stop"


def test_a_server_is_started_anew_for_longer_answers_and_given_the_weights_again(rig: Rig) -> None:
    """Laid out for 9 tokens; from version 2 on 15 are needed, from 6 on 4 again, which it has room for."""
    rig.room = lambda version: 9 if version < 2 else 15 if version < 6 else 4
    with rig.engine() as engine:
        for version in (0, 2, 2, 4, 6):
            engine.generate([], PARAMS, version=version)
    assert rig.did == [
        "start", "ready", (0, None), "anew for 15", (2, None), (4, None), (6, None), "close",
    ]  # fmt: skip
    assert rig.lengthened == [(2, Lengthened(9, 15, 3.0))]


def test_a_server_that_was_never_started_starts_with_the_longer_room(rig: Rig) -> None:
    """As in a resumed run whose journal has the answers from before a change."""
    rig.room = lambda version: 15
    with rig.engine() as engine:
        engine.generate([], PARAMS, version=2)
    assert rig.did == ["start", "ready", (2, None), "close"] and rig.options["max_model_len"] == 15
    assert not rig.lengthened


def test_a_server_that_came_back_is_given_the_weights_that_answer_now(rig: Rig) -> None:
    with rig.engine() as engine:
        engine.generate([], PARAMS, version=2)
        rig.reload(rig.server, 2)
        assert rig.did[-1] == (2, [rig.server])
        engine.generate([], PARAMS, version=4)
        rig.reload(rig.server, 4)
        assert rig.did[-2:] == [(4, None), (4, [rig.server])]
        assert rig.recovered == [(4, RECOVERY), (4, RECOVERY)]  # while it was given them, too
        with contextlib.suppress(Stopped), engine.alone():
            rig.interrupt.received = 15
            raise StopNow
        with pytest.raises(RolloutError, match="the run is stopping"):
            rig.reload(rig.server, 4)
    assert rig.did[-2:] == [(4, [rig.server]), "close"]


def test_a_push_in_a_restarts_thread_ends_before_the_others_are_told_to_go_on(rig: Rig) -> None:
    """A signal comes while it sends: "go on" in its middle would reach ranks that read weights."""
    begun, signalled, told = threading.Event(), threading.Event(), list[Any]()
    went_on = threading.Event()

    def push_slowly() -> None:
        begun.set()
        assert signalled.wait(60)
        went_on.wait(0.2)  # in vain
        told.append("sent")

    def orders(value: Callable[[], Any]) -> Any:
        if (order := value()) == "go on":
            told.append(order)
            went_on.set()
        return order

    with rig.engine() as engine, ThreadPoolExecutor(1) as threads:
        engine.generate([], PARAMS, version=0)
        rig.on_push, rig.ranks.zero.from_first = push_slowly, orders
        reloading = threads.submit(rig.reload, rig.server, 0)
        with pytest.raises(Stopped), engine.alone():
            assert begun.wait(60)
            rig.interrupt.received = 15
            signalled.set()
            raise StopNow
        reloading.result(60)
    assert told == ["sent", "go on"]


def test_the_other_ranks_read_along_in_every_push_and_go_on_with_rank_zero(rig: Rig) -> None:
    after = list[str]()

    def rank_one() -> None:
        with rig.follower() as engine:
            assert isinstance(engine, Follower) and engine.push_seconds == 0.0
            for _ in range(2):
                with engine.alone():
                    after.append(f"one after {rig.passes} passes")

    with ThreadPoolExecutor(1) as threads, rig.engine() as engine:
        assert isinstance(engine, LiveEngine)
        follower = threads.submit(rank_one)
        with engine.alone():
            engine.generate([], PARAMS, version=0)
            engine.generate([], PARAMS, version=0)
            engine.generate([], PARAMS, version=2)
        with engine.alone():  # all of it was in the journal
            pass
        follower.result(60)
    assert after == ["one after 2 passes", "one after 2 passes"]


@pytest.mark.parametrize("breaks_off", [True, False])
def test_a_signal_stops_every_rank_at_the_same_place(breaks_off: bool, rig: Rig) -> None:
    """While answers are waited for, or after the last of them has come."""

    def signalled() -> Any:
        rig.interrupt.received = 10
        if breaks_off:
            raise StopNow
        return []

    def rank_one() -> int:
        with pytest.raises(Stopped) as stopped, rig.follower() as engine, engine.alone():
            pass
        return stopped.value.signum

    rig.on_generate = signalled
    with ThreadPoolExecutor(1) as threads, rig.engine() as engine:
        follower = threads.submit(rank_one)
        with pytest.raises(Stopped) as stopped, engine.alone():
            engine.generate([], PARAMS, version=0)
        assert stopped.value.signum == follower.result(60) == 10


def test_what_else_goes_wrong_is_raised_as_it_is(rig: Rig) -> None:
    def fails() -> Any:
        raise RolloutError("no answer")

    rig.on_generate = fails
    with rig.engine() as engine, pytest.raises(RolloutError, match="no answer"), engine.alone():
        engine.generate([], PARAMS, version=0)
