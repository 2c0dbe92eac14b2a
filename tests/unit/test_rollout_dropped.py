"""A rollout server that drops a connection is asked again over another one; restarted where that does not help."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_rig import Rig, half, on_completions, reset


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    for server in rig.servers:
        server.shut()


@pytest.mark.parametrize("drop", [half, reset])
@pytest.mark.parametrize("path", ["/v1/completions", "/health", "/weight_info"])
def test_a_dropped_connection_is_no_death(rig: Rig, drop: Callable[[Any], None], path: str, caplog) -> None:
    """Whatever was asked over it is asked once more, and nothing is restarted."""
    rig.servers.pop().shut()
    (server,) = rig.servers
    dropped = list[str]()

    def once(handler: Any) -> bool:
        if handler.path != path or dropped:
            return False
        dropped.append(path)
        if not hasattr(handler, "body"):
            handler.body = {"prompt": [0], "stop_token_ids": [0], "n": 1, "seed": 0}
        drop(handler)
        return True

    server.fault = once
    rig.check(rig.generate())
    assert dropped == [path]
    assert not rig.recoveries and not server.reasons
    (said,) = [record.getMessage() for record in caplog.records if "asked again" in record.getMessage()]
    assert server.url in said and "asked again over a new connection" in said


def test_one_that_drops_connections_again_and_again_is_restarted(rig: Rig) -> None:
    rig.servers.pop().shut()
    (server,) = rig.servers
    server.fault = on_completions(reset)
    rig.check(rig.generate())
    (recovery,) = rig.recoveries
    assert "no answer" in recovery.reason
