"""A chain's process, its stages, and what stands in for vLLM in the servers that they hand on.

In place of vLLM runs a program that answers what a server is asked of its health and its weights' version; a sleeping
process stands for the chain's.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from check_and_run import write_model

from r1mega.config.cluster import RolloutLayout
from r1mega.rollout.kept import Keeper, begin
from r1mega.rollout.served import ServedModel
from r1mega.rollout.server import Server
from r1mega.runtime import env
from r1mega.runtime.interrupt import Interrupt
from r1mega.runtime.process import Identity

LIMIT_S = 100.0
VLLM = """
import http.server, json, sys
version = "none"
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"weight_version": version, "world_size": 1})
    def do_POST(self):
        global version
        version = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["new_version"]
        self.answer({})
    def answer(self, row):
        data = json.dumps(row).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def wait_until(holds: Any) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Chain:
    """The chain's process, which the servers belong to, and its stages."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.process = subprocess.Popen(["sleep", "600"])
        owner = Identity.of(self.process.pid)
        assert owner is not None
        self.model, self.keeper = model, Keeper(owner, folder / "server", room=64)
        self.keeper.tell()
        self.log_file = folder / "own.log"
        self.pids = set[int]()

    def stage(self, model: Path | None = None, *, room: int = 32, **layout: Any) -> Server:
        """What a stage has once it could ask; it has not given its weights."""
        (server,) = self.stage_of(1, model, room=room, **layout)
        return server

    def stage_of(self, num: int, model: Path | None = None, *, room: int = 32, **layout: Any) -> tuple[Server, ...]:
        servers = self.starting(model, room=room, servers=num, **layout)
        for server in servers:
            server.wait_ready()
            self.pids.add(server.pid)
        return servers

    def starting(self, model: Path | None = None, *, room: int = 32, **layout: Any) -> tuple[Server, ...]:
        servers = begin(
            model or self.model, RolloutLayout(**layout), max_model_len=room, seed=0, log_file=self.log_file
        )
        self.pids |= {server.pid for server in servers}
        return servers

    def gone(self, pid: int) -> None:
        wait_until(lambda: Identity.of(pid) is None)


def version(server: Server) -> str:
    return httpx.get(f"{server.url}/weight_info", timeout=LIMIT_S).json()["weight_version"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept") / "model"
    write_model(folder)
    return folder


@pytest.fixture
def chain(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chain]:
    monkeypatch.setattr(Server, "_command", lambda self: [sys.executable, "-c", VLLM, str(self.port)])
    chain = Chain(tmp_path, model)
    try:
        yield chain
    finally:
        env.keep_server(None)
        chain.process.kill()
        chain.process.wait()
        for pid in chain.pids:
            chain.gone(pid)  # nothing outlives the chain, in whichever test


class Given:
    """What gives a folder's weights, of which it writes down the folders."""

    def __init__(self) -> None:
        self.folders, self.servers = list[Path](), list[list[int]]()

    def __call__(self, servers: Sequence[Server], folder: Path) -> None:
        self.folders.append(folder)
        self.servers.append([server.pid for server in servers])
        for server in servers:
            server.foreign = False


@contextlib.contextmanager
def served(chain: Chain, give: Given, room: int = 32, num: int = 1) -> Iterator[ServedModel]:
    with ServedModel(
        chain.model, RolloutLayout(servers=num), max_model_len=room, seed=0, log_file=chain.log_file,
        interrupt=Interrupt(), give=give,
    ) as found:  # fmt: skip
        yield found
        chain.pids |= {server.pid for server in found.servers}
