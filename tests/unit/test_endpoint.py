"""The client of an OpenAI-compatible endpoint, against a real HTTP server with faults planted in it."""

import asyncio
import datetime
import email.utils
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from endpoint_server import EndpointServer, Respond, fails, half, hangs, reset, sends
from pydantic import ValidationError

from r1mega.endpoint import client as client_file
from r1mega.endpoint.client import Client
from r1mega.endpoint.replies import read, retry_after_s
from r1mega.endpoint.settings import Endpoint
from r1mega.errors import ConfigError, EndpointError, EndpointLostError
from r1mega.runtime import env

KEY = "sk-not-to-be-seen"


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with EndpointServer() as server:
        yield server


def client(server: EndpointServer, **settings: Any) -> Client:
    quick = {"first_wait_s": 0.01, "longest_wait_s": 0.02, "timeout_s": 20.0, "deadline_s": 60.0}
    return Client(Endpoint(url=server.url, model="m", **{**quick, **settings}), KEY)


def ask(client: Client, num: int = 1, **fields: Any) -> list[Any]:
    """Replies, or the errors in their places."""

    async def all_of_them() -> list[Any]:
        async with client.session():
            asked = [client.chat([{"role": "user", "content": str(i)}], **fields) for i in range(num)]
            return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(all_of_them())


def test_what_is_sent_and_what_is_read(server: EndpointServer):
    asked = client(server, extra={"top_k": 20})

    async def both() -> Any:
        async with asked.session():
            said = [{"role": "system", "content": "s"}, {"role": "user", "content": "1 + 1"}]
            return await asked.chat(said, n=2, temperature=0.6), await asked.complete("1 + 1 =", seed=3)

    chat, text = asyncio.run(both())
    assert server.bodies == [
        {"path": "/v1/chat/completions", "model": "m", "messages": [{"role": "system", "content": "s"},
         {"role": "user", "content": "1 + 1"}], "n": 2, "temperature": 0.6, "top_k": 20},
        {"path": "/v1/completions", "model": "m", "prompt": "1 + 1 =", "n": 1, "seed": 3, "top_k": 20},
    ]  # fmt: skip
    assert [choice.text for choice in chat.choices] == ["<answer>2</answer>"] * 2
    assert (chat.output_tokens, text.output_tokens, chat.input_tokens) == (2, 1, 7)
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    counts = asked.counts
    assert (counts.sent, counts.answered, counts.input_tokens, counts.output_tokens) == (2, 2, 14, 3)


FAULTS: dict[str, tuple[Respond, str]] = {
    "429": (fails(429), "429"),
    "500": (fails(500), "500"),
    "503 of a proxy, in HTML": (lambda h: sends_html(h), "503"),
    "hang": (hangs(3), "timeout"),
    "half of the JSON": (half, "connection"),
    "JSON that ends too soon": (sends(b'{"choices": [{"index": 0, "mess'), "malformed"),
    "no JSON": (sends(b"<html>"), "malformed"),
    "no answer": (sends(b'{"choices": [], "usage": {}}'), "malformed"),
    "two answers": (
        sends(json.dumps({"choices": 2 * [{"message": {"content": "2"}, "finish_reason": "stop"}]}).encode()),
        "malformed",
    ),
    "an error that is called a success": (sends(b'{"error": {"message": "overloaded"}}'), "malformed"),
    "nested too deeply": (sends(b"[" * 100_000), "malformed"),
    "reset": (reset, "connection"),
}


def sends_html(handler: Any) -> None:
    from endpoint_server import send

    send(handler, b"<html>Service unavailable</html>", 503)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_may_pass_is_tried_again_and_counted(fault: str, server: EndpointServer):
    respond, kind = FAULTS[fault]
    server.faults = [respond]
    asked = client(server, timeout_s=0.5 if fault == "hang" else 20.0)
    (reply,) = ask(asked)
    assert reply.choices[0].text == "<answer>2</answer>"
    assert asked.counts.retried == {kind: 1} and (asked.counts.sent, asked.counts.failed) == (2, 0)
    assert f"1 tried again (1 after {kind})" in asked.counts.told()


@pytest.mark.parametrize("fault", ["429", "no JSON", "reset"])
def test_what_does_not_pass_is_a_clear_failure(fault: str, server: EndpointServer):
    server.faults = [FAULTS[fault][0]] * 9
    asked = client(server, attempts=3)
    (error,) = ask(asked)
    assert isinstance(error, EndpointLostError) and error.exit_code == 75
    said = {"429": "answered 429: ", "no JSON": "<html>", "reset": "no answer: "}[fault]
    assert f"{server.url}/chat/completions: " in str(error) and said in str(error)
    assert "Given up after 3 attempt(s)" in str(error)
    assert (asked.counts.sent, asked.counts.failed, len(server.faults)) == (3, 1, 6)


REFUSALS: dict[str, tuple[Respond, str]] = {
    "401": (fails(401, {"error": {"message": f"Incorrect API key: {KEY}"}}), "endpoint.api_key_env"),
    "404": (fails(404), "endpoint.model"),
    "418": (fails(418), "answered 418"),
    "307": (fails(307, location="http://elsewhere/v1"), "to http://elsewhere/v1"),
    "no money": (fails(429, {"error": {"code": "insufficient_quota"}}), "insufficient_quota"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_will_not_pass_is_not_tried_again(refusal: str, server: EndpointServer):
    """Nor does anybody else ask, and the key that the server sends back is not shown."""
    respond, said = REFUSALS[refusal]
    server.faults = [respond] * 3
    asked = client(server, concurrency=1)
    errors = ask(asked, num=3)
    assert all(isinstance(e, EndpointError) and not isinstance(e, EndpointLostError) for e in errors)
    assert said in str(errors[0]) and asked.counts.sent == len(server.bodies) == 1
    assert not any(KEY in str(error) for error in errors)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_whose_text_is_refused_is_its_callers_alone(status: int, server: EndpointServer):
    server.faults = [fails(status, {"error": {"message": "the context has 8192 tokens"}})]
    asked = client(server, concurrency=1)
    refused, *others = ask(asked, num=3)
    assert isinstance(refused, EndpointError) and not isinstance(refused, EndpointLostError)
    assert f"answered {status}" in str(refused) and "8192 tokens" in str(refused)
    assert [reply.choices[0].text for reply in others] == ["<answer>2</answer>"] * 2
    assert (asked.counts.sent, asked.counts.failed) == (3, 1)


def test_a_request_that_is_given_up_is_its_callers_alone(server: EndpointServer):
    server.faults = [fails(500)] * 2
    asked = client(server, attempts=2, concurrency=1, first_wait_s=0.001, longest_wait_s=0.001)
    (lost,) = ask(asked)
    assert isinstance(lost, EndpointLostError)
    server.faults = [fails(500)]
    found = ask(client(server, attempts=1, concurrency=1), num=3)
    assert [isinstance(one, EndpointLostError) for one in found] == [True, False, False]


def test_a_client_that_was_stopped_sends_nothing_more(server: EndpointServer):
    asked = client(server)

    async def stopped() -> Any:
        async with asked.session():
            await asked.complete("1")
            asked.stop(EndpointError("enough"))
            return await asyncio.gather(asked.complete("2"), return_exceptions=True)

    (error,) = asyncio.run(stopped())
    assert str(error) == "enough" and len(server.bodies) == 1
    assert ask(asked)[0].choices  # another session begins anew


def test_retry_after_holds_all_requests_back(server: EndpointServer):
    server.faults = [fails(429, Retry_After="1")]
    asked = client(server, concurrency=1)
    assert all(reply.choices for reply in ask(asked, num=3))
    assert asked.counts.sent == 4 and server.times[1] - server.times[0] >= 1.0


def test_retry_after_is_seconds_or_a_date():
    later = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 98 <= retry_after_s({"retry-after": later}) <= 100
    assert retry_after_s({"retry-after": "2.5"}) == 2.5
    assert [retry_after_s({"retry-after": said}) for said in ("soon", "-3", "")] == [0, 0, 0] and not retry_after_s(
        {}
    )


def test_no_wait_past_the_deadline(server: EndpointServer):
    server.faults = [fails(503, Retry_After="3600")]
    asked = client(server, deadline_s=5.0)
    began = time.monotonic()
    (error,) = ask(asked)
    assert time.monotonic() - began < 4
    assert isinstance(error, EndpointLostError)
    assert "the next would be in 3600 s, past endpoint.deadline_s" in str(error)


def test_a_deadline_ends_an_attempt(server: EndpointServer):
    server.faults = [hangs(3)]
    (error,) = ask(client(server, deadline_s=0.5))
    assert isinstance(error, EndpointLostError) and "past endpoint.deadline_s" in str(error)


def test_waits_double_and_are_spread(server: EndpointServer):
    """Between half and all of 0.1, 0.2, 0.4, 0.4 s, as drawn."""
    for low, high in ((0.5, 0.5), (1.0, 1.0)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(client_file.random, "uniform", lambda a, b, x=low: x if a <= x <= b else pytest.fail("x"))
            server.faults, server.times = [fails(500)] * 4, []
            ask(client(server, first_wait_s=0.1, longest_wait_s=0.4))
        waits = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
        assert all(w >= high * x for w, x in zip(waits, (0.1, 0.2, 0.4, 0.4), strict=True))
        assert sum(waits) < high * 1.1 + 2


@pytest.mark.parametrize("width", [1, 3])
def test_no_more_requests_at_once_than_allowed(width: int, server: EndpointServer):
    server.delay_s = 0.05
    assert len(ask(client(server, concurrency=width), num=9)) == 9
    assert server.most_under_way == width


def test_budgets(server: EndpointServer):
    asked = client(server, budget_requests=2, concurrency=1)
    replies = ask(asked, num=4)
    assert asked.counts.sent == 2 and [isinstance(r, EndpointError) for r in replies] == [False, False, True, True]
    assert "endpoint.budget_requests = 2 is used up" in str(replies[2])
    asked = client(server, budget_tokens=17, concurrency=1)  # 8 a request
    replies = ask(asked, num=5)
    assert asked.counts.sent == 3 and "endpoint.budget_tokens = 17 is used up: 24" in str(replies[3])
    server.faults = [sends(b'{"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "2"}}]}')]
    (error,) = ask(client(server, budget_tokens=17))
    assert "counts no tokens" in str(error)


def test_a_thought_that_the_server_took_out(server: EndpointServer):
    message = {"content": None, "reasoning_content": "1 + 1 ="}
    server.faults = [
        sends(json.dumps({"choices": [{"index": 0, "finish_reason": "length", "message": message}]}).encode())
    ]
    ((choice,),) = (reply.choices for reply in ask(client(server)))
    assert (choice.text, choice.thought, choice.finish, choice.says_stop_reason) == ("", "1 + 1 =", "length", False)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "127.0.0.1:8000/v1"}, "should be an address such as"),
        ({"url": "http://:8000/v1"}, "should be an address such as"),
        ({"url": "http://h:x/v1"}, "should be an address such as"),
        ({"url": "http://me:secret@h/v1"}, "a key is named by api_key_env"),
        ({"url": "http://h/v1?key=secret"}, "a key is named by api_key_env"),
        ({"url": "http://h x/v1"}, "should be an address such as"),
        ({"url": "http://h\u2028/v1"}, "should be an address such as"),
        ({"api_key_env": "sk-12ab"}, "the name of an environment variable"),
        ({"extra": {"top_k": float("nan")}}, "is sent as JSON"),
        ({"extra": {"until": datetime.date(2026, 1, 1)}}, "is sent as JSON"),
        ({"url": "http://h/v1/chat/completions"}, "given up to what"),
        ({"extra": {"temperature": 0.5}}, "temperature: decided by other settings"),
        ({"concurrency": 0}, "greater than 0"),
    ],
)
def test_settings_that_are_none(settings: dict[str, Any], said: str):
    with pytest.raises(ValidationError, match=said):
        Endpoint(**{"url": "http://h/v1", "model": "m", **settings})


def test_half_a_character_is_no_text():
    said = rb'{"choices": [{"message": {"content": "a\ud83d", "reasoning": "\ude00"}, "finish_reason": "stop"}]}'
    (choice,) = read(said, 1, chat=True).choices
    assert (choice.text, choice.thought) == ("a?", "?")


def test_a_host_that_no_name_can_have_is_said_at_once():
    asked = Client(Endpoint(url="http://-\u00e9-.example/v1", model="m"))
    (error,) = ask(asked)
    assert isinstance(error, EndpointError) and "is no address: Invalid IDNA hostname" in str(error)
    assert asked.counts.sent == 1


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_KEY", f" {KEY}\n")
    assert env.secret("A_KEY") == KEY and env.secret("ANOTHER_KEY") is None
    monkeypatch.setenv("A_KEY", "sk-\nx")
    with pytest.raises(ConfigError, match="the environment variable A_KEY holds characters"):
        env.secret("A_KEY")


def test_this_machine_is_not_asked_through_a_proxy(server: EndpointServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert ask(client(server))[0].choices
