"""What `r1mega run` does around a stage: its history, its signs of life, and whose run directory it is meanwhile."""

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from r1mega import cli
from r1mega.errors import RunDirError
from r1mega.recipe.load import load
from r1mega.runtime import events, heartbeat, run_dir
from r1mega.runtime.heartbeat import Beat
from r1mega.runtime.run_dir import RunDir

ROOT = Path(__file__).parents[2]
Stage = tuple[Any, Any]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cli.openmp, "restart_with_preload", lambda: None)
    monkeypatch.setattr(cli, "_report_of_done", lambda path: None)
    return load(ROOT / "configs/tiny/r1_zero/0_base.toml", "laptop", ["wandb.mode=disabled"])


def test_a_stage_lives_between_its_events_and_its_signs(stage: Stage, tmp_path: Path, monkeypatch):
    seen: list[Any] = []

    def runs(recipe: Any, machine: Any, directory: RunDir) -> None:
        heartbeat.phase("update", 5)
        seen.append([event.kind for event in events.read(directory.path)])
        seen.append([beat.phase for beat in heartbeat.read(directory.path)])
        (directory.path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')

    monkeypatch.setattr(cli, "imported", lambda entry: runs)
    heartbeat.write_beat(tmp_path / "run", Beat(3, "elsewhere", 1, "update", 9, 0.0, 0.0))
    for resume in (False, True):
        cli._run_stage(*stage, tmp_path / "run", resume=resume, verify_inputs=False)
    assert seen == [["started"], ["start"], ["started", "finished", "resumed"], ["start"]]
    assert [event.text for event in events.read(tmp_path / "run")] == ["pretrain stage, 1 rank(s)"] * 4
    (beat,) = heartbeat.read(tmp_path / "run")  # the ranks of the start before are gone
    assert (beat.rank, beat.phase, beat.step, beat.pid) == (0, heartbeat.ENDED, 5, os.getpid())


@pytest.fixture
def held(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run directory that another process holds, and how to be refused it."""
    monkeypatch.setattr(run_dir, "LOCK_TIMEOUT_S", 0.3)
    monkeypatch.setattr(run_dir, "LEASE_S", 1.2)
    tmp_path.joinpath("run").mkdir()

    def refused(touch: bool = False) -> str:
        times = iter(range(1, 10**6))
        take = run_dir.locks.take

        def taken(file: Any) -> bool:
            if touch:
                os.utime(heartbeat.beat_file(tmp_path / "run", 0), (next(times), next(times)))
            return take(file)

        with monkeypatch.context() as context, (tmp_path / "run/.lock").open("w") as lock:
            context.setattr(run_dir.locks, "take", taken)
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(RunDirError) as error:
                RunDir(tmp_path / "run", *stage, resume=True)
        return str(error.value)

    return refused


def test_who_holds_a_run_directory_is_named_and_a_silent_one_is_waited_for_longer(held, tmp_path: Path):
    """A file server gives back a dead host's locks later than a launcher starts its run again."""
    assert held() == f"{tmp_path}/run: another process is running in this directory; wait for it"
    heartbeat.write_beat(tmp_path / "run", Beat(0, "node7", 66, "update", 9, 0.0, 0.0))
    assert held(touch=True) == (
        f"{tmp_path}/run: another process, rank 0 on node7 (pid 66), is running in this directory; wait for it"
    )
    assert held() == (
        f"{tmp_path}/run: another process, rank 0 on node7 (pid 66), is running in this directory; it gave no "
        "sign of life for 1 s: end it"
    )
    heartbeat.write_beat(tmp_path / "run", Beat(0, "node7", 66, heartbeat.ENDED, 9, 0.0, 0.0))
    assert held().endswith("is running in this directory; wait for it")
