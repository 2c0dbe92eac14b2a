"""Servers on nodes of their own: one process a node waits there for orders, in a folder that all nodes share.

    rank 0 (`OrderedServer`)                the folder                   node 3 (`attend`)
    ------------------                      ----------                   -----------------
                                            node_3.json       <--------  is there, and at which address
    start: number 1, a command  --------->  order_3_0_0.json  -------->  starts it
                                            state_3_0_0.json  <--------  number 1, runs
    poll: reads the state                                     <--------  number 1, ended with code 1
    end: number 2, no command   --------->  order_3_0_0.json  -------->  ends what is left of it
    start: number 3, a command  --------->

A part of a server is what it has on one node: order_NODE_SERVER_PART. Numbers only grow, so that nothing is done
twice, and a state is of the order whose number it has. Nobody needs Slurm's client or a connection: it works from
within a container, and whatever becomes of rank 0, who started the nodes' processes ends them (slurm/server.sh), and
with them all that they have started. Run there as `python -m r1mega.rollout.attendant FOLDER NODE ADDRESS`.
"""

import json
import logging
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

from r1mega.errors import RolloutError
from r1mega.runtime import files, process

log = logging.getLogger(__name__)

POLL_S = 0.25
CONFIRM_S = 60.0
"""Longest wait, past the grace, for a node to say that it has ended a server."""
OVER = "over"
"""A file of that name ends the nodes' processes."""
LOST = 1
"""Code of a command that its node's process has lost sight of, as one that was started anew has."""


@dataclass(frozen=True)
class NodePart:
    """What a server has on one node."""

    node: int
    server: int
    number: int

    @property
    def name(self) -> str:
        return f"{self.node}_{self.server}_{self.number}.json"


def address_of(folder: Path, node: int, timeout_s: float) -> str:
    """Where a node is reached, once its process is there.

    Raises:
        RolloutError: it does not come.
    """
    deadline = time.monotonic() + timeout_s
    while (found := _read(folder / f"node_{node}.json")) is None:
        if time.monotonic() > deadline:
            raise RolloutError(
                f"node {node} of the rollout servers has not come to {folder} (cluster.rollout.attendants) within "
                f"{timeout_s:g} s (rollout.start_timeout_s); slurm/rl_stage.sh starts a process on each of them, "
                "whose step may have failed: see the job's output"
            )
        time.sleep(POLL_S)
    return found["address"]


class OrderedServer:
    """A server that nodes of its own run, as `subprocess.Popen` of a child here (`runtime.process.Spawned`)."""

    pid = 0
    """No process of this host."""

    def __init__(self, folder: Path, parts: Mapping[NodePart, Mapping[str, Any]]) -> None:
        """Order the start.

        Args:
            parts: each with "command", "environment" (variables beside the node's own) and "log".
        """
        self._folder, self._parts = folder, tuple(parts)
        self._code: int | None = None
        self._numbers = self._order(parts)

    def _order(self, orders: Mapping[NodePart, Mapping[str, Any]]) -> dict[NodePart, int]:
        numbers = dict[NodePart, int]()
        for part, order in orders.items():
            file = self._folder / f"order_{part.name}"
            numbers[part] = (_read(file) or {"number": 0})["number"] + 1
            files.write_json(file, {"number": numbers[part], **order})
        return numbers

    def _codes(self) -> list[int | None]:
        """How each part has ended; None of one that has not, or not yet."""
        states = {part: _read(self._folder / f"state_{part.name}") for part in self._parts}
        return [
            state["code"] if state is not None and state["number"] == self._numbers[part] else None
            for part, state in states.items()
        ]

    @property
    def returncode(self) -> int | None:
        return self._code

    def poll(self) -> int | None:
        """The code of the first part that has ended: without it the others are no server."""
        if self._code is None:
            self._code = next((code for code in self._codes() if code is not None), None)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutExpired([str(self._folder)], timeout or 0.0)
            time.sleep(POLL_S)
        return code

    def end(self, *, grace_s: float) -> None:
        """Have all parts ended, and wait until they are, as far as their nodes answer."""
        was = self.poll()
        self._numbers = self._order({part: {"command": None, "grace_s": grace_s} for part in self._parts})
        deadline = time.monotonic() + grace_s + CONFIRM_S
        while None in (codes := self._codes()):
            if time.monotonic() > deadline:
                silent = [str(part.node) for part, code in zip(self._parts, codes, strict=True) if code is None]
                log.warning("node %s of the rollout servers does not say that it has ended one", ", ".join(silent))
                break
            time.sleep(POLL_S)
        self._code = was if was is not None else next((code for code in codes if code is not None), LOST)


def attend(folder: Path, node: int, address: str) -> None:
    """Carry out what is ordered of a node, until the folder says that it is over."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / f"node_{node}.json", {"address": address})
    over, known = threading.Event(), dict[str, threading.Thread]()
    while not (folder / OVER).exists():
        for file in sorted(folder.glob(f"order_{node}_*.json")):
            if file.name not in known:
                known[file.name] = threading.Thread(target=_serve, args=(file, over))
                known[file.name].start()
        time.sleep(POLL_S)
    over.set()
    for thread in known.values():
        thread.join()


def _serve(file: Path, over: threading.Event) -> None:
    """One part: at any time at most one command of it runs."""
    told = file.with_name(file.name.replace("order_", "state_"))
    state = _read(told) or {"number": 0, "code": LOST}
    running: process.Spawned | None = None
    if state["code"] is None:  # of a process before this one, which took its command along
        _tell(told, state := {**state, "code": LOST})
    while not over.wait(POLL_S):
        order = _read(file)
        if order is not None and order["number"] > state["number"]:
            if running is not None:
                process.stop_group(running, grace_s=order.get("grace_s", 0.0))
                running = None
            state = {"number": order["number"], "code": LOST if order["command"] is None else None}
            if order["command"] is not None and (running := _started(order)) is None:
                state = {**state, "code": LOST}
            _tell(told, state)
        if running is not None and (code := running.poll()) is not None:
            running, state = None, {**state, "code": code}
            _tell(told, state)
    if running is not None:
        process.stop_group(running, grace_s=0.0)


def _started(order: Mapping[str, Any]) -> process.Spawned | None:
    """None where it cannot be started, which is said."""
    environment = process.child_environment(**order["environment"])
    try:
        return process.spawn(order["command"], environment=environment, log_file=Path(order["log"]))
    except OSError as error:
        log.error("a rollout server cannot be started here, its log being %s: %s", order["log"], error)
        return None


def _tell(file: Path, state: Mapping[str, Any]) -> None:
    files.write_json(file, dict(state))


def _read(file: Path) -> dict[str, Any] | None:
    """None where it is not there yet. A file is whole or absent."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def main(arguments: Sequence[str]) -> None:
    folder, node, address = arguments
    attend(Path(folder), int(node), address)


if __name__ == "__main__":
    main(sys.argv[1:])
