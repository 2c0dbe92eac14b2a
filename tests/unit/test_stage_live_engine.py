"""The RL stage's engine over servers that are none: which weights are pushed to which of them, and when."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from r1mega.config.cluster import Cluster
from r1mega.errors import RolloutError
from r1mega.rollout.recovery import Recovery
from r1mega.stages import sampling

RECOVERY = Recovery("http://s", "gone", 1.0, 2)


class Rig:
    """What `LiveEngine` makes, in place of servers, pushers and fleets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.did, self.recovered = list[Any](), list[Recovery]()
        self.server = SimpleNamespace(
            wait_ready=lambda: self.did.append("ready"), stop=lambda: self.did.append("stop")
        )
        monkeypatch.setattr(sampling, "Server", self.start)
        monkeypatch.setattr(sampling, "Pusher", lambda *_, **options: self.made(options))
        monkeypatch.setattr(sampling, "Fleet", self.fleet)
        interrupt: Any = SimpleNamespace(at_once=contextlib.nullcontext)
        self.engine = sampling.LiveEngine(
            Path("model"), Cluster(device="cpu", address="here"), max_model_len=9, seed=0, log_file=Path("log"),
            on_recovery=self.recovered.append, interrupt=interrupt,
        )  # fmt: skip
        self.engine.connect([], lambda: None)

    def start(self, *_: Any, **__: Any) -> Any:
        self.did.append("start")
        return self.server

    def made(self, options: dict[str, Any]) -> Any:
        assert options["address"] == "here"
        return SimpleNamespace(push=self.push, close=lambda: self.did.append("close"))

    def push(self, version: int, servers: Sequence[Any] | None = None) -> Any:
        self.did.append((version, servers))
        return SimpleNamespace(seconds=2.0, recoveries=(RECOVERY,) if version == 4 else ())

    def fleet(self, servers: Sequence[Any], *, reload: Any, on_recovery: Any) -> Any:
        assert servers == [self.server]
        self.reload = reload
        return SimpleNamespace()


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


def test_each_version_is_pushed_once_to_all_servers(rig: Rig) -> None:
    for version in (0, 0, 2, 2, 4):
        rig.engine.bring_to(version)
    assert rig.did == ["start", "ready", (0, None), (2, None), (4, None)]
    assert (rig.engine.push_seconds, rig.recovered) == (6.0, [RECOVERY])
    rig.engine.stop()
    assert rig.did[-2:] == ["close", "stop"]


def test_a_server_that_came_back_is_given_the_weights_that_answer_now(rig: Rig) -> None:
    rig.engine.bring_to(2)
    rig.reload(rig.server, 2)
    assert rig.did[-1] == (2, [rig.server])
    rig.engine.bring_to(4)
    rig.reload(rig.server, 4)
    assert rig.did[-2:] == [(4, None), (4, [rig.server])]
    assert rig.recovered == [RECOVERY, RECOVERY]  # while it was given them, too
    rig.engine.halt()
    with pytest.raises(RolloutError, match="the run is stopping"):
        rig.reload(rig.server, 4)
    assert rig.did[-1] == (4, [rig.server])
