"""How a prompt's answers are divided over servers changes none of them, and one that has come is not asked again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, answer, request, save_tokenizer, stream
from fleet_rig import PARAMS, Rig, on_completions

from r1mega.rollout.engine import SamplingParams
from r1mega.rollout.fleet import Fleet


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    for server in rig.servers:
        server.shut()


def all_are_asked(servers: list[Any]) -> None:
    """None answers before the next one was asked: else one whose first answers are there takes more than its share of
    all."""
    for server, following in zip(servers, [*servers[1:], servers[0]], strict=True):
        server.after = following


@pytest.mark.parametrize("rooms", [[100], [1], [3, 3], [2, 5, 1], [100, 100]])
def test_the_same_answers_come_whatever_the_split(rooms: list[int], tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    servers: list[Any] = [FakeServer(tmp_path, max_num_seqs=room) for room in rooms]
    all_are_asked(servers)
    asked = [request(i, n) for i, n in enumerate([8, 1, 5, 8, 3])]
    answers = Fleet(servers).generate(asked, PARAMS, version=0)
    # The fake's answers follow from the prompt and from the seed of each, as vLLM's do.
    for i, (group, n) in enumerate(zip(answers, [8, 1, 5, 8, 3], strict=True)):
        assert [(c.index, c.seed, c.token_ids.tolist()) for c in group] == [
            (k, 100 * i + k, [i, 1 + k % 5, 10]) for k in range(n)
        ]
    sent = sorted((b["prompt"][0], b["seed"], b["n"]) for server in servers for b in server.bodies)
    covered = [(i, seed + k) for i, seed, n in sent for k in range(n)]
    assert covered == [(i, 100 * i + k) for i, n in enumerate([8, 1, 5, 8, 3]) for k in range(n)]
    assert len(rooms) == 1 or all(server.bodies for server in servers)
    for server in servers:
        server.shut()


def test_a_small_rollout_is_divided_and_each_prompt_together(rig: Rig) -> None:
    """Though the first server had room for all of it."""
    all_are_asked(rig.servers)
    for server in rig.servers:
        server.layout = server.layout.model_copy(update={"max_num_seqs": 100})
    rig.check(rig.generate())
    for server in rig.servers:
        assert sum(body["n"] for body in server.bodies) == 18 and {body["n"] for body in server.bodies} == {3}


def test_a_data_parallel_server_takes_as_much_as_its_ranks_together(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    servers: list[Any] = [FakeServer(tmp_path, max_num_seqs=50, dp=dp) for dp in (1, 3)]
    all_are_asked(servers)
    Fleet(servers).generate([request(i, 2) for i in range(8)], PARAMS, version=0)
    assert [sum(body["n"] for body in server.bodies) for server in servers] == [4, 12]
    for server in servers:
        server.shut()


def test_greedy_answers_are_drawn_once_and_never_divided(rig: Rig) -> None:
    for server in rig.servers:
        server.after = None
    answers = rig.fleet().generate([request(i) for i in range(5)], SamplingParams(0.0, 5), version=0)
    assert [[c.seed for c in group] for group in answers] == [[100 * i + k for k in range(3)] for i in range(5)]
    assert sorted(body["prompt"][0] for server in rig.servers for body in server.bodies) == [0, 1, 2, 3, 4]


def test_an_answer_that_has_come_is_not_asked_again(rig: Rig) -> None:
    """A server that fails in the middle of its answers: those that had ended stay, and only the others are drawn."""
    rig.servers.pop().shut()
    (server,) = rig.servers
    server.layout = server.layout.model_copy(update={"max_num_seqs": 100})

    def middle(handler: Any) -> None:
        """The second answer alone; then no more than a server error."""
        whole = answer(handler.body)
        ends = stream({"choices": [whole["choices"][1]]}).partition(b"data: [DONE]")[0]
        handler.send(ends + b"data: " + json.dumps({"error": {"code": 500}}).encode() + b"\n\n")

    server.fault = on_completions(middle)
    rig.check(rig.generate(num=1), num=1)
    (recovery,) = rig.recoveries
    assert "it broke off with {'code': 500}" in recovery.reason and recovery.requests_reissued == 1
    asked = [(body["seed"], body["n"]) for body in server.bodies]
    assert asked[0] == (0, 3) and sorted(asked[1:]) == [(0, 1), (2, 1)]


def test_a_connection_that_is_dropped_between_answers_costs_the_others_alone(rig: Rig) -> None:
    rig.servers.pop().shut()
    (server,) = rig.servers
    server.layout, dropped = server.layout.model_copy(update={"max_num_seqs": 100}), list[str]()

    def drop(handler: Any) -> bool:
        if handler.path != "/v1/completions" or dropped:
            return False
        dropped.append(handler.path)
        whole = answer(handler.body)
        ends = stream({"choices": [whole["choices"][1]]}).partition(b"data: [DONE]")[0]
        handler.send(ends, len(ends) + 100)
        handler.close_connection = True
        return True

    server.fault = drop
    rig.check(rig.generate(num=1), num=1)
    assert not rig.recoveries and [(b["seed"], b["n"]) for b in server.bodies] == [(0, 3), (0, 1), (2, 1)]


def test_a_stream_without_its_end_is_a_failure(rig: Rig) -> None:
    rig.servers.pop().shut()
    (server,) = rig.servers

    def cut(handler: Any) -> None:
        lines = stream(answer(handler.body)).split(b"\n\n")
        handler.send(b"\n\n".join(lines[:4]) + b"\n\n")  # each answer's first token, and the end of the first one

    server.fault = on_completions(cut)
    rig.check(rig.generate(num=1), num=1)
    (recovery,) = rig.recoveries
    assert "its answer has no end" in recovery.reason
    assert [(body["seed"], body["n"]) for body in server.bodies] == [(0, 3), (1, 2)]
