"""What a rank says it does, who is missing by what all say, and which are slow: by hand-made signs and clocks."""

import dataclasses
import os
import shutil
import threading
import time
from collections.abc import Callable
from errno import ENOSPC
from pathlib import Path

import pytest

from r1mega.config.watchdog import Watchdog
from r1mega.runtime import heartbeat, watchdog
from r1mega.runtime.heartbeat import Beat, Doing, Wait
from r1mega.runtime.missing import Signs, late_text, silent_text
from r1mega.runtime.stragglers import Stragglers

SETTINGS = Watchdog(beat_s=5.0, silence_s=60.0, straggler_factor=1.5, straggler_steps=4)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    return now


def sign(rank: int, **what) -> Beat:
    known = {"host": f"node{rank}", "pid": 70 + rank, "phase": "update", "step": 3, "since": 1000.0, "time": 1007.0}
    return Beat(rank, **(known | what))


# ---- one rank -----------------------------------------------------------------------------------------------


def test_a_wait_counts_from_its_last_tick_and_not_while_the_process_stands_still(clock: list[float]):
    doing = Doing()
    assert doing.wait() is None
    with doing.waiting("all ranks", 60.0, "collective_timeout_s"):
        clock[0] += 50
        assert doing.wait() == Wait("all ranks", 50.0, 60.0, "collective_timeout_s")
        doing.tick()
        clock[0] += 59
        assert not doing.wait().over
        with doing.waiting("rank 1", 5.0, "first_rank_timeout_s"):
            clock[0] += 5
            assert doing.wait().over
        clock[0] += 40
        assert doing.wait().seconds == 40  # since what was inside it ended
        clock[0] += 1000
        doing.lost_s += 990  # it was stopped
        assert doing.wait().seconds == 50
    assert doing.wait() is None


def test_a_wait_within_another_one_ends_without_a_moment_in_which_the_outer_one_is_over(clock: list[float]):
    """As a thread that looks just then would see it."""
    doing = Doing()
    seen: list[Wait | None] = []

    class Looked(list):
        def pop(self, *place):
            found = super().pop(*place)
            seen.append(doing.wait())
            return found

    doing._waits = Looked()
    outer = doing.waiting("all ranks", 60.0, "collective_timeout_s")
    with outer, doing.waiting("the first rank", 7200.0, "first_rank_timeout_s"):
        clock[0] += 3600
    assert seen == [Wait("all ranks", 0.0, 60.0, "collective_timeout_s"), None]


def test_a_rank_whose_watchdog_fails_gives_signs_all_the_same(tmp_path: Path, monkeypatch, caplog):
    """It would be taken for silent, and end all others. That somebody has removed the logs is no fault of its own."""
    turns = list[int]()

    def fail(*_: object, **__: object) -> None:
        turns.append(1)
        raise RuntimeError("no thread can be started")

    with watchdog.guarded(tmp_path, 1, 2, Watchdog(beat_s=0.05, silence_s=60)):
        monkeypatch.setattr(Signs, "take", fail)
        deadline = time.monotonic() + 20
        while len(turns) < 4:
            assert time.monotonic() < deadline, "the thread has ended"
            time.sleep(0.01)
        (beat,) = heartbeat.read(tmp_path)
        assert beat.count >= 3
        shutil.rmtree(tmp_path / "logs")
    assert caplog.text.count("no thread can be started") == 2  # one message, with its traceback
    assert [beat.phase for beat in heartbeat.read(tmp_path)] == ["ended"]


def test_marks_of_other_threads_are_not_the_training_loops():
    doing = Doing()
    doing.enter("update", 3)

    def elsewhere() -> None:
        doing.enter("save", 9)
        doing.work(5.0)
        with doing.waiting("nobody", 1.0, ""), doing.inside("push"):
            seen.append((doing.phase, doing.wait()))

    seen: list = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [("update", None)]
    assert (doing.phase, doing.step, doing.phases) == ("update", 3, 1)


def test_work_is_told_of_complete_steps_alone():
    doing = Doing()
    for step in range(3):
        doing.enter("logprobs", step)
        doing.work(0.5)
        doing.enter("update", step)
        doing.work(2.0)
    beat = doing.beat(1, 7, "")
    assert (beat.worked_to, beat.worked) == (2, {"logprobs": 1.0, "update": 4.0})
    assert (beat.phase, beat.step, beat.phases, beat.count) == ("update", 2, 6, 7)
    with doing.inside("push"):
        assert doing.beat(1, 8, "").phase == "push" and doing.beat(1, 8, "").phases == 6
    assert doing.beat(1, 9, "").phase == "update"


def test_a_sign_says_where_the_main_thread_stands():
    found: list[Beat] = []
    doing = Doing()

    def look() -> None:
        time.sleep(0.1)
        found.append(doing.beat(0, 0, ""))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()  # where it stands
    assert found[0].at.startswith("threading.py:") and not found[0].blocked


def test_signs_are_read_as_they_were_written_and_a_full_disk_leaves_the_last(tmp_path: Path, monkeypatch):
    assert heartbeat.read(tmp_path) == []
    beats = [sign(rank, wait=Wait("all", 1.0, 2.0, "x") if rank else None, worked={"update": 1.5}) for rank in (1, 0)]
    for beat in beats:
        heartbeat.write_beat(tmp_path, beat)
    assert heartbeat.read(tmp_path) == beats[::-1]
    file = heartbeat.beat_file(tmp_path, 1)
    os.utime(file, (5, 5))

    def full(*_: object, **__: object) -> None:
        raise OSError(ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(Path, "write_text", full)
        heartbeat.write_beat(tmp_path, sign(1, phase="save"))
    assert file.stat().st_mtime > 1e9 and heartbeat.read(tmp_path)[1].phase == "update"
    file.write_text('{"rank": 1, "ho')
    assert [beat.rank for beat in heartbeat.read(tmp_path)] == [0]


# ---- all ranks ----------------------------------------------------------------------------------------------


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., dict[int, Beat]]:
    def look(seen: Signs, passed: float, *beats: Beat) -> dict[int, Beat]:
        for beat in beats:
            heartbeat.write_beat(tmp_path, beat)
        return seen.take(tmp_path, [1, 2], passed)

    return look


def test_silence_is_counted_on_the_watchers_clock_and_two_beats_a_look(look):
    seen = Signs(SETTINGS)
    assert look(seen, 5.0) == {} and seen.silent() == []  # they are still starting
    look(seen, 5.0, sign(1), sign(2))
    for _ in range(11):
        look(seen, 5.0, sign(2))
    assert (seen.quiet(1), seen.quiet(2)) == (55.0, 0.0) and seen.silent() == []
    look(seen, 5.0, sign(2))
    assert [beat.rank for beat in seen.silent()] == [1]
    look(seen, 5.0, sign(1), sign(2))
    assert seen.silent() == []
    look(seen, 3600.0)  # this process was stopped, or its file system did not answer
    assert seen.silent() == [] and seen.quiet(2) == 10.0
    look(seen, 5.0, sign(1, phase="ended"))
    for _ in range(12):
        look(seen, 5.0)
    assert [beat.rank for beat in seen.silent()] == [2]  # who has left owes no sign


def test_what_a_start_before_this_one_left_is_no_sign(tmp_path: Path, look):
    for left in (sign(1, verdict="rank 2 is lost"), sign(1, phase="ended")):
        heartbeat.write_beat(tmp_path, left)
        seen = Signs(SETTINGS)
        seen.begin(tmp_path, 1)
        assert look(seen, 5.0) == {}
        assert look(seen, 5.0, sign(1)).keys() == {1}
    killed = Signs(SETTINGS)
    killed.begin(tmp_path, 1)
    for _ in range(12):
        assert killed.silent() == []
        look(killed, 5.0)
    assert [beat.rank for beat in killed.silent()] == [1]  # of this start, and stopped since
    heartbeat.beat_file(tmp_path, 1).unlink()
    assert look(killed, 5.0) == {} and killed.silent() == []  # of the start before
    look(killed, 5.0, sign(1))
    assert killed.quiet(1) == 0 and killed.silent() == []


def told(late: Beat, *others: Beat, quiet: tuple[int, ...] = ()) -> tuple[str, list[int]]:
    seen = Signs(SETTINGS)
    seen._quiet = dict.fromkeys(quiet, 20.0)
    beats = {beat.rank: beat for beat in (late, *others)}
    text, missing = late_text(late, beats, seen, num_ranks=3)
    return text, [beat.rank for beat in missing]


WAITS = {"wait": Wait("all ranks", 61.0, 60.0, "collective_timeout_s"), "phases": 9, "blocked": True}


def test_missing_is_who_does_not_stand_in_a_collective():
    text, missing = told(sign(0, **WAITS), sign(1, **WAITS), sign(2, phases=9, at="data.py:7 wait"))
    assert missing == [2]
    assert text == (
        "rank 0 on node0 (pid 70) has waited 61 s for all ranks (cluster.trainer.collective_timeout_s = 60 s); "
        "missing is rank 2 on node2 (pid 72), in phase update after 3 steps for 7 s, at data.py:7 wait"
    )
    # In a collective of its own as well, but of an earlier phase.
    assert told(sign(0, **WAITS), sign(1, **WAITS), sign(2, **(WAITS | {"phases": 8})))[1] == [2]
    # A data-parallel copy is behind because one of its ranks computes on and on; both are, one is the cause.
    behind = WAITS | {"phases": 8}
    assert told(sign(0, **WAITS), sign(1, **behind), sign(2, phases=8))[1] == [2]


def test_missing_is_who_is_quiet_or_has_left_before_who_is_behind():
    assert told(sign(0, **WAITS), sign(1, phases=2), sign(2, **WAITS), quiet=(2,))[1] == [2]
    assert "; no sign of it for 20 s" in told(sign(0, **WAITS), sign(1), sign(2, **WAITS), quiet=(2,))[0]
    assert told(sign(0, **WAITS), sign(1, phases=2), sign(2, phase="ended"))[1] == [2]
    assert told(sign(0, **WAITS), sign(1, **WAITS)) == (
        "rank 0 on node0 (pid 70) has waited 61 s for all ranks (cluster.trainer.collective_timeout_s = 60 s): no "
        "sign of life ever came from rank(s) 2", [],
    )  # fmt: skip


def test_where_all_wait_nobody_is_blamed():
    text, missing = told(sign(0, **WAITS), sign(1, **WAITS), sign(2, **WAITS))
    assert missing == [] and text.endswith("all in phase update: the network between them is cut, or hangs")
    # On a GPU no collective is seen: all that are in a wait wait, who is in none is missing.
    unseen = WAITS | {"blocked": False}
    assert told(sign(0, **unseen), sign(1, **unseen), sign(2, **unseen))[1] == []
    assert told(sign(0, **unseen), sign(1, **unseen), sign(2, phases=9))[1] == [2]


def test_a_silent_rank_is_named_with_where_it_was_seen_last():
    text = silent_text([sign(2)], SETTINGS)
    assert text.startswith(
        "rank 2 on node2 (pid 72) gave no sign of life for 60 s (cluster.trainer.watchdog.silence_s)"
    )
    assert text.endswith("last seen in phase update after 3 steps for 7 s")
    assert " and 4 more gave no" in silent_text([sign(rank) for rank in range(12)], SETTINGS)


# ---- stragglers ---------------------------------------------------------------------------------------------


def at(step: int, *seconds: float, phase: str = "update") -> dict[int, Beat]:
    """Signs of ranks that took so many seconds a step from the first on."""
    return {r: sign(r, worked_to=step, worked={phase: s * step}) for r, s in enumerate(seconds)}


def test_a_rank_that_is_slow_step_after_step_is_told_once():
    slow = Stragglers(SETTINGS)
    assert slow.see(at(0, 1, 1, 2)) == slow.see(at(2, 1, 1, 2)) == slow.see(at(3, 1, 1, 2)) == []
    (one,) = slow.see(at(5, 1, 1, 2))  # 5 steps, and 4 are enough
    assert (one.rank, one.phase, one.seconds, one.median, one.steps) == (2, "update", 2.0, 1.0, 5)
    assert str(one) == (
        "rank 2 on node2 is slow: 2.00 s a step in update, 2.0 times the median of 1.00 s, for 5 steps"
    )
    assert slow.figures == {"ranks/slowest": 2.0, "ranks/slowest_rank": 2.0}
    assert slow.see(at(6, 1, 1, 2)) == []
    healthy = {**at(7, 1, 1, 1), 2: sign(2, worked_to=7, worked={"update": 13.0})}
    assert slow.see(healthy) == []
    again = {**at(11, 1, 1, 1), 2: sign(2, worked_to=11, worked={"update": 21.0})}
    assert [s.rank for s in slow.see(again)] == [2]


def test_what_loses_nothing_is_no_straggler():
    for seconds in [(1, 1, 1.49), (0.001, 0.001, 0.05), (0, 0, 9)]:
        slow = Stragglers(SETTINGS)
        assert [slow.see(at(step, *seconds)) for step in (0, 4, 8)] == [[], [], []]
    sampling = Stragglers(SETTINGS)
    assert [sampling.see(at(step, 9, 1, 1, phase="sampling")) for step in (0, 8)] == [[], []]


def test_ranks_are_compared_over_steps_that_all_have_taken():
    slow = Stragglers(SETTINGS)
    slow.see(at(0, 1, 2))
    lags = {0: sign(0, worked_to=5, worked={"update": 5.0}), 1: sign(1, worked_to=0, worked={})}
    assert slow.see(lags) == []
    # Of two the faster one is the median.
    assert [s.rank for s in slow.see({0: lags[0], 1: sign(1, worked_to=4, worked={"update": 8.0})})] == [1]


def test_a_beat_must_fit_into_the_silence_several_times():
    with pytest.raises(ValueError, match="silence_s = 10 is less than 4 times beat_s = 5"):
        Watchdog(silence_s=10)
    assert dataclasses.is_dataclass(Beat) and Watchdog(silence_s=20).silence_s == 20
