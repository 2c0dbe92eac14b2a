"""What the servers are told over HTTP, and what they must have answered: two of them, each a fake of its own."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from r1mega.config.cluster import RolloutLayout
from r1mega.errors import RolloutError
from r1mega.weights import servers as control
from r1mega.weights.servers import ServerClient, Watch


class Fake(ThreadingHTTPServer):
    """vLLM's routes beside its weight transfer, and what came over them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Routes)
        self.asked, self.version, self.can_reset, self.status = list[tuple[str, str, Any]](), "0", True, 200
        self.base_url = f"http://127.0.0.1:{self.server_port}"
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()


class Routes(BaseHTTPRequestHandler):
    server: Fake

    def _answer(self, verb: str) -> None:
        sent = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
        self.server.asked.append((verb, self.path, sent))
        if self.path == "/update_weight_version":
            self.server.version = sent["new_version"]
        answer = {
            "/reset_prefix_cache": {"success": self.server.can_reset},
            "/weight_info": {"weight_version": self.server.version},
        }.get(self.path, {})
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def fakes() -> Iterator[list[Fake]]:
    fakes = [Fake(), Fake()]
    yield fakes
    for fake in fakes:
        fake.shutdown()
        fake.thread.join()
        fake.server_close()


@pytest.fixture
def client(fakes: list[Fake], monkeypatch: pytest.MonkeyPatch) -> ServerClient:
    """Without vLLM's own half of it, whose import takes longer than all tests here."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = ServerClient.__new__(ServerClient)
    made.watch, made.refused, made._timeout_s = Watch(()), set(), 60.0
    made._clients = {fake: fake.base_url for fake in fakes}  # type: ignore[misc]
    return made


def test_every_server_is_told_and_asked(client: ServerClient, fakes: list[Fake]) -> None:
    client.reset_prefix_cache()
    client.set_version("7")
    client.check_version("7")
    for fake in fakes:
        assert fake.asked == [
            ("POST", "/reset_prefix_cache", None),
            ("POST", "/update_weight_version", {"new_version": "7"}),
            ("GET", "/weight_info", None),
        ]


def test_a_cache_that_cannot_be_emptied_is_an_error(client: ServerClient, fakes: list[Fake]) -> None:
    fakes[1].can_reset = False
    with pytest.raises(RuntimeError, match=f"{fakes[1].base_url}: its prefix cache cannot be emptied"):
        client.reset_prefix_cache()
    assert client.refused == {fakes[1].base_url}


def test_another_version_on_one_of_them_is_an_error(client: ServerClient, fakes: list[Fake]) -> None:
    client.set_version("7")
    fakes[0].version = "incomplete push of 7"
    with pytest.raises(RuntimeError, match=f"{fakes[0].base_url}: .*'incomplete push of 7' after the push of '7'"):
        client.check_version("7")
    assert client.refused == {fakes[0].base_url}


@pytest.mark.parametrize(("status", "kind"), [(404, RolloutError), (500, RuntimeError)])
def test_what_a_server_refuses_or_fails_at_is_told_apart(
    client: ServerClient, fakes, status: int, kind: type
) -> None:
    fakes[0].status = status
    with pytest.raises(kind, match=f"{fakes[0].base_url}: {status}") as error:
        client.set_version("7")
    assert type(error.value) is kind


class Errors(ServerClient):
    """Two servers, whose calls are functions of their own."""

    def __init__(self, *calls: Callable[[], None]) -> None:
        self.watch, self.refused = Watch(()), set()
        self._clients = {SimpleNamespaceKey(f"http://s{i}", call): f"s{i}" for i, call in enumerate(calls)}  # type: ignore[assignment]

    def run(self) -> None:
        self._all(lambda client: client.call())


class Silent:
    """What the watch has given up."""

    url, layout = "http://s0", RolloutLayout(health_timeout_s=0.2)


class SimpleNamespaceKey:
    def __init__(self, base_url: str, call: Callable[[], None]) -> None:
        self.base_url, self.call = base_url, call


def test_the_first_error_is_raised_while_others_still_wait() -> None:
    over, waited = threading.Event(), threading.Event()

    def wait() -> None:
        over.wait(300)
        waited.set()

    def refuse() -> None:
        raise ConnectionError("reset")

    client = Errors(wait, refuse)
    try:
        with pytest.raises(RuntimeError, match="http://s1: reset"):
            client.run()
        assert client.refused == {"s1"} and not waited.is_set()
    finally:
        over.set()


def test_a_silent_server_ends_the_wait() -> None:
    over = threading.Event()
    client = Errors(lambda: over.wait(300) and None)
    client.watch.silent.add(Silent())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="did not answer /health"):
        client.run()
    over.set()


@pytest.mark.parametrize(("status", "kind"), [(404, RolloutError), (422, RolloutError), (500, RuntimeError)])
def test_what_a_server_said_is_told(status: int, kind: type[Exception]) -> None:
    error = OSError("refused")
    error.response = SimpleNamespace(status_code=status, text="because")  # type: ignore[attr-defined]
    told = control._told("http://s0", error)
    assert type(told) is kind and str(told) == "http://s0: refused because"


class Worker:
    """What vLLM's own client asks of one server."""

    def __init__(self, name: str) -> None:
        self.base_url, self.told = f"http://{name}", list[dict[str, Any]]()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.told.append(init_info)


def test_workers_of_every_server_have_ranks_of_their_own() -> None:
    """The sender is rank 0; servers of 2, 1 and 4 workers follow: ranks 1 and 2, rank 3, ranks 4 to 7 of 8."""
    workers = [Worker(name) for name in ("a", "b", "c")]
    client = ServerClient.__new__(ServerClient)
    client.watch, client.refused = Watch(()), set()
    client._clients = {w: SimpleNamespace(world_size=n) for w, n in zip(workers, (2, 1, 4), strict=True)}  # type: ignore[misc]
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": 8, "master_port": 5})
    assert [w.told for w in workers] == [
        [{"rank_offset": first, "world_size": 8, "master_port": 5}] for first in (1, 3, 4)
    ]
