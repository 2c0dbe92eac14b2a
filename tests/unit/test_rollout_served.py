"""A served model: started when it is first needed, broken off by a signal wherever it waits, told of in the log."""

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from r1mega.config.cluster import RolloutLayout
from r1mega.rollout import served as module
from r1mega.rollout.command import ServerPlace
from r1mega.rollout.engine import SamplingParams
from r1mega.rollout.recovery import Recovery
from r1mega.rollout.served import Lengthened, ServedModel
from r1mega.runtime.interrupt import Interrupt, StopNow

PLACES = (ServerPlace(device="cuda", gpus=(3,)),)
PARAMS = SamplingParams(temperature=1.0, max_new_tokens=4)


class Rig:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.did, self.options, self.interrupt = list[Any](), dict[str, Any](), Interrupt()
        self.signal_at = ""
        monkeypatch.setattr(module, "begin_own", self.servers)
        monkeypatch.setattr(module, "Fleet", self.fleet)
        self.served = self.of(1)

    def of(self, servers: int) -> ServedModel:
        layout, log_file = RolloutLayout(servers=servers), Path("log")
        return ServedModel(
            Path("model"),
            layout,
            max_model_len=9,
            seed=3,
            log_file=log_file,
            interrupt=self.interrupt,
            places=PLACES,
        )

    def servers(self, model_dir: Path, *, layout: RolloutLayout, **options: Any) -> Any:
        self.did.append("start")
        self.options = options
        return tuple(self.server(i) for i in range(layout.servers))

    def server(self, i: int) -> Any:
        told = {"url": f"http://{i}", "log_file": f"log{i}", "model_dir": Path("model"), "foreign": False}
        return SimpleNamespace(
            pid=7 + i, max_model_len=9, wait_ready=self.does("ready"), stop=self.does("stop"),
            lengthen=self.lengthened, **told,
        )  # fmt: skip

    def lengthened(self, max_model_len: int) -> float:
        self.did.append(f"room for {max_model_len}")
        return float(len(self.did))

    def fleet(self, servers: Any, *, reload: Any, on_recovery: Any) -> Any:
        self.recovered = on_recovery
        assert reload is None and list(servers) == list(self.served.servers)
        return SimpleNamespace(generate=lambda *_, version, on_answer: self.does(f"asked at {version}")())

    def does(self, what: str) -> Callable[[], None]:
        def do() -> None:
            self.did.append(what)
            if what == self.signal_at:
                self.interrupt._handle(15, None)
                self.did.append(f"{what} went on")

        return do


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


def test_it_is_started_once_and_when_it_is_needed(rig: Rig) -> None:
    with rig.served as served:
        assert served.servers == () and served.peak_rss_gib() == 0.0
        served.start()
        assert rig.did == ["start"]
        for _ in range(2):
            served.generate([], PARAMS, version=0)
    assert rig.did == ["start", "ready", "asked at 0", "asked at 0", "stop"]
    assert rig.options == {"max_model_len": 9, "seed": 3, "log_file": Path("log"), "places": PLACES}


def test_its_memory_is_that_of_all_its_processes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "peak_rss_gib", lambda pid, *, tree=False: float(pid if tree else 0))
    rig.served.start()
    assert rig.served.peak_rss_gib() == 7.0


def test_several_start_side_by_side_and_share_what_is_done_to_them(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "peak_rss_gib", lambda pid, *, tree=False: float(pid))
    rig.served = rig.of(3)
    with rig.served as served:
        served.generate([], PARAMS, version=0)
        assert rig.did == ["start", "ready", "ready", "ready", "asked at 0"]
        assert served.peak_rss_gib() == 7 + 8 + 9
        assert served.make_room(9) is None
        rig.did.clear()
        lengthened = served.make_room(12)
        assert lengthened == Lengthened(before=9, max_model_len=12, seconds=3.0)  # the last one's
        assert rig.did == ["room for 12"] * 3
    assert rig.did[3:] == ["stop"] * 3


def test_a_signal_while_several_get_room_stops_all(rig: Rig) -> None:
    rig.served = rig.of(2)
    first, second = rig.served.start()
    held, let_go = threading.Event(), {id(server): threading.Event() for server in (first, second)}

    def lengthen(server: Any) -> float:
        held.set()
        let_go[id(server)].wait(30)  # as one that starts until it is stopped
        return 1.0

    def stop(server: Any) -> None:
        rig.did.append("stop")
        let_go[id(server)].set()

    for server in (first, second):
        server.lengthen, server.stop = (lambda _, s=server: lengthen(s)), (lambda s=server: stop(s))
    main = threading.get_ident()
    threading.Thread(target=lambda: held.wait(30) and signal.pthread_kill(main, signal.SIGUSR2)).start()
    before = signal.signal(signal.SIGUSR2, lambda *_: rig.interrupt._handle(15, None))
    try:
        with pytest.raises(StopNow):
            rig.served.make_room(12)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert rig.did == ["start", "stop", "stop"]


def test_what_was_never_asked_is_never_started(rig: Rig) -> None:
    with rig.served:
        pass
    assert rig.did == []


@pytest.mark.parametrize("place", ["ready", "asked at 0"])
def test_a_signal_breaks_off_the_wait(place: str, rig: Rig) -> None:
    rig.signal_at = place
    with pytest.raises(StopNow), rig.served as served:
        served.generate([], PARAMS, version=0)
    assert rig.did[-2:] == [place, "stop"]


def test_recoveries_are_told_in_the_log(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.served.client()
    with caplog.at_level(logging.WARNING):
        rig.recovered(Recovery("http://s", "found frozen", 3.0, 1))
    assert "http://s serves again after 3 s: found frozen" in caplog.text
