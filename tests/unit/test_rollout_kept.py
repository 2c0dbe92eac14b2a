"""A server that stages hand on: who finds which one, and what becomes of it whatever becomes of the others."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from check_and_run import write_model
from kept_rig import Chain, Given, chain, model, served, version

from r1mega.config.cluster import RolloutLayout
from r1mega.rollout import kept
from r1mega.rollout.alike import kind_of
from r1mega.rollout.kept import NO_VERSION, KeptServer, begin, kinds_left
from r1mega.rollout.server import Server
from r1mega.runtime import env
from r1mega.runtime.process import Identity

__all__ = ["chain", "model"]


def test_a_later_stage_has_the_server_of_an_earlier_one_and_it_ends_with_the_chain(chain: Chain, model: Path):
    first = chain.stage()
    assert not first.foreign and version(first) == "0" and first.max_model_len == 64
    first.stop()
    second = chain.stage(room=48)
    assert (second.pid, second.url, second.max_model_len) == (first.pid, first.url, 64)
    assert second.foreign and version(second) == NO_VERSION and second.model_dir == model
    second.stop()
    pid = second.pid
    assert Identity.of(pid) is not None
    assert kinds_left() == {kind_of(model)}
    chain.keeper.end()
    chain.gone(pid)
    assert chain.keeper.record() is None and kinds_left() == set()


@pytest.mark.parametrize("how", ["model", "threads", "room"])
def test_one_that_is_laid_out_otherwise_is_ended_and_another_takes_its_place(chain: Chain, how: str, tmp_path: Path):
    first = chain.stage()
    first.stop()
    other = tmp_path / "other"
    write_model(other, rms_norm_eps=1e-3)
    wanted: dict[str, Any] = {"model": {"model": other}, "threads": {"threads": 2}, "room": {"room": 65}}[how]
    second = chain.stage(**wanted)
    assert second.pid != first.pid and not second.foreign and version(second) == "0"
    assert second.max_model_len == (65 if how == "room" else 64)
    chain.gone(first.pid)
    second.stop()
    third = chain.stage(**wanted)
    assert third.pid == second.pid
    third.stop()


@pytest.mark.parametrize("taken", [False, True])
def test_one_that_is_ready_is_not_waited_for_again_however_long_ago_it_started(chain: Chain, taken: bool):
    """A stage waits for it once a model that it asks; its start's limit is none of the whole evaluation."""
    if taken:
        chain.stage().stop()
    server = chain.stage()
    assert server.foreign is taken
    server.foreign = False  # as whoever gives it weights does
    server._started -= 10 * server.layout.start_timeout_s
    pid, before = server.pid, version(server)
    assert server.wait_ready() == 0.0 and (server.pid, version(server)) == (pid, before)
    server.restart("it froze")
    chain.pids.add(server.pid)
    assert server.pid != pid and version(server) == "0"  # waited for, or it would have none


def test_settings_of_the_asker_alone_are_no_other_layout(chain: Chain):
    first = chain.stage()
    first.stop()
    second = chain.stage(request_timeout_s=7.0, max_restarts=1)
    assert second.pid == first.pid and second.layout.request_timeout_s == 7.0
    second.stop()


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_one_that_is_frozen_or_dead_is_replaced(chain: Chain, how: signal.Signals):
    first = chain.stage()
    first.stop()
    os.killpg(first.pid, how)
    if how == signal.SIGKILL:
        chain.gone(first.pid)
    second = chain.stage(health_timeout_s=0.5)
    assert second.pid != first.pid and not second.foreign and version(second) == "0"
    chain.gone(first.pid)
    second.stop()
    assert chain.stage().pid == second.pid


def test_one_that_freezes_while_a_stage_has_it_is_started_anew_of_that_stages_folder(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    chain.stage().stop()
    again = tmp_path / "again"
    write_model(again)
    second = chain.stage(again)
    assert second.foreign
    with monkeypatch.context() as changed:
        started: list[Path] = []
        command = Server._command
        changed.setattr(Server, "_command", lambda self: started.append(self.model_dir) or command(self))
        second.restart("it froze")
    chain.pids.add(second.pid)
    assert started == [again] and not second.foreign and version(second) == "0"
    second.stop()
    assert chain.stage().pid == second.pid  # which is recorded as well


def test_a_killed_chain_takes_its_server_along(chain: Chain):
    server = chain.stage()
    server.stop()
    os.kill(chain.process.pid, signal.SIGKILL)
    chain.process.wait()
    chain.gone(server.pid)
    (alone,) = begin(chain.model, RolloutLayout(), max_model_len=8, seed=0, log_file=chain.log_file)
    assert not isinstance(alone, KeptServer)  # its stage's own
    alone.stop()


def test_a_stage_that_goes_on_without_its_chain_has_a_server_of_its_own(chain: Chain):
    server = chain.stage()
    chain.process.kill()
    chain.process.wait()
    chain.gone(server.pid)
    server.restart("its chain is gone")
    pid = server.pid
    assert version(server) == "0"
    server.stop()
    chain.gone(pid)


def test_two_servers_of_a_stage_are_never_one(chain: Chain):
    first = chain.stage()
    second = chain.stage()
    assert second.pid != first.pid and not isinstance(second, KeptServer)
    second.stop()
    chain.gone(second.pid)
    first.stop()
    assert chain.stage().pid == first.pid


def test_one_that_a_stage_has_not_waited_for_is_not_left(chain: Chain):
    (server,) = chain.starting()
    pid = server.pid
    server.stop()
    chain.gone(pid)
    assert chain.keeper.record() is None


def test_room_is_no_more_than_the_model_has_positions(chain: Chain, tmp_path: Path):
    short = tmp_path / "short"
    write_model(short, max_position_embeddings=40)
    server = chain.stage(short)
    assert server.max_model_len == 40
    server.stop()


def test_a_folders_weights_are_given_before_anything_is_asked(chain: Chain):
    give = Given()
    with served(chain, give) as first:
        first.client()
        assert give.folders == []  # it was started of the folder
    with served(chain, give) as second:
        second.client()
        second.client()
    assert give.folders == [chain.model]
    assert second.servers[0].pid == first.servers[0].pid


def test_whoever_pushes_a_policy_gives_no_folder(chain: Chain):
    """And until the push the server's weights are of no version that may be asked."""
    give = Given()
    with served(chain, give) as first:
        first.client()
    with served(chain, give) as second:
        second.client(lambda server, version: None)
        assert give.folders == [] and version(second.servers[0]) == NO_VERSION


def test_room_that_is_there_needs_no_new_start(chain: Chain):
    with served(chain, Given()) as found:
        found.client()
        pid = found.servers[0].pid
        assert found.make_room(64) is None and found.servers[0].pid == pid
        lengthened = found.make_room(65)
        assert lengthened is not None and (lengthened.before, lengthened.max_model_len) == (64, 65)
        assert found.servers[0].pid != pid and found.servers[0].max_model_len == 65


def test_outside_a_chain_a_server_is_its_stages_own(chain: Chain, model: Path):
    env.keep_server(None)
    (server,) = begin(model, RolloutLayout(), max_model_len=8, seed=0, log_file=chain.log_file)
    assert type(server) is Server and server.log_file == chain.log_file
    server.stop()
    assert kept.Keeper.told() is None
