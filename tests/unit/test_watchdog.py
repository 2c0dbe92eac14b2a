"""Ranks that hang, one way or another: all leave their stacks, the right one is named, all end with 75. Processes
without torch, whose waits are sleeps; tests/distributed/test_watched_ranks.py has real collectives."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from r1mega.runtime import events, heartbeat

LIMIT_S = 90.0
"""For all of them together, on a machine that may stand still for a while."""
PROGRAM = """
import ctypes, pathlib, sys, time
from r1mega.config.watchdog import Watchdog
from r1mega.runtime import heartbeat, watchdog

run_dir, rank, does, limit = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4])

def hang_in_plain_python():
    for _ in range(6000):
        time.sleep(0.1)

def write_on_and_on():
    for i in range(60000):
        (run_dir / "written").write_text(str(i))
        time.sleep(0.01)

with watchdog.guarded(run_dir, rank, 2, Watchdog(beat_s=0.25, silence_s=5)):
    while len(heartbeat.read(run_dir)) < 2:
        time.sleep(0.02)
    heartbeat.phase("update", 3)
    if does in ("waits", "ticks"):
        with heartbeat.waiting("the other ranks", limit, "collective_timeout_s"):
            if does == "waits":
                time.sleep(600)
            for _ in range(20):
                heartbeat.tick()
                time.sleep(limit / 5)
    elif does == "holds":
        ctypes.PyDLL(None).sleep(600)  # in C, and nobody else gets to run Python
    elif does == "fails":
        with heartbeat.waiting("the other ranks", limit, "collective_timeout_s"):
            while not (run_dir / "events.jsonl").exists():
                time.sleep(0.05)
        raise RuntimeError("what the transport says of a partner that is gone")
    else:
        {"hangs": hang_in_plain_python, "writes": write_on_and_on}[does]()
"""


class End(NamedTuple):
    """What became of two ranks."""

    run_dir: Path
    codes: list[int]
    seconds: float
    said: list[str]

    def stacks(self, rank: int) -> str:
        file = self.run_dir / f"logs/stacks/rank_{rank}.txt"
        return file.read_text() if file.exists() else ""

    def event(self) -> events.Event:
        (one,) = events.read(self.run_dir)
        assert one.kind == "watchdog"
        return one


CASES = {
    "a rank hangs in a loop": ("waits", "hangs", 3.0, None),
    "a rank is stopped": ("waits", "writes", 600.0, 1),
    "the first rank is stopped": ("hangs", "waits", 600.0, 0),
    "a rank holds Python in C": ("waits", "holds", 600.0, None),
    "the network is cut": ("waits", "waits", 3.0, None),
    "a rank fails meanwhile": ("waits", "fails", 3.0, None),
    "all are slow": ("ticks", "ticks", 2.0, None),
}
"""What the two ranks do, after how many seconds a wait is too long, and which is sent SIGSTOP once both are up."""


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, End]:
    """All cases at the same time: they mostly sleep. Who was stopped is woken when the other one has ended."""
    running = {}
    for name, (*does, limit, _) in CASES.items():
        run_dir = tmp_path_factory.mktemp("run")
        command = [sys.executable, "-c", PROGRAM, str(run_dir)]
        given = [[*command, str(rank), what, str(limit)] for rank, what in enumerate(does)]
        running[name] = run_dir, [subprocess.Popen(c, stderr=subprocess.PIPE, text=True) for c in given]
    found, began = {}, time.monotonic()
    try:
        for name, (run_dir, _) in running.items():
            while len(heartbeat.read(run_dir)) < 2:
                assert time.monotonic() - began < LIMIT_S, f"{name}: the ranks did not start"
                time.sleep(0.02)
        began = time.monotonic()
        for name, (_, ranks) in running.items():
            if (stopped := CASES[name][3]) is not None:
                os.kill(ranks[stopped].pid, signal.SIGSTOP)
        for name, (run_dir, ranks) in running.items():
            found[name] = _end_of(run_dir, ranks, CASES[name], began)
    finally:
        for rank in (rank for _, ranks in running.values() for rank in ranks):
            rank.kill()
            rank.wait()
    return found


def _end_of(run_dir: Path, ranks: list[subprocess.Popen[str]], case: tuple, began: float) -> End:
    *_, stopped = case
    last = 1 if stopped is None or stopped == 1 else 0
    ranks[1 - last].wait(LIMIT_S)
    seconds = time.monotonic() - began
    if stopped is not None:
        (run_dir / "written").unlink(missing_ok=True)
        os.kill(ranks[last].pid, signal.SIGCONT)
    if case[1] == "holds":
        time.sleep(2.0)  # the timer in C is as long as the silence
        ranks[last].kill()  # as its launcher does
    codes = [rank.wait(LIMIT_S) for rank in ranks]
    return End(run_dir, codes, seconds, [rank.stderr.read() if rank.stderr else "" for rank in ranks])


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("all are slow", "a rank holds Python in C")])
def test_all_ranks_end_with_75_and_leave_their_stacks(ends: dict[str, End], name: str):
    end = ends[name]
    assert end.codes == [75, 75], end
    for rank in (0, 1):
        assert "hread 0x" in end.stacks(rank) and 'File "<string>"' in end.stacks(rank)
        assert "==== " in end.stacks(rank) and f" rank {rank} on " in end.stacks(rank)
    assert end.seconds < 40
    assert not heartbeat.read(end.run_dir) or all(b.phase == "update" for b in heartbeat.read(end.run_dir))


def test_a_rank_that_others_wait_for_is_named_with_its_place(ends: dict[str, End]):
    end = ends["a rank hangs in a loop"]
    said = end.said[0]
    assert "rank 0 on " in said and "for the other ranks (cluster.trainer.collective_timeout_s = 3 s)" in said
    assert "missing is rank 1 on " in said and "in phase update after 3 steps" in said
    assert "<string>" in said and "hang_in_plain_python" in said
    event = end.event()
    assert event.figures["ranks"] == [1] and event.step == 3 and event.text in end.said[0]
    assert " in hang_in_plain_python\n" in end.stacks(1) and " in hang_in_plain_python\n" not in end.stacks(0)


def test_a_rank_that_is_stopped_is_silent_and_writes_nothing_when_it_wakes(ends: dict[str, End]):
    end = ends["a rank is stopped"]
    assert "rank 1 on " in end.said[0] and "gave no sign of life for 5 s" in end.said[0]
    assert end.event().figures["ranks"] == [1]
    assert "stood still for" in end.said[1] and "it must write nothing more" in end.said[1]
    written = end.run_dir / "written"
    assert not written.exists() or int(written.read_text() or 0) < 2000


def test_where_the_first_rank_is_stopped_another_one_speaks(ends: dict[str, End]):
    end = ends["the first rank is stopped"]
    assert "rank 0 on " in end.said[1] and "gave no sign of life for 5 s" in end.said[1]
    assert end.event().figures["ranks"] == [0]


def test_a_rank_that_holds_python_in_c_is_silent_and_its_stacks_are_there_all_the_same(ends: dict[str, End]):
    end = ends["a rank holds Python in C"]
    assert end.codes == [75, -signal.SIGKILL]
    assert "rank 1 on " in end.said[0] and end.event().figures["ranks"] == [1]
    assert "Timeout (0:00:05)" in end.stacks(1) and 'File "<string>"' in end.stacks(1)


def test_where_all_wait_the_network_is_named(ends: dict[str, End]):
    end = ends["the network is cut"]
    assert "and so do all the others, all in phase update: the network between them is cut, or hangs" in end.said[0]
    assert end.event().figures["ranks"] == []


def test_slow_ranks_that_do_something_are_left_alone(ends: dict[str, End]):
    end = ends["all are slow"]
    assert end.codes == [0, 0] and end.said == ["", ""]
    assert events.read(end.run_dir) == [] and end.stacks(0) == end.stacks(1) == ""
    assert not list((end.run_dir / "logs/stacks").iterdir())
    assert [beat.phase for beat in heartbeat.read(end.run_dir)] == ["ended", "ended"]
