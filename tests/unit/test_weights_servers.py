"""What the servers are told over HTTP, and what they must have answered: two of them, each a fake of its own."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from r1mega.config.cluster import RolloutLayout
from r1mega.errors import RolloutError
from r1mega.weights.servers import ServerClient


class Fake(ThreadingHTTPServer):
    """vLLM's routes for taking weights, and what came over them; to its client a `rollout.server.Server`."""

    layout, world_size = RolloutLayout(health_timeout_s=0.2), 1

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Routes)
        self.asked, self.version, self.can_reset, self.status = list[tuple[str, str, Any]](), "0", True, 200
        self.wait: Callable[[], object] = lambda: None
        """Before it answers."""
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()


class Routes(BaseHTTPRequestHandler):
    server: Fake

    def _answer(self, verb: str) -> None:
        sent = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
        self.server.asked.append((verb, self.path, sent))
        self.server.wait()
        if self.path == "/update_weight_version":
            self.server.version = sent["new_version"]
        answer = {
            "/reset_prefix_cache": {"success": self.server.can_reset},
            "/weight_info": {"weight_version": self.server.version},
            "/weight_checker": {"checksums": {f"dp0:tp0:{self.server.url}": "[1]"}},
            "/collective_rpc": {"results": [f"{self.server.server_port} {sent and sent.get('args')}"]},
        }.get(self.path, {})
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(json.dumps(answer if self.server.status == 200 else {"because": "of this"}).encode())

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
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody; servers are asked past it
    return ServerClient(fakes, timeout_s=60.0)  # type: ignore[arg-type]


def test_the_routes_of_a_push_are_vllms(client: ServerClient, fakes: list[Fake]) -> None:
    """As vllm/entrypoints/rl/online/api_router.py has them, bodies and all; each worker's first rank is its own."""
    fakes[0].world_size = 2
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": 4})
    client.start_weight_update()
    client.update_weights({"names": ["w"]})
    client.finish_weight_update()
    for fake, rank in zip(fakes, (1, 3), strict=True):
        assert fake.asked == [
            ("POST", "/init_weight_transfer_engine", {"init_info": {"rank_offset": rank, "world_size": 4}}),
            ("POST", "/start_weight_update", None),
            ("POST", "/update_weights", {"update_info": {"names": ["w"]}}),
            ("POST", "/finish_weight_update", None),
        ]


def test_workers_answer_by_server(client: ServerClient, fakes: list[Fake]) -> None:
    found = client.on_workers("r1mega_nccl", "a")
    assert found == {fake: [f"{fake.server_port} ['a']"] for fake in fakes}
    assert fakes[0].asked == [("POST", "/collective_rpc", {"method": "r1mega_nccl", "args": ["a"]})]


def test_every_worker_is_asked_what_it_has(client: ServerClient, fakes: list[Fake]) -> None:
    """By the route that reaches all workers, and then by the one that answers for all."""
    assert client.prove("held") == {fake: {f"dp0:tp0:{fake.url}": "[1]"} for fake in fakes}
    for fake in fakes:
        assert fake.asked == [
            ("POST", "/collective_rpc", {"method": "r1mega_prove", "args": ["held"]}),
            ("POST", "/weight_checker", {"action": "checksum"}),
        ]


def test_only_an_update_takes_as_long_as_it_takes(fakes: list[Fake]) -> None:
    patient = ServerClient(fakes[:1], timeout_s=0.2)  # type: ignore[arg-type]
    fakes[0].wait = lambda: time.sleep(0.6)
    patient.update_weights({})
    with pytest.raises(RuntimeError, match=f"{fakes[0].url}: .*timed out"):
        patient.start_weight_update()


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
    with pytest.raises(RuntimeError, match=f"{fakes[1].url}: its prefix cache cannot be emptied"):
        client.reset_prefix_cache()
    assert client.refused == {fakes[1]}


def test_another_version_on_one_of_them_is_an_error(client: ServerClient, fakes: list[Fake]) -> None:
    client.set_version("7")
    fakes[0].version = "incomplete push of 7"
    with pytest.raises(RuntimeError, match=f"{fakes[0].url}: .*'incomplete push of 7' after the push of '7'"):
        client.check_version("7")
    assert client.refused == {fakes[0]}


@pytest.mark.parametrize(("status", "kind"), [(404, RolloutError), (422, RolloutError), (500, RuntimeError)])
def test_what_a_server_refuses_or_fails_at_is_told_apart(
    client: ServerClient, fakes: list[Fake], status: int, kind: type
) -> None:
    fakes[0].status = status
    with pytest.raises(kind, match=f"{fakes[0].url}: /update_weight_version: {status} .*of this") as error:
        client.set_version("7")
    assert type(error.value) is kind


def test_the_first_error_is_raised_while_others_still_wait(client: ServerClient, fakes: list[Fake]) -> None:
    over = threading.Event()
    fakes[0].wait, fakes[1].status = lambda: over.wait(300), 500
    try:
        with pytest.raises(RuntimeError, match=f"{fakes[1].url}: /start_weight_update: 500"):
            client.start_weight_update()
        assert client.refused == {fakes[1]} and not over.is_set()
    finally:
        over.set()


def test_a_silent_server_ends_the_wait(client: ServerClient, fakes: list[Fake]) -> None:
    over = threading.Event()
    fakes[0].wait = lambda: over.wait(300)
    client.watch.silent.add(fakes[0])  # type: ignore[arg-type]
    try:
        with pytest.raises(RuntimeError, match="did not answer /health"):
            client.start_weight_update()
    finally:
        over.set()


class Named:
    """What a client asks of a server besides its routes."""

    layout = RolloutLayout(health_timeout_s=0.2)

    def __init__(self, url: str, world_size: int) -> None:
        self.url, self.world_size = url, world_size


def test_a_server_that_is_gone_is_named() -> None:
    gone = ServerClient([Named("http://127.0.0.1:9", 1)], 60.0)  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match=r"http://127\.0\.0\.1:9: .*[Cc]onnect"):
        gone.start_weight_update()


def test_workers_of_every_server_have_ranks_of_their_own(fakes: list[Fake]) -> None:
    """The sender is rank 0; servers of 4 (tp 2 x dp 2), 1 and 2 workers follow: ranks 1 to 4, 5, 6 and 7 of 8.

    Within a server a worker adds dp index x ranks of a copy + its place in the copy (vLLM's nccl_common.py).
    """
    servers = [Named(fakes[0].url, 4), Named(fakes[1].url, 1), Named(fakes[0].url, 2)]
    client = ServerClient(servers, 60.0)  # type: ignore[arg-type]
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": 8, "master_port": 5})
    first, second = ([body["init_info"]["rank_offset"] for _, _, body in fake.asked] for fake in fakes)
    assert (sorted(first), second) == ([1, 6], [5])
