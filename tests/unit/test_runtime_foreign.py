"""What is not ours and fails: file systems without locks, git, generators of questions, what draws a report."""

import errno
import fcntl
import os
import sys
from pathlib import Path

import pytest

from r1mega import cli
from r1mega.data.sources import reasoning_gym
from r1mega.data.sources.reasoning_gym import Task
from r1mega.errors import ConfigError
from r1mega.pipeline import chain
from r1mega.recipe.load import load
from r1mega.report import show
from r1mega.rollout.journal import Journal
from r1mega.runtime import locks, provenance, run_dir

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs/tiny/r1_zero"


def locks_answer(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_lock_is_held_once(tmp_path: Path):
    with (tmp_path / "lock").open("w") as first, (tmp_path / "lock").open("w") as second:
        assert locks.take(first) and not locks.take(second)
        first.close()
        assert locks.take(second)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch, caplog, number: int):
    locks_answer(monkeypatch, number)
    monkeypatch.chdir(ROOT)
    run_dir.RunDir(tmp_path / "run", *load(TINY / "0_base.toml", "laptop"), resume=False).close()
    Journal(tmp_path / "journal").close()
    for folder in ("run", "journal"):
        assert f"{tmp_path}/{folder}/.lock: this file system has no locks" in caplog.text


def test_other_faults_of_a_file_system_are_not_taken_for_another_process(tmp_path: Path, monkeypatch):
    locks_answer(monkeypatch, errno.EIO)
    with (tmp_path / "lock").open("w") as file, pytest.raises(OSError, match="Input/output error"):
        locks.take(file)


GITS = {"hangs": "sleep 60", "refuses": "echo dubious ownership >&2; exit 128", "is missing": ""}


@pytest.mark.parametrize("how", GITS)
def test_a_run_needs_no_commit(tmp_path: Path, monkeypatch, how: str):
    if GITS[how]:
        (tmp_path / "git").write_text(f"#!/bin/sh\n{GITS[how]}\n")
        (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if GITS[how] else str(tmp_path))
    monkeypatch.setattr(provenance, "GIT_TIMEOUT_S", 0.3)
    assert provenance._commit() == "unknown"


def test_a_generator_that_raises_is_a_fault_of_its_parameters(monkeypatch):
    entries = [{"question": "?", "answer": "1"}, {"question": "??", "answer": "2"}]
    monkeypatch.setattr(reasoning_gym, "_dataset", lambda task, seed: entries)
    with pytest.raises(ConfigError, match=r"task gcd .*\{'max_value': 3\} fails at its question 2: IndexError"):
        list(reasoning_gym._generate(Task(name="gcd", params={"max_value": 3}), 0))


FAULTS = [RuntimeError("no font"), OSError(errno.ENOSPC, "No space left on device"), BrokenPipeError(), KeyError("x")]


@pytest.mark.parametrize("command", ["pipeline", "run"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_run_that_is_done_does_not_fail_for_its_report(
    tmp_path: Path, monkeypatch, capsys, fault: Exception, command: str
):
    def fails(run: Path, **_: bool) -> None:
        raise fault

    monkeypatch.setattr(show, "show", fails)
    monkeypatch.setattr(chain, "run_chain", lambda *arguments, **options: True)
    monkeypatch.setattr("r1mega.stages.pretrain.run", lambda *arguments: None)
    monkeypatch.setattr(cli.openmp, "restart_with_preload", lambda: None)
    monkeypatch.chdir(ROOT)
    config = TINY / ("demo.toml" if command == "pipeline" else "0_base.toml")
    monkeypatch.setattr(sys, "argv", ["r1mega", command, str(config), "--run-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    said = capsys.readouterr().err
    assert type(fault).__name__ in said and f"`r1mega report {tmp_path}` tries again" in said
