"""The trainer's ranks on this host: started as torchrun starts them, watched, and ended together.

A rank cannot tell who started it: this module, torchrun (`python -m torch.distributed.run`) and slurm/rank.sh set the
same variables.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

from r1mega.errors import R1MegaError, RanksLostError
from r1mega.runtime import process
from r1mega.runtime.events import Events

POLL_S = 0.05
FAILURE_GRACE_S = 5.0
"""What the other ranks get after one has failed: often they say the same, and end by themselves."""
STOP_GRACE_S = 60.0
"""What the others get after one has left because it was asked to: they may still be saving."""
TERM_GRACE_S = 3.0
"""Between SIGTERM and SIGKILL; without the lost rank there is nothing that could be saved."""
LOG_LINES = 20
_CONSEQUENCES = (RanksLostError.exit_code, 128 + signal.SIGABRT)
"""How a rank leaves that has lost another one; SIGABRT is what gloo's threads make of it. As in slurm/rank.sh."""

_TOLD = (2, RanksLostError.exit_code)
"""How every rank leaves where all of them meet the same error, which is one message."""


class Child(Protocol):
    """A process that was started here, as subprocess.Popen shows it."""

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def send_signal(self, sig: int, /) -> None: ...


def start_ranks(command: Sequence[str], num_ranks: int, *, log_dir: Path, events: Events | None = None) -> int:
    """Run `command` as each of `num_ranks` ranks of this host and wait for them all.

    Rank 0 writes where this process writes, rank N to `log_dir`/rank_N.log. SIGINT, SIGTERM and SIGUSR1 are handed to
    every rank, once each. When a rank fails, the others are ended after a grace. None outlives this process.

    Args:
        events: get to know of a rank that failed first and could not say so itself: one that was killed, and any but
            rank 0.

    Returns:
        0, or the exit code of the rank that failed first; 128 + signal where a signal ended it. That a rank was ended
        may be seen after what came of it in another: within the grace it still counts as the first.

    Raises:
        R1MegaError: there is no port at which the ranks could meet.
    """
    try:
        port = str(process.free_port())
    except OSError as error:
        raise R1MegaError(
            f"the trainer's ranks have nowhere to meet: {error.strerror}; end what listens there, or start the ranks "
            "with torchrun, which takes a --master-port"
        ) from error
    with collected_signals() as received:
        logs = [None if rank == 0 else log_dir / f"rank_{rank}.log" for rank in range(num_ranks)]
        starts = [log.stat().st_size if log and log.exists() else 0 for log in logs]
        ranks = [
            process.spawn(
                command,
                environment=process.child_environment(
                    RANK=str(rank),
                    WORLD_SIZE=str(num_ranks),
                    LOCAL_RANK=str(rank),
                    LOCAL_WORLD_SIZE=str(num_ranks),
                    MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=port,
                ),
                log_file=log,
                pass_signals=True,
            )
            for rank, log in enumerate(logs)
        ]
        asked: set[int] = set()
        failed: int | None = None
        deadline = 0.0
        while any(rank.poll() is None for rank in ranks):
            asked |= hand_on(received, ranks)
            if failed is None:
                failed = _first_failed(ranks)
                left_in_order = failed is not None and exit_code(ranks[failed]) - 128 in asked
                deadline = time.monotonic() + (STOP_GRACE_S if left_in_order else FAILURE_GRACE_S)
            elif time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
        failed = _first_failed(ranks, failed)
        if any(rank.poll() is None for rank in ranks):
            _end(ranks)
    if failed is None:
        return 0
    code = exit_code(ranks[failed])
    # Where rank 0 has left in the same way, it has said why; else whoever reads its output would not know.
    told = code in _TOLD and exit_code(ranks[0]) == code
    if code - 128 not in asked and not told:
        _explain(failed, code, logs[failed], starts[failed], events)
    return code


@contextmanager
def collected_signals() -> Iterator[list[int]]:
    """While entered, signals that ask to stop, and are not ignored, are only appended to the list."""
    received: list[int] = []

    def collect(signum: int, frame: FrameType | None) -> None:
        received.append(signum)

    previous = {number: signal.signal(number, collect) for number in process.heeded_stop_signals()}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def hand_on(received: list[int], children: Sequence[Child]) -> set[int]:
    """Send the signals collected so far to every child that runs, and take them off the list."""
    sent: set[int] = set()
    while received:
        signum = received.pop(0)
        for child in children:
            child.send_signal(signum)
        sent.add(signum)
    return sent


def exit_code(child: Child) -> int:
    """The exit code of a child that has ended, as a shell counts it: 128 + signal where one ended it."""
    assert child.returncode is not None
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _first_failed(ranks: Sequence[subprocess.Popen[bytes]], seen: int | None = None) -> int | None:
    """The rank that has failed first, of those that have ended; `seen` is the one that was seen first."""
    failed = [number for number, rank in enumerate(ranks) if rank.poll()]
    causes = [number for number in failed if exit_code(ranks[number]) not in _CONSEQUENCES]
    first = failed if seen is None else [seen]
    return next(iter([n for n in first if n in causes] or causes or first), None)


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """End all ranks that still run, at the same time."""
    for rank in ranks:
        rank.terminate()
    deadline = time.monotonic() + TERM_GRACE_S
    while time.monotonic() < deadline and any(rank.poll() is None for rank in ranks):
        time.sleep(POLL_S)
    for rank in ranks:
        process.stop_group(rank, grace_s=0.0)


def _explain(rank: int, code: int, log: Path | None, start: int, events: Events | None) -> None:
    """Say which rank failed where that is not plain: rank 0 has said why itself, unless it was killed."""
    try:
        how, kind = f"was ended by {signal.Signals(code - 128).name}", "rank-lost"
    except ValueError:
        how, kind = f"ended with exit code {code}", "crashed"
    if rank == 0 and code <= 128:
        return
    lines = log.read_bytes()[start:].decode(errors="replace").splitlines()[-LOG_LINES:] if log else []
    tail = f". The end of its log {log}:" if log else ""
    print("\n  ".join([f"r1mega: rank {rank} {how}{tail}", *lines]), file=sys.stderr)
    if events:
        events.say(kind, f"rank {rank} {how}" + (f": {lines[-1]}" if lines else ""), rank=rank, exit_code=code)
