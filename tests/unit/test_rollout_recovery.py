"""Whatever a server does, each prompt ends with exactly G completions, or the run with one clear error."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, request, save_tokenizer
from fleet_rig import PARAMS, Rig, half, on_completions, reset, status

from r1mega.errors import RolloutError
from r1mega.rollout.recovery import Restarts


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    for server in rig.servers:
        server.shut()


FAULTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "not JSON": (on_completions(lambda h: h.send(b"<html>")), "it answered 200 <html>"),
    "half an answer": (on_completions(half), "no answer"),
    "connection reset": (on_completions(reset), "no answer"),
    "server error": (on_completions(status(500)), "it answered 500"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_costs_nothing_but_time(rig: Rig, name: str) -> None:
    fault, message = FAULTS[name]
    rig.servers[0].fault = fault
    rig.check(rig.generate())
    (recovery,) = rig.recoveries
    assert message in recovery.reason and recovery.requests_reissued > 0
    assert rig.servers[0].reasons == [recovery.reason] and rig.servers[0].url != recovery.url


def test_a_dead_engine_is_noticed_by_the_servers_health(rig: Rig) -> None:
    rig.servers.pop().shut()
    (server,) = rig.servers

    def dead(handler: Any) -> bool:
        """No request is ever answered, and the server's front says so."""
        if handler.path == "/health":
            server.asked.wait(50)
            status(503)(handler)
        return handler.path == "/health" or (handler.path == "/v1/completions" and server.freeze(handler))

    server.fault = dead
    rig.check(rig.generate())
    (recovery,) = rig.recoveries
    assert "its health: it answered 503" in recovery.reason and recovery.requests_reissued > 0


def test_wrong_counts_and_broken_numbers(rig: Rig) -> None:
    rig.servers[0].after = rig.servers[1]  # or one might be back, and have answered all, before the other is asked
    rig.servers[0].change = lambda a: {"choices": a["choices"][:2]}
    rig.servers[1].change = lambda a: json.loads(json.dumps(a).replace("-0.25", "NaN"))
    rig.check(rig.generate())
    reasons = " ".join(r.reason for r in rig.recoveries)
    assert "answers [2] did not come" in reasons and "answer 0 has logprobs that are none" in reasons


def test_a_frozen_server_is_noticed_by_its_health(rig: Rig) -> None:
    rig.servers.pop().shut()
    (server,) = rig.servers
    count, frozen = 0, 0

    def freeze_later(handler: Any) -> bool:
        nonlocal count, frozen
        count += handler.path == "/v1/completions"
        frozen = frozen or (server.incarnation if count > 3 else 0)
        return server.freeze(handler) if frozen == server.incarnation else False

    rig.limits(server, health_timeout_s=2)
    server.fault, server.incurable = freeze_later, True
    rig.check(rig.generate())
    assert any("its health: no answer within 2 s (rollout.health_timeout_s)" in r.reason for r in rig.recoveries)


def test_a_server_that_answers_nothing_but_its_health(rig: Rig) -> None:
    rig.servers[0].fault = on_completions(rig.servers[0].freeze)
    rig.limits(rig.servers[0], request_timeout_s=2)
    rig.check(rig.generate())
    assert any("no answer within 2 s (rollout.request_timeout_s)" in r.reason for r in rig.recoveries)


def test_a_server_that_is_gone(rig: Rig) -> None:
    rig.servers[0].shut()
    rig.servers[1].after = None
    rig.check(rig.generate())
    (recovery,) = rig.recoveries
    assert "ConnectError" in recovery.reason and recovery.requests_reissued == 0


def test_others_take_over_while_one_restarts(rig: Rig) -> None:
    """The healthy server answers everything before the other one is back, and generate waits for that one too."""
    frozen, healthy = rig.servers
    frozen.fault = on_completions(reset)
    all_answered, restart = threading.Event(), frozen.restart

    def slow(reason: str) -> float:
        assert all_answered.wait(300)
        return restart(reason)

    frozen.restart = slow
    rig.arrived = type(
        "Told", (list,), {"append": lambda s, i: (list.append(s, i), len(s) == 12 and all_answered.set())}
    )()
    rig.check(rig.generate())
    assert len({body["prompt"][0] for body in healthy.bodies}) == 12 and frozen.incarnation == 2


def test_weights_are_given_again(rig: Rig) -> None:
    for server in rig.servers:
        server.version = "7"
    rig.servers[0].fault = on_completions(reset)
    answers = rig.generate(version=7)
    rig.check(answers)
    assert rig.reloaded == [(rig.servers[0], 7)] and answers[0][0].weight_version == 7


def test_a_wrong_version_is_mended(rig: Rig) -> None:
    rig.servers[1].after = None
    rig.servers[0].version, rig.servers[1].version = "incomplete push of 7", "7"
    rig.check(rig.generate(version=7))
    assert rig.reloaded == [(rig.servers[0], 7)]
    assert "but it has 'incomplete push of 7'" in rig.recoveries[0].reason


def test_version_0_needs_nobody_to_reload_it(rig: Rig) -> None:
    rig.reload = None
    rig.servers[0].fault = on_completions(reset)
    rig.check(rig.generate())
    for server in rig.servers:
        server.version = "7"
    rig.servers[0].fault = on_completions(reset)
    rig.servers[0].asked.clear()  # the other one must leave it a request again
    with pytest.raises(RolloutError, match="nobody gives it others"):
        rig.generate(version=7)


def test_what_is_our_fault_ends_at_once(rig: Rig) -> None:
    rig.servers[0].fault = rig.servers[1].fault = on_completions(status(400))
    with pytest.raises(RolloutError, match="it answered 400"):
        rig.generate()
    assert not rig.recoveries and rig.servers[0].incarnation == rig.servers[1].incarnation == 1


def test_it_gives_up_on_a_server_that_never_answers(rig: Rig) -> None:
    rig.servers.pop().shut()
    (server,) = rig.servers
    server.fault, server.incurable = on_completions(reset), True
    with pytest.raises(RolloutError, match=r"gave up .* after 2 restarts in a row .*max_restarts.* no answer"):
        rig.generate()
    assert server.incarnation == 3


NO_KERNEL = "RuntimeError: Unsupported CPU attention configuration: head_dim=16 isa=2 kv_cache_idx=0"


def test_what_fails_again_at_the_same_error_is_not_restarted_a_third_time(rig: Rig) -> None:
    rig.servers.pop().shut()
    (server,) = rig.servers
    rig.limits(server)  # a hundred restarts
    server.fault, server.incurable, server.failed_at = on_completions(status(500)), True, NO_KERNEL
    with pytest.raises(RolloutError, match=r"gave up .*failed again as before.*head_dim=16.*Its log.*answered 500"):
        rig.generate()
    assert server.incarnation == 2
    assert NO_KERNEL in server.reasons[0]


def test_other_errors_and_other_numbers_of_one(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    server: Any = FakeServer(tmp_path, max_restarts=100)
    restarts = Restarts()
    for cause in ("ValueError: a", "ValueError: b", None, "OSError: at 0x7f01", None):
        server.failed_at = cause
        restarts.bring_back(server, "failed")
    restarts.succeeded(server)
    server.failed_at = "OSError: at 0x7f02"
    restarts.bring_back(server, "failed")  # it had done its work in between
    server.failed_at = "OSError: at 0xffff"
    with pytest.raises(RolloutError, match="failed again as before"):
        restarts.bring_back(server, "failed")
    server.shut()


def test_one_answer_between_two_failures_starts_the_count_anew(rig: Rig) -> None:
    """A server that fails at every fourth request still gets through any number of them."""
    rig.servers.pop().shut()
    (server,) = rig.servers
    server.layout = server.layout.model_copy(update={"max_num_seqs": 1})  # few at once, so that some get through
    asked = 0

    def sometimes(handler: Any) -> bool:
        nonlocal asked
        asked += handler.path == "/v1/completions"
        if handler.path == "/v1/completions" and asked % 4 == 0:
            status(500)(handler)
            return True
        return False

    server.fault, server.incurable = sometimes, True
    rig.check(rig.generate())
    assert len(rig.recoveries) > 2


def test_a_restart_that_fails_is_tried_again(rig: Rig) -> None:
    server, restart = rig.servers[0], rig.servers[0].restart
    failures = iter([RolloutError("out of memory")])

    def sometimes(reason: str) -> float:
        for failure in failures:
            server.reasons.append(reason)
            raise failure
        return restart(reason)

    server.restart, server.fault = sometimes, on_completions(reset)
    rig.check(rig.generate())
    assert server.reasons[1] == "out of memory"
    assert len(rig.recoveries) == 1


def test_an_error_of_the_listener_is_not_the_servers(rig: Rig) -> None:
    rig.servers.pop().shut()  # it would wait for the other one to be asked, and there is only one request

    def full(index: int, completions: Any) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        rig.fleet().generate([request(0)], PARAMS, version=0, on_answer=full)
    assert not rig.recoveries


def test_a_failed_reload_is_final(rig: Rig) -> None:
    def reload(server: Any, version: int) -> None:
        raise RolloutError("the push failed")

    rig.reload, rig.servers[0].fault = reload, on_completions(reset)
    with pytest.raises(RolloutError, match="the push failed"):
        rig.generate()


def test_restarts_count_per_server(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    servers: list[Any] = [FakeServer(tmp_path, max_restarts=1) for _ in range(2)]
    restarts = Restarts()
    for server in servers:
        restarts.bring_back(server, "first")
    restarts.succeeded(servers[0])
    restarts.bring_back(servers[0], "again")
    with pytest.raises(RolloutError, match=r"after 1 restarts in a row .* Last: again"):
        restarts.bring_back(servers[1], "again")
    for server in servers:
        server.shut()
