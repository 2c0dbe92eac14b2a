"""On each node of a job, before a stage starts: tells the first node of this one, and takes part in the all-reduce.

    python -m r1mega.runtime.node_probe ADDRESS PORT TOKEN NODE

What is said, a JSON object a line, over one connection to `node_check`, which listens at ADDRESS:PORT:

    here                                            there
    {"token", "node"}              ------------->
                                   <-------------   {"run_dir", "canary", "text", "gpus"}
    {"ask": k}, five times         ------------->
                                   <-------------   {"time"}, at once
    {"report", "port"}             ------------->   a free port here, where others could meet
                                   <-------------   {"go": [arguments of node_warmup, ...], "seconds"}; [] for none
    {"phase"}, {"links"}, ...      ------------->   as it comes
    ends when the connection does
"""

import json
import queue
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from r1mega.runtime import process
from r1mega.runtime.node_report import report
from r1mega.runtime.node_verdict import PHASES

CONNECT_S = 20.0
"""How long the first node may not be reached: some routes are made at the first packet."""
ASKED = 5
"""Times that the first node is asked for the time; the quickest answer counts."""


class _Line:
    """JSON objects over a connection, both ways."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._read: IO[str] = connection.makefile("r", encoding="utf-8")

    def say(self, **what: Any) -> None:
        self.connection.sendall((json.dumps(what) + "\n").encode())

    def hear(self) -> dict[str, Any]:
        """Raises EOFError where the other end is gone."""
        line = self._read.readline()
        if not line:
            raise EOFError("the first node has ended the check")
        return json.loads(line)


def main(arguments: Sequence[str]) -> int:
    address, port, token, node = arguments
    connection = socket.create_connection((address, int(port)), timeout=CONNECT_S)
    connection.settimeout(None)
    line = _Line(connection)
    try:
        line.say(token=token, node=node)
        told = line.hear()
        canary, run_dir = (Path(told["canary"]), told["text"]), Path(told["run_dir"])
        found = report(node, run_dir, canary, gpus=told["gpus"], skew_s=_skew(line))
        line.say(report=found.record(), port=process.free_port("0.0.0.0"))
        orders = line.hear()
        if orders["go"]:
            _take_part(line, orders["go"], time.monotonic() + orders["seconds"])
        line.hear()
    except (EOFError, ConnectionError):
        pass
    return 0


def _skew(line: _Line) -> float:
    """Seconds by which this clock is ahead of the first node's, to within half of the quickest answer's time."""
    best, skew = float("inf"), 0.0
    for turn in range(ASKED):
        began, asked = time.monotonic(), time.time()
        line.say(ask=turn)
        theirs = line.hear()["time"]
        took = time.monotonic() - began
        if took < best:
            best, skew = took, asked + took / 2 - theirs
    return skew


def _take_part(line: _Line, orders: Sequence[Sequence[str]], deadline: float) -> None:
    """Run a process for each of `orders`, and tell how far the last of them is."""
    command = [sys.executable, "-m", "r1mega.runtime.node_warmup"]
    running = [
        subprocess.Popen([*command, *words], stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
        for words in orders
    ]
    said: queue.Queue[tuple[int, str]] = queue.Queue()
    for number, one in enumerate(running):
        threading.Thread(target=_listen, args=(one, number, said), daemon=True).start()
    order: list[str] = list(PHASES)
    phases = ["told"] * len(running)
    try:
        while {*phases} != {"done"} and time.monotonic() < deadline:
            if select.select([line.connection], [], [], 0)[0]:  # nothing is said here any more: it has ended
                return
            try:
                number, text = said.get(timeout=0.2)
            except queue.Empty:
                continue
            word, _, rest = text.partition(" ")
            if word in PHASES:
                phases[number] = word
                line.say(phase=min(phases, key=order.index))
            elif word == "link":
                other, rate = rest.split()
                line.say(link=[int(other), float(rate)])
            elif word == "sum":
                line.say(seconds=float(rest))
            elif word == "failed":
                line.say(failed=rest)
                return
    finally:
        for one in running:
            one.kill()
            one.wait()


def _listen(one: subprocess.Popen[str], number: int, said: queue.Queue[tuple[int, str]]) -> None:
    """Hand on what a process says, and that it has ended before it was through."""
    assert one.stdout is not None
    last = ""
    for text in one.stdout:
        said.put((number, last := text.strip()))
    if last != "done" and not last.startswith("failed"):
        said.put((number, f"failed its process ended with code {one.wait()}"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
