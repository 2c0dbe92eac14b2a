"""A push goes on past servers that fail, and no pass over the source is ever left half read. No vLLM here."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from r1mega.config.cluster import RolloutLayout
from r1mega.errors import RanksLostError, RolloutError
from r1mega.weights import push
from r1mega.weights.push import Pusher, PushReport
from r1mega.weights.sender import Sent
from r1mega.weights.servers import Watch
from r1mega.weights.stream import SourceError

NAMES = [f"w{i}" for i in range(6)]


class StubServer:
    """What a pusher asks of `rollout.server.Server`."""

    def __init__(self, name: str, max_restarts: int = 2) -> None:
        self.layout = RolloutLayout(max_restarts=max_restarts, health_timeout_s=0.2)
        self.url, self.host, self.log_file = f"http://{name}", name, Path(f"{name}.log")
        self.world_size, self.incarnation, self.ok, self.curable = 1, 1, True, True
        self.reasons = list[str]()

    def healthy(self, timeout_s: float, *, engine: bool = True) -> bool:
        return self.ok

    def cause(self) -> str | None:
        return None

    def restart(self, reason: str) -> float:
        self.reasons.append(reason)
        self.incarnation += 1
        self.ok = self.ok or self.curable
        return 0.0


class Rig:
    """A pusher whose sender is `send`, called with the pass over the source and the client."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num_servers: int = 2) -> None:
        self.servers: list[Any] = [StubServer(f"s{i}") for i in range(num_servers)]
        self.passes, self.announced, self.versions = list[int](), 0, list[str]()
        self.groups, self.closed = list[list[Any]](), 0
        self.told = list[str]()
        """What the servers were told, in order; "weights" is a pass over the source."""
        self.found = lambda version: version
        """The version that the servers say they have."""
        self.send: Callable[[Any, Any], object] = lambda source, client: [*source]
        self.at: Callable[[int], None] = lambda i: None
        self.pusher = Pusher(self, self.servers, announce=self.announce)
        monkeypatch.setattr(Pusher, "_connect", self.connect)

    def announce(self) -> None:
        self.announced += 1

    def metadata(self) -> Any:
        return [(name, "float32", (1,)) for name in NAMES]

    def __iter__(self) -> Iterator[Any]:
        self.passes.append(0)
        for i, name in enumerate(NAMES):
            self.at(i)
            self.passes[-1] += 1
            yield name, i

    def connect(self, servers: Any, watch: Watch) -> Any:
        self.groups.append(list(servers))

        def set_version(version: str) -> None:
            self.versions.append(version)
            self.told.append(f"version {version}")

        def check_version(version: str) -> None:
            self.told.append(f"check {version}")
            if (found := self.found(version)) != version:
                raise RuntimeError(f"version {found}")

        client: Any = SimpleNamespace(
            watch=watch,
            refused=set(),
            set_version=set_version,
            check_version=check_version,
            reset_prefix_cache=lambda: self.told.append("reset"),
        )

        def send(source: Any) -> None:
            self.told.append("weights")
            self.send(source, client)

        def close() -> None:
            self.closed += 1

        sender: Any = SimpleNamespace(send=send, close=close, sent=Sent(6, 24, 7))
        self.pusher._sender, self.pusher._client = sender, client
        return client

    def once(self, fail: Callable[[Any, Any], object]) -> None:
        """The first pass goes wrong this way, the next ones well."""
        well = self.send

        def send(source: Any, client: Any) -> None:
            self.send = well
            fail(source, client)

        self.send = send


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


def test_all_is_well(rig: Rig) -> None:
    report = rig.pusher.push(4)
    assert report == PushReport(report.seconds, 24, 6, 7, (), None)
    assert (rig.versions, rig.passes, rig.announced, rig.closed) == (["incomplete push of 4", "4"], [6], 1, 0)


PUSHED = ["version incomplete push of 4", "weights", "reset", "version 4", "check 4"]
"""The old weights' blocks go after the last new weight and before anyone may sample; the version is read back."""


def test_a_push_empties_the_prefix_cache_and_reads_the_version_back(rig: Rig) -> None:
    rig.pusher.push(4)
    assert rig.told == PUSHED
    rig.pusher.push(5)
    assert rig.told[5:] == [call.replace("4", "5") for call in PUSHED]


def test_a_push_that_begins_again_empties_the_cache_again(rig: Rig) -> None:
    def fails(source: Any, client: Any) -> None:
        client.refused.add(rig.servers[0])
        raise RuntimeError("checksum")

    rig.once(fails)
    rig.pusher.push(4)
    assert rig.told == [*PUSHED[:2], *PUSHED]


def test_servers_that_say_another_version_are_given_the_weights_again(rig: Rig) -> None:
    said = iter(["3", "4"])
    rig.found = lambda version: next(said)
    (recovery, _) = rig.pusher.push(4).recoveries
    assert "version 3" in recovery.reason and rig.told == [*PUSHED, *PUSHED]


@pytest.mark.parametrize("tensors", range(7))
def test_a_server_that_dies_leaves_no_pass_half_read(rig: Rig, tensors: int) -> None:
    def dies(source: Any, client: Any) -> None:
        for _ in range(tensors):
            next(source)
        rig.servers[1].ok = False
        client.refused.update(rig.servers)  # its death made the other one's part fail as well
        raise RuntimeError("connection reset")

    rig.once(dies)
    report = rig.pusher.push(4)
    assert (rig.passes, rig.announced, rig.closed) == ([6, 6], 2, 1)
    assert rig.versions == ["incomplete push of 4", "incomplete push of 4", "4"]
    (recovery,) = report.recoveries
    assert recovery.url == "http://s1" and "connection reset" in recovery.reason and "s1.log" in recovery.reason
    assert (rig.servers[0].incarnation, rig.servers[1].incarnation) == (1, 2)


def test_a_healthy_server_that_refuses_is_restarted_alone(rig: Rig) -> None:
    def refuses(source: Any, client: Any) -> None:
        client.refused.add(rig.servers[0])
        raise RuntimeError("checksum")

    rig.once(refuses)
    assert [r.url for r in rig.pusher.push(4).recoveries] == ["http://s0"]


def test_where_nobody_is_to_blame_all_are_restarted(rig: Rig) -> None:
    def late(source: Any, client: Any) -> None:
        raise TimeoutError("rank 0 waited")

    rig.once(late)
    assert len(rig.pusher.push(4).recoveries) == 2 and rig.passes == [6, 6]


def test_a_server_that_is_gone_before_the_push_costs_no_pass(rig: Rig) -> None:
    rig.servers[0].ok = False
    assert len(rig.pusher.push(4).recoveries) == 1
    assert (rig.passes, rig.announced) == ([6], 1)


def test_a_frozen_server_is_noticed_by_the_watch(rig: Rig) -> None:
    def freezes(source: Any, client: Any) -> None:
        next(source)
        rig.servers[1].ok = False
        while True:
            client.watch.check()
            time.sleep(0.01)

    rig.once(freezes)
    (recovery,) = rig.pusher.push(4).recoveries
    assert "http://s1 is gone, or did not answer /health within 0.2 s" in recovery.reason
    assert rig.passes == [6, 6]


def test_it_gives_up(rig: Rig) -> None:
    rig.servers[0].curable = rig.servers[0].ok = False
    with pytest.raises(RolloutError, match=r"gave up .*http://s0 after 2 restarts .* before the push of weights 4"):
        rig.pusher.push(4)
    assert rig.servers[0].incarnation == 3 and not rig.passes
    rig.servers[0].ok = True
    rig.pusher.push(5)  # the caller may have mended it
    rig.servers[0].ok, rig.servers[0].curable = False, True
    assert len(rig.pusher.push(6).recoveries) == 1  # and the count began anew


def test_passes_that_fail_for_ever_are_all_read_to_the_end(rig: Rig) -> None:
    def fails(source: Any, client: Any) -> None:
        next(source)
        client.refused.add(rig.servers[1])
        raise RuntimeError("checksum")

    rig.send = fails
    with pytest.raises(RolloutError, match=r"gave up .*s1 after 2 restarts .*checksum"):
        rig.pusher.push(4)
    assert (rig.passes, rig.announced) == ([6, 6, 6], 3)


def test_a_source_that_fails_is_nobody_elses_fault(rig: Rig) -> None:
    def gather_failed(i: int) -> None:
        if i == 3:
            raise ValueError("gather failed")

    rig.at = gather_failed
    with pytest.raises(RolloutError, match="the push of weights 4 failed: ValueError: gather failed"):
        rig.pusher.push(4)
    assert rig.passes == [3] and rig.servers[0].incarnation == 1 and rig.closed == 1


def test_a_source_unlike_its_metadata_is_read_to_the_end_all_the_same(rig: Rig) -> None:
    def notices(source: Any, client: Any) -> None:
        next(source)
        raise SourceError("tensor 0 of the weight source is b, but its metadata says a")

    rig.send = notices
    with pytest.raises(RolloutError, match="tensor 0 of the weight source"):
        rig.pusher.push(4)
    assert (rig.passes, rig.announced) == ([6], 1) and rig.servers[0].incarnation == 1


def test_a_request_that_is_refused_ends_at_once(rig: Rig) -> None:
    def refuse(source: Any, client: Any) -> None:
        raise RolloutError("404")

    rig.send = refuse
    with pytest.raises(RolloutError, match="404"):
        rig.pusher.push(4)
    assert rig.passes == [6] and rig.servers[0].incarnation == 1


def test_an_announcement_that_fails_is_nobody_elses_fault(rig: Rig) -> None:
    def announce() -> None:
        raise ConnectionError("rank 1 is gone")

    rig.pusher._announce = announce
    with pytest.raises(RolloutError, match="rank 1 is gone"):
        rig.pusher.push(4)
    assert not rig.passes and rig.servers[0].incarnation == 1


def test_a_part_of_the_servers(rig: Rig) -> None:
    rig.pusher.push(4, [rig.servers[1]])
    rig.pusher.push(4)
    assert rig.groups == [[rig.servers[1]], rig.servers]


def test_threads_take_turns(rig: Rig) -> None:
    under_way = 0

    def send(source: Any, client: Any) -> None:
        nonlocal under_way
        under_way += 1
        time.sleep(0.05)
        assert under_way == 1
        list(source)
        under_way -= 1

    rig.send = send
    threads = [threading.Thread(target=rig.pusher.push, args=(4, [server])) for server in rig.servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rig.passes == [6, 6]


def test_a_lost_rank_is_no_fault_of_servers_or_weights(rig: Rig) -> None:
    def lost(i: int) -> None:
        if i == 3:
            raise RanksLostError("rank 1 is gone")

    rig.at = lost
    with pytest.raises(RanksLostError, match="rank 1 is gone"):
        rig.pusher.push(4)
    assert rig.closed == 1 and rig.servers[0].incarnation == 1


def test_waiting_for_a_restart_can_be_broken_off(rig: Rig) -> None:
    """Nobody waits for the push meanwhile: its pass over the source has ended."""
    stopped, breaking = threading.Event(), threading.Event()
    server = rig.servers[0]

    def restart(reason: str) -> float:
        breaking.set()
        assert stopped.wait(300)
        raise RolloutError("stopped")

    @contextmanager
    def breakable() -> Iterator[None]:
        assert breaking.wait(300)
        raise KeyboardInterrupt
        yield

    server.restart, server.stop, rig.pusher._breakable = restart, stopped.set, breakable
    rig.once(lambda source, client: setattr(server, "ok", False) or (_ for _ in ()).throw(ConnectionError("died")))
    with pytest.raises(KeyboardInterrupt):
        rig.pusher.push(4, [server])
    assert rig.passes == [6] and stopped.is_set()


@pytest.mark.parametrize(
    ("routes", "told"),
    [
        (["127.0.0.1", "127.0.0.1"], "127.0.0.1"),
        (["127.0.0.1", "10.0.0.1"], "10.0.0.1"),  # one server is on this host, whose loopback the other cannot reach
        (["10.0.0.1", "192.168.0.1"], "10.0.0.1"),
    ],
)
def test_the_sender_is_told_by_an_address_that_every_server_reaches(rig: Rig, monkeypatch, routes, told) -> None:
    ways = dict(zip(("s0", "s1"), routes, strict=True))
    monkeypatch.setattr(push.network, "local_address", ways.__getitem__)
    link = rig.pusher._link(rig.servers)
    assert (link.address, link.name, link.num_workers) == (told, told, 2)
    rig.pusher._address = "trainer.example"
    assert (rig.pusher._link(rig.servers).address, rig.pusher._link(rig.servers).name) == (told, "trainer.example")
