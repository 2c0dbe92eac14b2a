"""events.jsonl: whole lines whoever writes them, what killed writers leave, how a run's start and end are told."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from errno import ENOSPC
from pathlib import Path

import pytest

from r1mega.errors import CheckpointError, ConfigError, RanksLostError
from r1mega.runtime import events, ranks
from r1mega.runtime.events import Events, read, told
from r1mega.runtime.interrupt import Interrupted

ROOT = Path(__file__).parents[2]


def caused(error: BaseException, by: BaseException) -> BaseException:
    error.__cause__ = by
    return error


def test_an_event_is_a_line_of_json_with_its_figures(tmp_path: Path):
    Events(tmp_path).say("straggler", 'rank 3 on "node7"\nis slow', step=12, factor=2.5, worst=float("nan"))
    line = (tmp_path / "events.jsonl").read_bytes()
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    row = json.loads(line)
    assert row["time"] > 1.7e9 and row["host"]
    assert {**row, "time": 0, "host": ""} == {
        "time": 0, "kind": "straggler", "step": 12, "text": 'rank 3 on "node7"\nis slow', "host": "", "factor": 2.5,
        "worst": None,
    }  # fmt: skip
    (event,) = read(tmp_path)
    assert (event.kind, event.step, event.level, event.figures) == (
        "straggler", 12, "warning", {"factor": 2.5, "worst": None},
    )  # fmt: skip


def test_a_kind_that_is_not_in_the_table_is_refused_and_one_of_a_later_version_is_read(tmp_path: Path):
    with pytest.raises(ValueError, match="'sorrow' is no kind of event; there are started, "):
        Events(tmp_path).say("sorrow", "")
    with pytest.raises(ValueError, match="host: every event has that already"):
        Events(tmp_path).say("crashed", "", host="elsewhere")
    (tmp_path / "events.jsonl").write_text('{"time": 1, "kind": "joy", "text": "x"}\n')
    assert [(event.kind, event.level, event.step) for event in read(tmp_path)] == [("joy", "warning", None)]


def test_a_torn_line_costs_itself_alone(tmp_path: Path):
    assert read(tmp_path) == []
    file = tmp_path / "events.jsonl"
    file.write_text('{"time": 5.0, "kind": "started", "text": "a"}\n{"time": 6.0, "kind": "sto')
    assert [event.text for event in read(tmp_path)] == ["a"]  # it may still be being written
    Events(tmp_path).say("resumed", "b")
    first, torn, last = read(tmp_path)
    assert (first.text, last.text, last.kind) == ("a", "b", "resumed")
    assert (torn.kind, torn.time, torn.text) == ("torn", 5.0, '{"time": 6.0, "kind": "sto')


def test_several_processes_append_whole_lines(tmp_path: Path):
    program = """
import pathlib, sys
from r1mega.runtime.events import Events
for i in range(200):
    Events(pathlib.Path(sys.argv[1])).say("spike", "x" * 500, writer=sys.argv[2], number=i)
"""
    commands = [[sys.executable, "-c", program, str(tmp_path), name] for name in "ab"]
    for process in [subprocess.Popen(command) for command in commands]:
        assert process.wait() == 0
    found = [(event.figures["writer"], event.figures["number"]) for event in read(tmp_path)]
    assert sorted(found) == [(name, i) for name in "ab" for i in range(200)]


def test_a_full_disk_is_said_in_the_log_and_ends_nothing(tmp_path: Path, caplog, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(ENOSPC, "No space left on device")

    monkeypatch.setattr(events.os, "write", full)
    Events(tmp_path).say("finished", "all of it")
    assert "events.jsonl: cannot be written (No space left on device); it lacks:" in caplog.text
    assert "all of it" in caplog.text


@pytest.mark.parametrize(
    "error, kind",
    [
        (Interrupted(15, "saved at step 3; continue with --resume"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (RanksLostError("rank 1 waited for the others"), "rank-lost"),
        (RuntimeError("gloo: Connection closed by peer [127.0.0.1]:5"), "rank-lost"),
        (OSError(ENOSPC, "No space left on device"), "disk-full"),
        (CheckpointError("step_4: could not be saved (rank 1: [Errno 28] No space left on device)"), "disk-full"),
        (caused(CheckpointError("step_4: could not be saved"), OSError(ENOSPC, "full")), "disk-full"),
        (PermissionError(13, "Permission denied"), "crashed"),
        (ConfigError("nothing to train on"), "crashed"),
        (None, "finished"),
    ],
)
def test_how_a_run_ended_is_told(tmp_path: Path, error: BaseException | None, kind: str):
    def live() -> None:
        with told(tmp_path, "grpo stage, 2 rank(s)", resumed=False):
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            live()
    else:
        live()
    begun, ended = read(tmp_path)
    assert (begun.kind, begun.text) == ("started", "grpo stage, 2 rank(s)")
    assert ended.kind == kind
    assert error is None or str(error) in ended.text


def test_a_start_after_one_that_was_killed_says_so(tmp_path: Path):
    Events(tmp_path).say("started", "grpo stage")
    Events(tmp_path).say("straggler", "rank 1")
    for _ in range(2):
        with told(tmp_path, "grpo stage", resumed=True):
            pass
    _, _, first, _, second, _ = read(tmp_path)
    assert first.kind == second.kind == "resumed"
    assert "ended without a word" in first.text and "ended without" not in second.text


@pytest.mark.parametrize(
    "end, kind, text",
    [
        ("print('no memory', file=sys.stderr); sys.exit(3)", "crashed", "rank 1 ended with exit code 3: no memory"),
        ("os.kill(os.getpid(), 9)", "rank-lost", "rank 1 was ended by SIGKILL"),
    ],
)
def test_of_a_rank_that_cannot_speak_who_started_it_tells(
    tmp_path: Path, monkeypatch, end: str, kind: str, text: str
):
    monkeypatch.setattr(ranks, "FAILURE_GRACE_S", 0.2)
    program = f"import os, sys, time\nif os.environ['RANK'] == '1':\n    {end}\ntime.sleep(100)"
    code = ranks.start_ranks(
        [sys.executable, "-c", program], 2, log_dir=tmp_path / "logs", events=Events(tmp_path)
    )  # fmt: skip
    (event,) = read(tmp_path)
    assert (event.kind, event.text) == (kind, text)
    assert event.figures == {"rank": 1, "exit_code": code} and code in (3, 128 + signal.SIGKILL)


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[str], str]:
    def run(lines: str) -> str:
        command = ["bash", "-euo", "pipefail", "-c", f"source {ROOT}/slurm/job.sh\n{lines}"]
        environment = {"PATH": os.environ["PATH"], "HOSTNAME": "login1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done
        return done.stdout + done.stderr

    return run


def test_a_shell_script_appends_what_json_can_hold(tmp_path: Path, shell: Callable[[str], str]):
    (tmp_path / "events.jsonl").write_text("half a li")
    said = 'the "time"\tlimit: C:\\node\n100%s'
    (tmp_path / "said").write_text(said)
    assert shell('event . requeued "$(cat said)"; event . requeued again; event nowhere requeued x') == ""
    torn, first, second = read(tmp_path)
    assert torn.text == "half a li"
    assert (first.kind, first.text, first.host) == ("requeued", 'the "time" limit: C:\\node 100%s', "login1")
    assert first.time > 1.7e9 and second.text == "again"


@pytest.mark.parametrize(
    "record, lost, kind, text",
    [
        ("1 3", "", "crashed", "rank 1 failed first, with exit code 3; its log is logs/rank_1.log"),
        ("0 137", "", "rank-lost", "rank 0 was ended by signal 9"),
        ("0 1", "", None, ""),  # it has said so itself
        ("", "1 75", None, ""),  # so has rank 0's watchdog, or rank 0 of the rank that it lost
        ("1 143", "", None, ""),  # it was asked to
    ],
)
def test_of_a_rank_that_failed_under_slurm_the_batch_script_tells(
    tmp_path: Path, shell: Callable[[str], str], record: str, lost: str, kind: str | None, text: str
):
    logs = tmp_path / "run/logs"
    logs.mkdir(parents=True)
    (logs / "rank_1.log").touch()
    for name, content in (("first_failure", record), ("first_loss", lost)):
        if content:
            (logs / name).write_text(f"{content}\n")
    shell(f"SCRIPT=rl_stage; source {ROOT}/slurm/stage.sh; first_failure run/logs 1 || true")
    assert [(event.kind, event.text) for event in read(tmp_path / "run")] == ([(kind, text)] if kind else [])
