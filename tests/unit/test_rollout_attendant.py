"""Servers on nodes of their own, started there by order: a process a node, here on this one, and a folder."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from r1mega.config.cluster import RolloutLayout
from r1mega.config.load import load_cluster
from r1mega.errors import RolloutError
from r1mega.rollout import server as server_module
from r1mega.rollout.attendant import LOST, OVER, NodePart, OrderedServer, address_of
from r1mega.rollout.command import ServerPlace
from r1mega.rollout.server import Server
from r1mega.runtime.process import Identity

LIMIT_S = 100.0
TELL = "import os, sys, time; print(os.getpid(), os.environ['WORD'], flush=True); time.sleep(600)"
DEAF = "import signal; signal.signal(15, signal.SIG_IGN); " + TELL
PART = NodePart(node=0, server=2, number=0)


def wait_until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Node:
    """One node's process, which may be started again."""

    def __init__(self, folder: Path, node: int = 0) -> None:
        self.folder = folder
        self._command = [sys.executable, "-m", "r1mega.rollout.attendant", str(folder), str(node), "127.0.0.1"]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def over(self) -> int:
        self.folder.mkdir(exist_ok=True)
        (self.folder / OVER).touch()
        return self.process.wait(LIMIT_S)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "servers")
    try:
        yield node
    finally:
        node.over()


def ordered(node: Node, program: str = TELL, *, log: str = "log", **variables: str) -> OrderedServer:
    address_of(node.folder, 0, LIMIT_S)
    order = {
        "command": [sys.executable, "-c", program], "environment": {"WORD": "one", **variables},
        "log": str(node.folder / log),
    }  # fmt: skip
    return OrderedServer(node.folder, {PART: order})


def told(node: Node, log: str = "log") -> tuple[int, str]:
    """The process that was started, and what it found in its environment."""
    wait_until(lambda: (node.folder / log).exists() and (node.folder / log).read_text().endswith("\n"))
    pid, word = (node.folder / log).read_text().split()[-2:]
    return int(pid), word


def gone(pid: int) -> None:
    wait_until(lambda: Identity.of(pid) is None)


def test_what_is_ordered_runs_with_its_variables_and_ends_when_that_is_ordered(node: Node):
    server = ordered(node, WORD="two")
    pid, word = told(node)
    assert word == "two" and server.poll() is None and server.returncode is None
    with pytest.raises(subprocess.TimeoutExpired):
        server.wait(timeout=0.3)
    server.end(grace_s=10.0)
    assert server.returncode is not None
    gone(pid)


def test_the_code_of_a_command_that_ends_by_itself_is_told(node: Node):
    server = ordered(node, "raise SystemExit(3)")
    assert server.wait(timeout=LIMIT_S) == 3 == server.returncode
    again = ordered(node)  # its state is another one's
    assert again.poll() is None
    again.end(grace_s=0.0)


def test_a_command_that_cannot_be_started_has_ended(node: Node):
    assert ordered(node, log="no/log/there/" + "x" * 300).wait(timeout=LIMIT_S) == LOST


def test_one_that_is_frozen_or_deaf_ends_as_well(node: Node):
    server = ordered(node)
    pid, _ = told(node)
    os.kill(pid, signal.SIGSTOP)
    server.end(grace_s=0.0)
    gone(pid)
    deaf = ordered(node, DEAF, log="deaf")
    pid, _ = told(node, "deaf")
    deaf.end(grace_s=0.5)
    gone(pid)


def test_a_new_order_ends_what_an_earlier_one_has_left(node: Node):
    """A first rank that was killed has told nobody to end anything."""
    ordered(node)
    pid, _ = told(node)
    server = ordered(node, log="second")
    second, _ = told(node, "second")
    gone(pid)
    assert second != pid and server.poll() is None
    server.end(grace_s=0.0)


def test_a_nodes_process_takes_its_commands_along_and_its_successor_does_not_start_them_again(node: Node):
    server = ordered(node)
    pid, _ = told(node)
    node.kill()
    gone(pid)
    assert server.poll() is None  # nobody is there to say so
    node.start()
    assert server.wait(timeout=LIMIT_S) == LOST
    again = ordered(node, log="again")
    assert told(node, "again")[0] != pid and again.poll() is None
    assert (node.folder / "log").read_text().count("\n") == 1


def test_when_it_is_over_a_node_has_nothing_left(tmp_path: Path):
    node = Node(tmp_path / "servers")
    ordered(node)
    pid, _ = told(node)
    assert node.over() == 0 and Identity.of(pid) is None


def test_a_node_that_does_not_come_is_named(tmp_path: Path):
    with pytest.raises(RolloutError, match=r"node 3 of the rollout servers has not come to .*rollout\.attendants"):
        address_of(tmp_path, 3, 0.0)


def test_a_node_that_does_not_answer_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setattr("r1mega.rollout.attendant.CONFIRM_S", 0.1)
    server = OrderedServer(tmp_path, {PART: {"command": ["true"], "environment": {}, "log": str(tmp_path / "log")}})
    server.end(grace_s=0.0)
    assert server.returncode == LOST and "node 0 of the rollout servers does not say that" in caplog.text


def test_a_server_of_two_nodes_is_ended_with_either(tmp_path: Path):
    nodes = [Node(tmp_path / "servers", number) for number in (0, 1)]
    try:
        addresses = [address_of(tmp_path / "servers", number, LIMIT_S) for number in (0, 1)]
        assert addresses == ["127.0.0.1"] * 2
        programs = ("import time; time.sleep(600)", "raise SystemExit(5)")
        server = OrderedServer(
            tmp_path / "servers",
            {
                NodePart(number, 0, number): {
                    "command": [sys.executable, "-c", program], "environment": {}, "log": str(tmp_path / f"{number}"),
                }
                for number, program in enumerate(programs)
            },
        )  # fmt: skip
        assert server.wait(LIMIT_S) == 5
        server.end(grace_s=0.0)
        assert server.returncode == 5
    finally:
        assert [node.over() for node in nodes] == [0, 0]


# ---- a server by order ----------------------------------------------------------------------------------------

VLLM = """
import http.server, os, sys
print("serves with", os.environ["VLLM_HOST_IP"], flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(b'{"world_size": 1}')
    do_POST = do_GET
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_server_is_started_watched_and_restarted_on_its_node(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "config.json").write_text('{"vocab_size": 512}')
    (tmp_path / "tokenizer.json").write_text("{}")
    starts: list[Any] = []

    def command(folder: Any, layout: Any, place: Any, start: Any) -> list[str]:
        starts.append(start)
        return [sys.executable, "-c", VLLM, str(start.port)]

    monkeypatch.setattr(server_module, "command", command)
    layout = RolloutLayout(attendants=str(node.folder), host="not.this.one", start_timeout_s=LIMIT_S)
    log, place = tmp_path / "vllm.log", ServerPlace(nodes=(0,), number=2)
    with Server(tmp_path, layout, max_model_len=64, seed=0, log_file=log, place=place) as server:
        server.wait_ready()
        assert server.host == "127.0.0.1" and (starts[0].address, starts[0].node) == ("127.0.0.1", 0)
        assert server.healthy(LIMIT_S) and "serves with 127.0.0.1" in log.read_text()
        assert (node.folder / "order_0_2_0.json").exists()
        server.restart("a test")
        assert server.healthy(LIMIT_S) and server.incarnation == 2 and log.read_text().count("serves with") == 2
        url = server.url
    assert not server.alive() and not server.healthy(1.0) and url.startswith("http://127.0.0.1:")


def test_servers_fill_nodes_in_order():
    def laid(cluster: str) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        machine = load_cluster(cluster, ["rollout.attendants=/x"])
        found = [ServerPlace.of(machine, number, trains=True) for number in range(machine.rollout.servers)]
        assert [place.number for place in found] == list(range(len(found)))
        return [(place.nodes, place.gpus) for place in found]

    assert laid("laptop") == [((0,), ())]
    assert laid("h800_1b5") == [((0,), (gpu,)) for gpu in range(8)]
    assert laid("h800_14b") == [((0,), (gpu, gpu + 1)) for gpu in (0, 2, 4, 6)]
    assert laid("h800_70b") == [((node,), tuple(range(8))) for node in (0, 1)]
    assert laid("h800_v3") == [(tuple(range(first, first + 8)), ()) for first in (0, 8)]
