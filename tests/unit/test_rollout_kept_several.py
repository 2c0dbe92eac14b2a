"""Several servers that stages hand on: all together, each replaced by itself, none left without a place."""

import os
import signal
import socket

import pytest
from kept_rig import Chain, Given, chain, model, served, version

from r1mega.errors import RolloutError
from r1mega.rollout.kept import NO_VERSION, KeptServer
from r1mega.rollout.server import Server
from r1mega.runtime import process

__all__ = ["chain", "model"]


def test_several_are_handed_on_together_and_each_is_replaced_by_itself(chain: Chain):
    first = chain.stage_of(2)
    assert [server.log_file.name for server in first] == ["vllm-0.log", "vllm-1.log"]
    assert len({server.port for server in first}) == 2 and chain.keeper.recorded() == ["-0", "-1"]
    judge = chain.starting(servers=2)  # another model of the same stage
    assert all(type(server) is Server for server in judge)
    assert [server.log_file.name for server in judge] == ["own-0.log", "own-1.log"]
    for server in (*judge, *first):
        server.stop()
    os.killpg(first[1].pid, signal.SIGKILL)
    chain.gone(first[1].pid)
    second = chain.stage_of(2)
    assert second[0].pid == first[0].pid and second[0].foreign and version(second[0]) == NO_VERSION
    assert second[1].pid != first[1].pid and not second[1].foreign and version(second[1]) == "0"
    for server in second:
        server.stop()


def test_servers_that_attendants_start_are_not_handed_on(chain: Chain):
    (server,) = chain.starting(attendants="/x")
    assert type(server) is Server and chain.keeper.recorded() == []
    server.stop()


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 2)])
def test_another_number_of_servers_leaves_none_that_nobody_has(chain: Chain, before: int, after: int):
    left = chain.stage_of(before)
    for server in left:
        server.stop()
    taken = chain.stage_of(after)
    kept = [server for server in taken if server.foreign]
    assert len(kept) == (2 if before == 3 else 0)
    for server in left:
        if server.pid not in {other.pid for other in kept}:
            chain.gone(server.pid)
    for server in taken:
        server.stop()
    chain.keeper.end()
    for server in taken:
        chain.gone(server.pid)
    assert chain.keeper.recorded() == []


def test_where_one_of_several_cannot_start_none_is_left_and_no_lock_held(chain: Chain):
    port = next(
        port for port in range(30_000, 32_000, 2) if process.port_is_free(port) and process.port_is_free(port + 1)
    )
    with (
        socket.create_server(("127.0.0.1", port + 1)),
        pytest.raises(RolloutError, match=f"port {port + 1} of 127.0.0.1"),
    ):
        chain.starting(servers=2, port=port)
    assert [chain.keeper.record(mark) for mark in ("-0", "-1")] == [None, None]
    first, second = chain.stage_of(2, port=port)
    assert isinstance(first, KeptServer) and (first.port, second.port) == (port, port + 1)
    for server in (first, second):
        server.stop()


def test_the_weights_are_given_to_all_that_lack_them_at_once(chain: Chain):
    give = Given()
    with served(chain, give, num=2) as first:
        first.client()
        assert give.servers == []  # they were started of the folder
        os.killpg(first.servers[0].pid, signal.SIGKILL)
        chain.gone(first.servers[0].pid)
    with served(chain, give, num=2) as second:
        second.client()
        lacked = [server.pid for server in second.servers if server.pid in {old.pid for old in first.servers}]
        assert give.servers == [lacked] and len(lacked) == 1
    with served(chain, give, num=2) as third:
        third.client()
        assert give.servers[1:] == [[server.pid for server in third.servers]]


def test_all_get_room_together(chain: Chain):
    with served(chain, Given(), num=2) as found:
        found.client()
        pids = {server.pid for server in found.servers}
        lengthened = found.make_room(65)
        assert lengthened is not None and (lengthened.before, lengthened.max_model_len) == (32, 65)
        assert [server.max_model_len for server in found.servers] == [65, 65]
        assert not pids & {server.pid for server in found.servers}
