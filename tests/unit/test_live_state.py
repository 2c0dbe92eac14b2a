"""Where a run is, from hand-made folders: by its end, its lock, its beats, its last writes, its events."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from watched_runs import NOW, age, eval_row, event, look, told, train_row, write_beat, write_stage

from r1mega.errors import DataError
from r1mega.launchers.job import Phase
from r1mega.report.live.beats import RankBeat, beats_of
from r1mega.report.live.chain import RunReader
from r1mega.report.live.facts import left, seconds_a_step
from r1mega.report.live.jobs import StageJobSeen
from r1mega.report.live.life import EXIT_CODES, RunState, holder_of, life_of
from r1mega.runtime import heartbeat, locks
from r1mega.runtime.events import Event

# ---- one stage ----------------------------------------------------------------------------------------------


def test_a_stage_that_is_done(tmp_path: Path):
    write_stage(tmp_path / "rl", [train_row(399), train_row(400), eval_row(400, 0.7)], done=True)
    facts = look(tmp_path / "rl")
    assert facts.life.state is RunState.DONE and EXIT_CODES[facts.life.state] == 0
    assert told(facts)["at"] == ["rl, step 400 of 400 (100%), last sign of life 2026-09-21 13:13:20 UTC"]
    assert told(facts)["held out"] == ["70.0% (60.0% to 80.0%) right in the format, after step 400"]
    assert facts.advice == [] and facts.waits == []


def test_a_stage_that_runs_has_a_pace_and_time_left(tmp_path: Path):
    """Two steps are a rollout of 4 + 2 s and two updates of 1 s: 4 s a step, and 390 are left."""
    write_stage(tmp_path, [train_row(step) for step in range(1, 11)], written=NOW - 5)
    facts = look(tmp_path)
    stage = facts.current
    assert facts.life.state is RunState.RUNNING and EXIT_CODES[facts.life.state] == 3
    assert stage is not None and (stage.step, stage.num_steps) == (10, 400)
    assert stage.seconds_a_step == 4.0 and stage.left_s == 390 * 4.0
    assert "about 26 min 00 s of steps left" in told(facts)["at"][0]


def test_a_clock_ends_a_stage_sooner(tmp_path: Path):
    assert left(10, 400, 4.0, 100.0) == 60.0 and left(10, 400, 4.0, 0.0) == 1560.0
    assert left(10, None, 4.0, None) is None and left(30, 400, 4.0, 100.0) == 0.0
    assert seconds_a_step([]) is None
    assert seconds_a_step([train_row(step) for step in range(1, 12)]) == 4.0  # the last has half of its rollout


def test_a_stage_of_which_nothing_is_heard_is_silent(tmp_path: Path):
    write_stage(tmp_path, [train_row(1)], written=NOW - 7200)
    facts = look(tmp_path)
    assert facts.life.state is RunState.SILENT and EXIT_CODES[facts.life.state] == 4
    assert facts.life.why == "nothing was written for 2 h 00 min, and no end was told: killed, or cut off"


def test_steps_of_an_hour_are_no_silence(tmp_path: Path):
    rows = [train_row(step, **{"seconds/update": 3600.0}) for step in (1, 2, 3)]
    write_stage(tmp_path, rows, written=NOW - 7200)
    assert look(tmp_path).life.state is RunState.RUNNING


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("stopped", RunState.STOPPED),
        ("crashed", RunState.FAILED),
        ("disk-full", RunState.FAILED),
        ("watchdog", RunState.FAILED),
        ("requeued", RunState.WAITING),
        ("spike", RunState.RUNNING),
    ],
)
def test_the_last_event_says_how_it_ended(tmp_path: Path, kind: str, state: RunState):
    events = [event("started", NOW - 90), event(kind, NOW - 10, "for this reason", step=3)]
    write_stage(tmp_path, [train_row(3)], events=events, written=NOW - 10)
    facts = look(tmp_path)
    assert facts.life.state is state
    if state is not RunState.RUNNING:
        assert facts.life.why == f"{kind}: for this reason"


def test_what_happened_before_a_resumption_is_no_end(tmp_path: Path):
    events = [event("crashed", NOW - 60), event("resumed", NOW - 30)]
    write_stage(tmp_path, [train_row(3)], events=events, starts=2, written=NOW - 10)
    facts = look(tmp_path)
    assert facts.life.state is RunState.RUNNING and told(facts)["began"][0].endswith("started again once")


def beat(rank: int, age: float, phase: str = "update", since: float = 10.0) -> RankBeat:
    return RankBeat(rank, phase, 3, NOW - since, NOW - age, "node1")


def test_who_is_waited_for_is_told_by_the_beats(tmp_path: Path):
    """Two ranks wait for the third, which is a phase behind; the first says what it asks for; one line is torn."""
    write_stage(tmp_path, [train_row(3)], written=NOW - 9000)
    wait = {"what": "all ranks", "seconds": 33.0, "limit_s": 600.0, "setting": "collective_timeout_s"}
    write_beat(tmp_path, 0, wait=wait, detail="answers: 37 of 512")
    write_beat(tmp_path, 1, wait={**wait, "seconds": 30.0})
    write_beat(tmp_path, 2, phases=8, phase="sampling", at="r1mega/a.py:3 draw")
    (tmp_path / "logs/beats/rank_3.json").write_text('{"rank": 3, "ho')
    (tmp_path / "logs/beats/rank_4.json").write_text("[]")
    facts = look(tmp_path)
    assert facts.life.state is RunState.RUNNING and facts.life.why == "a rank beat 1.0 s ago"
    assert facts.stages[0].num_steps == 400  # its config's
    assert facts.waits == [
        "rank 2 on node2, in sampling for 40 s, at r1mega/a.py:3 draw: 2 of 3 ranks wait for all ranks, for 33 s, "
        "of 10 min 00 s at most",
        "update: answers: 37 of 512",
    ]
    assert "update for 40 s, sampling for 40 s" in told(facts)["at"][0]
    write_beat(tmp_path, 2, time=NOW - 90.0)
    assert look(tmp_path).waits[0] == "rank 2 on node2, silent for 90 s, in update"


def test_a_beat_that_a_rank_writes_is_read(tmp_path: Path):
    wait = heartbeat.Wait("all ranks", 12.0, 600.0, "collective_timeout_s")
    now = heartbeat.Beat(
        3, "node7", 99, "sampling", 12, NOW - 7, NOW - 1, phases=5, detail="words", wait=wait, at="a.py:3 f"
    )
    heartbeat.write_beat(tmp_path, now)
    (tmp_path / "logs/beats/rank_5.json").write_text('{"rank": 5, "since": "x", "time": [], "wait": 3}')
    (tmp_path / "logs/beats/rank_6.json").write_text(json.dumps({"rank": 6, "since": 1, "time": NOW, "wait": 3}))
    first, second = beats_of(tmp_path)
    assert first == RankBeat(
        3, "sampling", 12, NOW - 7, NOW - 1, "node7", "words", "all ranks", 12.0, 600.0, 5, "a.py:3 f"
    )
    assert (second.rank, second.phase, second.waits) == (6, "", "")


def test_how_long_a_stage_is_its_ranks_know_where_its_config_does_not(tmp_path: Path):
    """As of SFT, whose data decide; 40 steps of 4 s are left."""
    write_stage(tmp_path, [train_row(step) for step in range(1, 11)], num_steps=None, kind="sft")
    write_beat(tmp_path, 0, num_steps=50)
    stage = look(tmp_path).stages[0]
    assert stage.num_steps == 50 and stage.left_s == 160.0 and stage.share == 0.2


def test_ranks_that_have_left_beat_no_more(tmp_path: Path):
    write_stage(tmp_path, [train_row(3)], written=NOW - 9000)
    for rank in range(2):
        write_beat(tmp_path, rank, phase="ended")
    age(tmp_path, NOW - 9000)
    facts = look(tmp_path)
    assert facts.life.state is RunState.SILENT and facts.waits == [] and facts.advice == []


def life(**changes: object) -> RunState:
    given: dict = {
        "done": False, "begun": True, "holder": None, "beats": [], "written": NOW - 7200, "last": None, "job": None,
        "pace": None, "now": NOW,
    }  # fmt: skip
    return life_of(**{**given, **changes}).state


def test_beats_count_more_than_files():
    assert life(beats=[beat(0, 3)]) is RunState.RUNNING
    assert life(beats=[beat(0, 300)], written=NOW - 1) is RunState.SILENT
    assert life(beats=[beat(0, 300), beat(1, 3)]) is RunState.RUNNING


def test_an_end_counts_once_no_rank_beats_behind_it():
    crashed = Event(NOW - 5, "crashed", "")
    assert life(beats=[beat(0, 20)], last=crashed) is RunState.FAILED
    assert life(beats=[beat(0, 2)], last=crashed) is RunState.RUNNING  # the others are still there
    assert life(beats=[beat(0, 2)], last=Event(NOW - 900, "crashed", "")) is RunState.RUNNING


def test_a_job_in_the_queue_waits_and_so_does_a_folder_that_is_empty(tmp_path: Path):
    assert life(job=StageJobSeen("7", Phase.WAITING)) is RunState.WAITING and life(begun=False) is RunState.WAITING
    assert life(job=StageJobSeen("7", Phase.UNKNOWN)) is RunState.SILENT
    with pytest.raises(DataError, match="no run here: no config"):
        look(tmp_path)
    facts = RunReader(tmp_path / "later", may_wait=True).read(NOW)
    assert facts.life.state is RunState.WAITING and facts.waits == ["it has not begun"]


def test_who_holds_the_lock_is_asked_of_the_kernel(tmp_path: Path):
    lock = tmp_path / ".lock"
    with lock.open("w") as file:
        assert holder_of(lock) is None
        if sys.platform != "linux":
            pytest.skip("the kernel's list is Linux's")
        assert locks.take(file) and holder_of(lock) == os.getpid()
    assert holder_of(lock) is None and holder_of(tmp_path / "none") is None


def test_a_held_lock_is_a_life_and_a_look_takes_none(tmp_path: Path):
    run = write_stage(tmp_path / "run", [train_row(1)], written=NOW - 9e6)
    held = "import fcntl,sys; f=open(sys.argv[1],'w'); fcntl.flock(f, 2); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", held, str(run / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        facts = look(run)
        process.communicate()
    assert facts.life.state is RunState.RUNNING and f"process {process.pid}" in facts.life.why
    age(run, NOW - 9e6)
    before = sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*"))
    assert look(run).life.state is RunState.SILENT
    assert sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*")) == before


def test_locks_of_another_file_system_are_others(tmp_path: Path):
    lock, listed = tmp_path / ".lock", tmp_path / "locks"
    lock.touch()
    status = lock.stat()
    major, minor = os.major(status.st_dev), os.minor(status.st_dev)
    form = "1: {} ADVISORY  WRITE 4242 {:02x}:{:02x}:{} 0 EOF\nnonsense\n"
    for kind, device, inode, holder in (
        ("FLOCK ", (major, minor), status.st_ino, 4242),
        ("POSIX ", (major, minor), status.st_ino, None),
        ("FLOCK ", (major, minor + 1), status.st_ino, None),
        ("FLOCK ", (major, minor), status.st_ino + 1, None),
    ):
        listed.write_text(form.format(kind, *device, inode))
        assert holder_of(lock, listed) == holder
