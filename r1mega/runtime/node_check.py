"""Checks all nodes of a job before a stage starts, in seconds, and says which are not fit to start on.

    python -m r1mega.runtime.node_check --run-dir D --cluster C [--set cluster.x=...] --address A --gpus N
        --nodes n1,n2 -- COMMAND...

Run by the batch script on the first node (slurm/nodes.sh). COMMAND starts the arguments that follow it on one node;
"{node}" in it is that node's name. On each `node_probe` tells this process of its node; those in which nothing is
wrong then sum a tensor (`node_warmup`). The last line of the output is "bad=" and the nodes that are not fit, and
RUN_DIR/logs/nodes.json has all that was found. Exit code 75: the nodes do not meet, and none can be named.
"""

import argparse
import contextlib
import json
import secrets
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from r1mega.config.environment import Checks
from r1mega.config.load import cluster_overrides, load_cluster
from r1mega.errors import R1MegaError, RanksLostError
from r1mega.runtime import files, process
from r1mega.runtime.events import Events
from r1mega.runtime.node_report import NodeReport
from r1mega.runtime.node_verdict import Faults, Met, judge_meetings, judge_reports

STOP_GRACE_S = 3.0
"""What the steps get to end in, once all is known."""
LOST_S = 3.0
"""After a node has failed in an all-reduce, and after its limit, until what else there is to say has come."""


@dataclass
class _Node:
    """What is known of one."""

    name: str
    started: process.Spawned
    log: Path
    report: NodeReport | None = None
    address: str = ""
    port: int = 0
    connection: socket.socket | None = None
    met: Met = field(default_factory=Met)
    gone: bool = False

    def last_words(self) -> str:
        """The end of what its step has printed."""
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""


class NodeCheck:
    """One check of one job's nodes."""

    def __init__(self, run_dir: Path, nodes: Sequence[str], checks: Checks, *, gpus: int, address: str) -> None:
        """
        Args:
            nodes: in Slurm's order, the first one being this one.
            gpus: that each must have; 0: none, and the sum goes over gloo.
            address: of this node, as the others reach it.
        """
        self._run_dir, self._names, self._checks, self._gpus = run_dir.absolute(), tuple(nodes), checks, gpus
        self._address, self._token, self._folder = address, secrets.token_hex(16), run_dir.absolute() / "logs/nodes"
        self._nodes: dict[str, _Node] = {}
        self._changed = threading.Condition()
        self.why = ""
        """Why no all-reduce was possible, where no node can be named."""

    def run(self, command: Sequence[str]) -> Faults:
        """What is wrong with which nodes.

        Args:
            command: see the module.

        Raises:
            OSError: the run directory cannot be written here.
        """
        files.make_folder(self._folder)
        canary = self._folder / "canary"
        canary.write_text(self._token)
        checks, began = self._checks, time.monotonic()
        with self._listening() as port:
            words = ["-m", "r1mega.runtime.node_probe", self._address, str(port), self._token]
            with self._started(command, words):
                self._wait(lambda: all(n.report or n.gone for n in self._nodes.values()), checks.report_s)
                reports = {name: node.report for name, node in self._nodes.items() if node.report is not None}
                run_dir = str(self._run_dir)
                faults = judge_reports(self._names, reports, checks, gpus=self._gpus, run_dir=run_dir)
                for name in faults.keys() - reports.keys():
                    if words_said := self._nodes[name].last_words():
                        faults[name] = [f"{faults[name][0]}; its step says: {words_said}"]
                fit = [self._nodes[name] for name in self._names if name not in faults]
                if checks.all_reduce and len(fit) * max(self._gpus, 1) > 1:
                    faults |= self._all_reduce(fit)
        self._write(faults, time.monotonic() - began)
        return faults

    def _all_reduce(self, fit: Sequence[_Node]) -> Faults:
        """What the nodes that are fit by themselves are not fit for together."""
        checks, per_node = self._checks, max(self._gpus, 1)
        world, rounds = len(fit) * per_node, _rounds(len(fit))
        meet = [fit[0].address, str(fit[0].port)]
        limit = [f"{checks.all_reduce_mib:g}", f"{checks.all_reduce_s:g}"]
        for place, node in enumerate(fit):
            orders: list[list[str]] = []
            for gpu in range(per_node):
                others = ["" if gpu or pair is None else str(pair * per_node) for pair in rounds[place]]
                where = [str(place * per_node + gpu), str(world), str(gpu if self._gpus else -1)]
                orders.append([*meet, *where, *limit, *others])
            self._say(node, go=orders, seconds=checks.all_reduce_s)
        self._wait(
            lambda: all(n.met.phase == "done" for n in fit) or any(n.met.failed or n.gone for n in fit),
            checks.all_reduce_s + LOST_S,
        )
        if any(n.met.failed or n.gone for n in fit):  # who else is gone is why
            self._wait(lambda: all(n.met.failed or n.gone for n in fit), LOST_S)
        with self._changed:
            for node in fit:
                node.met.gone = node.gone
                links = {fit[int(rank) // per_node].name: rate for rank, rate in node.met.links.items()}
                node.met.links = links
            faults, self.why = judge_meetings({node.name: node.met for node in fit}, checks)
        return faults

    def _wait(self, over: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with self._changed:
            while not over() and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(min(left, 0.25))
                for node in self._nodes.values():
                    node.gone = node.gone or node.started.poll() is not None

    def _say(self, node: _Node, **what: Any) -> None:
        assert node.connection is not None
        with contextlib.suppress(OSError):  # it is gone, which is noticed
            node.connection.sendall((json.dumps(what) + "\n").encode())

    @contextlib.contextmanager
    def _listening(self) -> Iterator[int]:
        check = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    check._converse(self.request, self.rfile, self.client_address[0])

        class Responder(socketserver.ThreadingTCPServer):
            daemon_threads = allow_reuse_address = True
            block_on_close = False
            request_queue_size = 1024
            address_family = socket.AF_INET6 if ":" in self._address else socket.AF_INET

        host = "::" if ":" in self._address else "0.0.0.0"
        with Responder((host, process.free_port(host)), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield server.server_address[1]
            finally:
                server.shutdown()

    def _converse(self, connection: socket.socket, said: BufferedIOBase, address: str) -> None:
        """With one node, until it ends."""
        hello = json.loads(said.readline())
        if not secrets.compare_digest(str(hello["token"]), self._token):
            return
        node = self._nodes[hello["node"]]
        node.connection, node.address = connection, address
        self._say(
            node, run_dir=str(self._run_dir), canary=str(self._folder / "canary"), text=self._token, gpus=self._gpus
        )
        try:
            for line in said:
                if "ask" in (told := json.loads(line)):
                    self._say(node, time=time.time())
                    continue
                with self._changed:
                    self._note(node, told)
                    self._changed.notify_all()
        finally:
            with self._changed:
                node.gone = True
                self._changed.notify_all()

    def _note(self, node: _Node, told: dict[str, Any]) -> None:
        if "report" in told:
            node.report, node.port = NodeReport.read(told["report"]), told["port"]
        elif "link" in told:
            node.met.links[str(told["link"][0])] = told["link"][1]
        else:
            for name in ("phase", "failed", "seconds"):
                if name in told:
                    setattr(node.met, name, told[name])

    @contextlib.contextmanager
    def _started(self, command: Sequence[str], words: Sequence[str]) -> Iterator[None]:
        """While entered, every node has its process."""
        environment = process.child_environment()
        for name in self._names:
            log = self._folder / f"{name}.log"
            log.unlink(missing_ok=True)
            own = [word.replace("{node}", name) for word in command]
            started = process.spawn([*own, *words, name], environment=environment, log_file=log)
            self._nodes[name] = _Node(name, started, log)
        try:
            yield
        finally:
            for node in self._nodes.values():
                if node.connection is not None:
                    with contextlib.suppress(OSError):
                        node.connection.shutdown(socket.SHUT_RDWR)
            ends = [
                threading.Thread(target=process.stop_group, args=(node.started,), kwargs={"grace_s": STOP_GRACE_S})
                for node in self._nodes.values()
            ]
            for end in ends:
                end.start()
            for end in ends:
                end.join()

    def _write(self, faults: Faults, seconds: float) -> None:
        found = {
            name: {
                "faults": faults.get(name, []),
                "report": None if node.report is None else node.report.record(),
                "all_reduce": asdict(node.met),
            }
            for name, node in self._nodes.items()
        }
        record = {"seconds": round(seconds, 3), "why": self.why, "nodes": found}
        files.write_json(self._run_dir / "logs/nodes.json", record)


def _rounds(nodes: int) -> list[list[int | None]]:
    """Of each node its neighbour in each of two rounds, in which all pairs of neighbours on a ring, or a line where
    their number is odd, meet once; None: it sits out."""
    found: list[list[int | None]] = [[None, None] for _ in range(nodes)]
    for turn in (0, 1):
        for first in range(turn, nodes, 2):
            second = first + 1 if first + 1 < nodes else 0
            if second == 0 and (turn == 0 or nodes % 2 or nodes == 2):
                continue
            found[first][turn], found[second][turn] = second, first
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--cluster", default="laptop")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--address", required=True)
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--nodes", required=True)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args(arguments)
    nodes = given.nodes.split(",")
    checks = load_cluster(given.cluster, cluster_overrides(given.overrides)).environment.checks
    check = NodeCheck(given.run_dir, nodes, checks, gpus=given.gpus, address=given.address)
    began = time.monotonic()
    faults = check.run(given.command)
    events = Events(given.run_dir)
    for node in nodes:
        for fault in faults.get(node, []):
            print(f"node {node}: {fault}")
        if node in faults:
            events.say("node-left-out", f"node {node}: {'; '.join(faults[node])}", node=node)
    if check.why:
        print(check.why)
        return RanksLostError.exit_code
    print(f"{len(nodes)} node(s) checked in {time.monotonic() - began:.1f} s, {len(faults)} of them unfit")
    print(f"bad={','.join(node for node in nodes if node in faults)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except R1MegaError as error:
        print(f"r1mega: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"r1mega: nodes cannot be checked: {error}", file=sys.stderr)
        sys.exit(1)
