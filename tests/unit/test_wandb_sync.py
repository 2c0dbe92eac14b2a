"""slurm/wandb_sync.sh sends the offline files of runs: beside them, in order, each once, until they are done."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_runtime_wandb import CONFIG, alone, begin, kill_after_row, take_steps
from wandb_server import Uploaded, recording

from r1mega.config.watching import Wandb
from r1mega.runtime import locks, wandb_parts
from r1mega.runtime.events import Events
from r1mega.runtime.mirror import mirrored
from r1mega.runtime.wandb_sync import LOCK, LOG, TRIES, OfflineSync

__all__ = ["alone"]  # a fixture

ROOT = Path(__file__).parents[2]
SETTINGS = Wandb(mode="offline", references=False)
LIMIT_S = 240
LONG_AGO = (1e9, 1e9)
"""When a file was last written that counts as whole."""
OURS = {"PYTHONPATH": str(ROOT), "R1MEGA_PYTHON": sys.executable}


@contextmanager
def sending(root: Path, server: Uploaded, *options: str) -> Iterator[subprocess.Popen[str]]:
    sender = subprocess.Popen(
        ["bash", str(ROOT / "slurm/wandb_sync.sh"), str(root), "--every", "2", *options],
        env=os.environ | server.environment | {"WANDB_MODE": "offline"} | OURS, cwd=root.parent,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield sender
    finally:
        sender.terminate()
        sender.communicate(timeout=60)


def send(root: Path, server: Uploaded, *options: str) -> tuple[int, str]:
    with sending(root, server, *options) as sender:
        said, _ = sender.communicate(timeout=LIMIT_S)
    return sender.returncode, said


def until(what: str, ask: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not ask():
        assert time.monotonic() < deadline, f"not in {LIMIT_S} s: {what}"
        time.sleep(0.2)


def steps(server: Uploaded) -> list[int]:
    return [row["step"] for row in server.rows if row["kind"] == "train"]


def test_parts_are_sent_while_and_as_a_run_writes_them(tmp_path: Path):
    """The second part begins where W&B's process of the first was killed, and its alert comes once."""
    run_dir = tmp_path / "chain/rl"
    begin(run_dir)
    with recording() as server, sending(tmp_path / "chain", server) as sender:
        Events(run_dir).say("started", "grpo stage")
        with mirrored(run_dir, SETTINGS, CONFIG) as shown:

            def followed() -> None:
                until("the part that is written is followed", lambda: 2 in steps(server))
                assert not server.ends
                kill_after_row(run_dir, 2, shown)

            take_steps(run_dir, range(1, 4), shown=shown, then={2: followed})
        Events(run_dir).say("hacking", "reward rises", step=3)
        Events(run_dir).say("resumed", "grpo stage")
        with mirrored(run_dir, SETTINGS, CONFIG) as shown:
            take_steps(run_dir, range(4, 6), shown=shown)
            Events(run_dir).say("finished", "grpo stage")
        until("all of the run", lambda: 5 in steps(server))
        assert sender.poll() is None, "the chain is not done yet"
        (tmp_path / "chain/summary.json").write_text("{}")
        said, _ = sender.communicate(timeout=LIMIT_S)
    assert sender.returncode == 0 and "done, and all of it is sent" in said, said
    assert steps(server) == [1, 2, 3, 4, 5] and sorted(server.order) == sorted(set(server.order))
    assert len(server.alerts) == 1 and server.ends[-1] == 0
    assert {run["name"] for run in server.runs} == {wandb_parts.PartsState.of(run_dir).id}
    assert len(list((run_dir / "wandb").glob("offline-*/*.synced"))) == 2


def test_what_cannot_be_sent_is_said_and_sent_later(tmp_path: Path):
    begin(tmp_path / "runs/one")
    with mirrored(tmp_path / "runs/one", SETTINGS, CONFIG) as shown:
        take_steps(tmp_path / "runs/one", range(1, 3), shown=shown)
    Events(tmp_path / "runs/one").say("finished", "grpo stage")
    (part,) = wandb_parts.parts_of(tmp_path / "runs/one")
    os.utime(part, LONG_AGO)
    with recording() as server:
        server.down = True
        code, said = send(tmp_path / "runs/one", server, "--once")
        assert code == 1 and "`wandb sync` could not send it" in said, said
        server.down = False
        assert send(tmp_path / "runs/one", server, "--once")[0] == 0 and steps(server) == [1, 2]
        before = len(server.runs)
        assert send(tmp_path / "runs/one", server)[0] == 0 and len(server.runs) == before, "sent anew"


def test_a_torn_part_is_sent_as_far_as_it_can_be_read(tmp_path: Path):
    """`wandb sync` by itself would call it failed for ever, and raise its alerts each time."""
    run_dir = tmp_path / "runs/one"
    begin(run_dir)
    with mirrored(run_dir, SETTINGS, CONFIG) as shown:
        take_steps(run_dir, range(1, 31), shown=shown)
    (part,) = wandb_parts.parts_of(run_dir)
    part.write_bytes(part.read_bytes()[:-700])
    whole = [row["step"] for row in wandb_parts.rows(part) if row["kind"] == "train"]
    assert whole and not wandb_parts.has_ended(part)
    os.utime(part, LONG_AGO)
    Events(run_dir).say("rank-lost", "killed")
    with recording() as server:
        code, said = send(run_dir, server, "--once")
        assert code == 0 and "as far as it can be read" in said, said
        assert steps(server) == whole
        code, _ = send(run_dir, server, "--once")
        assert code == 0 and server.ends == [1]


def test_a_part_waits_for_those_before_it_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_dir, tried = tmp_path / "runs/one", list[str]()
    begin(run_dir)
    Events(run_dir).say("finished", "grpo stage")
    parts = [run_dir / f"wandb/offline-run-2026010{day}_000000-id/run-id.wandb" for day in (1, 2)]
    for part in parts:
        part.parent.mkdir(parents=True)
        part.write_bytes(b":W&B")
        os.utime(part, LONG_AGO)

    def fails(sync: OfflineSync, *arguments: str) -> subprocess.Popen[bytes]:
        tried.append(Path(arguments[-1]).parent.name[19:20])
        (run_dir / LOG).touch()
        return subprocess.Popen(["false"])

    monkeypatch.setattr(OfflineSync, "_spawn", fails)
    sync = OfflineSync(run_dir, every_s=1.0)
    for _ in range(TRIES):
        sync.turn(follow=False)
    assert tried == ["1", "1", "1", "2"] and not sync.done()


def test_a_chain_is_done_when_its_stages_are_and_its_summary_is_there(tmp_path: Path):
    begin(tmp_path / "chain/rl")
    of_chain, of_stage = OfflineSync(tmp_path / "chain", 1.0), OfflineSync(tmp_path / "chain/rl", 1.0)
    assert not of_stage.done()
    Events(tmp_path / "chain/rl").say("finished", "grpo stage")
    assert of_stage.done() and not of_chain.done(), "later stages have not begun"
    (tmp_path / "chain/summary.json").write_text("{}")
    assert of_chain.done()
    Events(tmp_path / "chain/rl").say("resumed", "grpo stage")
    assert not of_chain.done() and not of_stage.done()


def test_a_run_that_nobody_goes_on_with_is_left(tmp_path: Path):
    begin(tmp_path / "runs/one")
    Events(tmp_path / "runs/one").say("crashed", "no more")
    with recording() as server:
        code, said = send(tmp_path / "runs/one", server, "--patience", "0.1")
        assert code == 1 and "nothing has changed for 0.1 s" in said, said


def test_a_second_one_beside_it_leaves(tmp_path: Path):
    begin(tmp_path / "runs/one")
    with recording() as server, sending(tmp_path / "runs/one", server) as first:
        until("its lock", (tmp_path / "runs/one" / LOCK).exists)
        time.sleep(0.5)
        code, said = send(tmp_path / "runs/one", server)
        assert code == 2 and "already" in said, said
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=60)
        assert first.returncode not in (0, None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "which run?"), (("--once",), "which run?"), (("/no/such/folder",), "no such folder")],
)
def test_what_it_is_to_send_has_to_be_there(arguments: tuple[str, ...], said: str):
    command = ["bash", str(ROOT / "slurm/wandb_sync.sh"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | OURS)
    assert done.returncode == 2 and said in done.stderr


@pytest.fixture
def as_a_job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job whose script lies in a spool; `scontrol` writes down what it is asked."""
    spool, programs = tmp_path / "spool", tmp_path / "bin"
    for folder in (spool, programs):
        folder.mkdir()
    shutil.copy(ROOT / "slurm/wandb_sync.sh", spool / "slurm_script")
    (programs / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (programs / "scontrol").chmod(0o755)
    job = {"SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": str(ROOT), **OURS}
    return os.environ | job | {"PATH": f"{programs}:{os.environ['PATH']}"}


def test_a_job_is_requeued_before_its_time_limit(tmp_path: Path, as_a_job: dict[str, str]):
    begin(tmp_path / "runs/one")
    command = ["bash", str(tmp_path / "spool/slurm_script"), str(tmp_path / "runs/one"), "--every", "600"]
    with recording() as server:
        job = subprocess.Popen(command, env=as_a_job | server.environment, cwd=tmp_path)
        until("its lock", (tmp_path / "runs/one" / LOCK).exists)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(60) != 0
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    with (tmp_path / "runs/one" / LOCK).open("w") as lock:
        until("what it started is gone", lambda: locks.take(lock))


def test_a_job_that_was_submitted_elsewhere_says_where_it_belongs(tmp_path: Path, as_a_job: dict[str, str]):
    command = ["bash", str(tmp_path / "spool/slurm_script"), str(tmp_path)]
    environment = as_a_job | {"SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "submit from the repository's root" in done.stderr
