"""An endpoint asked from any thread: at once, each question once, and again out of the cache."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import EndpointServer, fails, hangs

from r1mega.endpoint import asker as asker_file
from r1mega.endpoint.asker import EndpointAsker
from r1mega.endpoint.cache import ReplyCache, key_of
from r1mega.endpoint.client import Client
from r1mega.endpoint.settings import Endpoint
from r1mega.errors import DataError, EndpointError, EndpointLostError

QUICK = {"first_wait_s": 0.001, "longest_wait_s": 0.002, "timeout_s": 20.0, "deadline_s": 60.0}


def said(body: dict[str, Any]) -> str:
    return f"{body['messages'][-1]['content']}, seed {body.get('seed')}"


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with EndpointServer(said) as server:
        yield server


def asker(server: EndpointServer, cache: Path | None = None, **settings: Any) -> EndpointAsker:
    endpoint = Endpoint(**{"url": server.url, "model": "m", **QUICK, **settings})
    return EndpointAsker(Client(endpoint), ReplyCache(cache))


def ask(asker: EndpointAsker, words: str, seed: int = 1, **how: Any) -> Any:
    drawn = {"temperature": 0.5, "max_tokens": 9, **how}
    return asker.ask([{"role": "user", "content": words}], seed=seed, **drawn)


def test_many_are_asked_at_once_and_none_keeps_its_caller(server: EndpointServer):
    gate = threading.Event()
    server.say = lambda body: said(body) if gate.wait(60) else ""
    with asker(server, concurrency=8) as asked:
        futures = [ask(asked, str(i), seed=i) for i in range(20)]
        while server.under_way < 8:
            time.sleep(0.01)
        assert not any(future.done() for future in futures)
        gate.set()
        assert [future.result(60) for future in futures] == [f"{i}, seed {i}" for i in range(20)]
    assert server.most_under_way == 8 and len(server.bodies) == 20
    assert server.bodies[0] | {"messages": 0, "seed": 0} == {
        "path": "/v1/chat/completions", "model": "m", "messages": 0, "n": 1, "temperature": 0.5, "max_tokens": 9,
        "seed": 0,
    }  # fmt: skip


def test_what_was_answered_is_not_asked_again_by_another_process_of_the_run(server: EndpointServer, tmp_path: Path):
    cache = tmp_path / "judge.jsonl"
    with asker(server, cache) as asked:
        first = [ask(asked, "a").result(60), ask(asked, "b").result(60)]
    server.say = lambda body: "something else"
    with asker(server, cache) as asked:
        assert [ask(asked, "a").result(60), ask(asked, "b").result(60)] == first
        assert (asked.asked, asked.cached, len(server.bodies)) == (2, 2, 2)
        others = [
            ask(asked, "c"), ask(asked, "a", seed=2), ask(asked, "a", temperature=0.6), ask(asked, "a", max_tokens=8)
        ]  # fmt: skip
        assert [other.result(60) for other in others] == ["something else"] * 4 and asked.cached == 2


@pytest.mark.parametrize("other", [{"extra": {"top_k": 2}}, {"model": "n"}])
def test_another_model_has_said_nothing_yet(other: dict[str, Any], server: EndpointServer, tmp_path: Path):
    for settings in ({}, other):
        with asker(server, tmp_path / "judge.jsonl", **settings) as asked:
            ask(asked, "a").result(60)
    assert len(server.bodies) == 2


def test_a_server_without_seeds_is_asked_for_every_vote(server: EndpointServer):
    with asker(server, seeds=False) as asked:
        assert [ask(asked, "a", seed=i).result(60) for i in range(3)] == ["a, seed None"] * 3
    assert len(server.bodies) == 3 and all("seed" not in body for body in server.bodies)


def test_the_same_question_at_the_same_time_is_sent_once(server: EndpointServer):
    gate = threading.Event()
    server.say = lambda body: said(body) if gate.wait(60) else ""
    with asker(server) as asked:
        futures = [ask(asked, "a") for _ in range(5)]
        gate.set()
        assert {future.result(60) for future in futures} == {"a, seed 1"}
        assert (len(server.bodies), asked.asked, asked.cached) == (1, 5, 4)


def test_an_error_is_everybodys_who_waits_for_it_and_is_not_kept(server: EndpointServer, tmp_path: Path):
    server.faults = [fails(500)] * 2
    with asker(server, tmp_path / "judge.jsonl", attempts=2) as asked:
        server.delay_s = 0.2
        futures = [ask(asked, "a") for _ in range(3)]
        assert all(isinstance(future.exception(60), EndpointLostError) for future in futures)
        assert len(server.bodies) == 2
        assert ask(asked, "a").result(60) == "a, seed 1"


def test_a_server_that_is_gone_is_not_waited_for_by_all(server: EndpointServer, monkeypatch: pytest.MonkeyPatch):
    """After so many without an answer between them nothing more is sent; an answer begins the count anew."""
    monkeypatch.setattr(asker_file, "MAX_LOST", 3)
    with asker(server, attempts=1, concurrency=1) as asked:
        for num in (2, 2):
            server.faults = [fails(500)] * num
            errors = [ask(asked, f"{num} {i}").exception(60) for i in range(num + 1)]
            assert [isinstance(error, EndpointLostError) for error in errors] == [True] * num + [False]
            asked.cache = ReplyCache()
        server.faults = [fails(500)] * 9
        errors = [ask(asked, f"lost {i}").exception(60) for i in range(6)]
        assert all(isinstance(error, EndpointLostError) for error in errors) and len(server.faults) == 6
        assert "3 requests in a row came to nothing" in str(errors[-1])


def test_a_budget_that_is_used_up_is_an_error_of_each(server: EndpointServer):
    with asker(server, budget_requests=2, concurrency=1) as asked:
        found = [ask(asked, str(i)).exception(60) for i in range(4)]
    assert found[:2] == [None, None]
    assert all(
        isinstance(e, EndpointError) and "endpoint.budget_requests = 2 is used up" in str(e) for e in found[2:]
    )


def test_what_is_under_way_is_given_up_at_the_end(server: EndpointServer):
    server.faults = [hangs(30)]
    with asker(server) as asked:
        future = ask(asked, "a")
        while not server.bodies:
            time.sleep(0.01)
    with pytest.raises(CancelledError):
        future.result(0)
    assert "not asked any more" in str(ask(asked, "b").exception(0))
    with asker(server) as never:
        pass
    assert never.asked == 0 and "not asked any more" in str(ask(never, "b").exception(0))


# ---- the cache -----------------------------------------------------------------------------------------------------

KEYS = [key_of("question", i) for i in range(4)]


def test_keys_are_of_values_whatever_the_order():
    assert (
        key_of("u", {"a": 1, "b": [1, 2]}) == key_of("u", {"b": [1, 2], "a": 1}) != key_of("u", {"a": 1, "b": [2, 1]})
    )
    assert key_of("a", "b") != key_of("ab", "")


@pytest.mark.parametrize("cut", range(1, 40, 7))
def test_a_process_that_dies_while_it_writes_loses_that_line_alone(cut: int, tmp_path: Path):
    file = tmp_path / "cache.jsonl"
    cache = ReplyCache(file)
    cache.put(KEYS[0], "said")
    cache.put(KEYS[1], {"score": 0.5})
    cache.close()
    whole = file.read_bytes()
    cache.put(KEYS[2], "torn")
    cache.close()
    file.write_bytes(file.read_bytes()[: len(whole) + cut])
    again = ReplyCache(file)
    assert [again.get(key) for key in KEYS] == ["said", {"score": 0.5}, None, None] and len(again) == 2
    again.put(KEYS[3], "later, äöü")
    again.close()
    assert file.read_bytes().startswith(whole)
    values = [json.loads(line)["value"] for line in file.read_text().splitlines()]
    assert values == ["said", {"score": 0.5}, "later, äöü"]
    assert ReplyCache(file).get(KEYS[3]) == "later, äöü"


def test_a_damaged_line_is_said_and_asked_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = tmp_path / "cache.jsonl"
    cache = ReplyCache(file)
    for key in KEYS[:3]:
        cache.put(key, "said")
    cache.close()
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:-9] + "xx", lines[2], ""]))
    again = ReplyCache(file)
    assert [again.get(key) for key in KEYS[:3]] == ["said", None, "said"]
    assert "1 lines are damaged" in caplog.text


def test_a_file_that_cannot_be_read_is_one_message(tmp_path: Path):
    (tmp_path / "said.jsonl").mkdir()
    with pytest.raises(DataError, match=r"said\.jsonl, .* cannot be read: Is a directory; mend that"):
        ReplyCache(tmp_path / "said.jsonl")


def test_a_reply_that_is_cut_says_so_and_is_no_verdict(server: EndpointServer):
    from r1mega.rewards.judge_forms import read_verdict

    plain = server.answer

    def cut(body: dict[str, Any], path: str) -> dict[str, Any]:
        answer = plain(body, path)
        answer["choices"][0]["finish_reason"] = "length"
        return answer

    server.say = lambda body: "So far [[A>>B]]"
    server.answer = cut  # pyright: ignore[reportAttributeAccessIssue]
    with asker(server) as asked:
        words = ask(asked, "a").result(60)
    assert words == "So far [[A>>B]]\n(cut at the length limit)" and read_verdict(words) is None
