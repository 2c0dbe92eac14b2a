"""Ranks of one host: their variables, whose exit code counts, signals, and that none outlives its parent."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from r1mega import cli
from r1mega.errors import R1MegaError, RanksLostError
from r1mega.runtime import process, ranks, run_dir
from r1mega.runtime.interrupt import Interrupt

LIMIT_S = 200.0
"""Of what takes a moment, on a machine that may stand still for one; a third of what the ranks below sleep."""
PARENT = """
import pathlib, sys
from r1mega.runtime.process import settle_signals
from r1mega.runtime.ranks import start_ranks
settle_signals()
folder = pathlib.Path(sys.argv[1])
sys.exit(start_ranks([sys.executable, "-c", sys.argv[2], str(folder)], int(sys.argv[3]), log_dir=folder / "logs"))
"""
HEADER = """
import os, pathlib, signal, sys, time
rank, folder = int(os.environ["RANK"]), pathlib.Path(sys.argv[1])
def up():
    (folder / f".{rank}").write_text(str(os.getpid()))
    (folder / f".{rank}").rename(folder / f"up_{rank}")
"""
RECORDER = (
    HEADER
    + """
def note(signum, frame):
    with (folder / f"signals_{rank}").open("a") as file:
        file.write(f"{signum} ")
    if signum == signal.SIGUSR1:
        raise SystemExit(128 + signum)
for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(signum, note)
up()
while True:
    time.sleep(0.05)
"""
)
"""Writes down each signal it gets, and leaves at SIGUSR1."""


@pytest.fixture
def run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a program as ranks of this process, which waits no longer than it must for the others of a failed one."""
    monkeypatch.setattr(ranks, "FAILURE_GRACE_S", 0.2)
    monkeypatch.setattr(ranks, "TERM_GRACE_S", 0.2)

    def run(program: str, num_ranks: int = 2) -> int:
        command = [sys.executable, "-c", HEADER + program, str(tmp_path)]
        return ranks.start_ranks(command, num_ranks, log_dir=tmp_path / "logs")

    return run


def start(folder: Path, program: str, **how) -> tuple[subprocess.Popen[str], list[int]]:
    """A parent of two ranks, once both are up, and their process ids."""
    command = [sys.executable, "-c", PARENT, str(folder), program, "2"]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)
    files = [folder / f"up_{rank}" for rank in (0, 1)]
    deadline = time.monotonic() + LIMIT_S
    while not all(file.exists() for file in files):
        assert parent.poll() is None and time.monotonic() < deadline, "the ranks did not start"
        time.sleep(0.02)
    return parent, [int(file.read_text()) for file in files]


def gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def catches(pid: int, signum: signal.Signals) -> bool:
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signum - 1) & 1)


def wait_gone(pids: list[int], timeout_s: float = LIMIT_S) -> bool:
    deadline = time.monotonic() + timeout_s
    while not all(gone(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_ranks_get_what_torchrun_would_give_them(tmp_path: Path, run_here, capfd: pytest.CaptureFixture[str]):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert run_here(f"import json; print(json.dumps([os.environ[n] for n in {names}]))", 3) == 0
    out, err = capfd.readouterr()
    printed = [out, *((tmp_path / f"logs/rank_{rank}.log").read_text() for rank in (1, 2))]
    found = [json.loads(text) for text in printed]  # one line each: nobody wrote in another's place
    ports = {row.pop() for row in found}
    assert found == [[str(rank), "3", str(rank), "3", "127.0.0.1"] for rank in range(3)]
    assert len(ports) == 1
    assert err == ""


def test_first_failure_counts_is_shown_and_ends_the_others(
    tmp_path: Path, run_here, capfd: pytest.CaptureFixture[str]
):
    log = tmp_path / "logs/rank_1.log"
    log.parent.mkdir()
    log.write_text("of an earlier start\n")
    program = """
if rank == 0:  # waits for rank 1 for ever, and is deaf
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    up()
    time.sleep(600)
while not (folder / "up_0").exists():
    time.sleep(0.02)
print("the disk is full")
sys.exit(7)
"""
    assert run_here(program) == 7
    assert wait_gone([int((tmp_path / "up_0").read_text())])
    out, err = capfd.readouterr()
    assert out == ""
    assert err == f"r1mega: rank 1 ended with exit code 7. The end of its log {log}:\n  the disk is full\n"


def test_rank_0_speaks_for_itself(run_here, capfd: pytest.CaptureFixture[str]):
    assert run_here("rank == 1 and time.sleep(600); print('why', file=sys.stderr); sys.exit(2)") == 2
    assert capfd.readouterr() == ("", "why\n")


@pytest.mark.parametrize(
    ("end", "code"), [("sys.exit(2)", 2), ("raise KeyError", 1), ("os.kill(os.getpid(), signal.SIGKILL)", 137)]
)
def test_a_rank_that_was_lost_counts_though_its_end_is_seen_later(
    tmp_path: Path, run_here, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], end: str, code: int
):
    monkeypatch.setattr(ranks, "FAILURE_GRACE_S", LIMIT_S)
    program = f"""
up()
while not (folder / f"up_{{1 - rank}}").exists():
    time.sleep(0.02)
if rank == 0:
    sys.exit(75)
other = (folder / "up_0").read_text()
while pathlib.Path("/proc", other).exists():
    time.sleep(0.02)
time.sleep(0.3)  # rank 0's guard has ended as well, most likely
{end}
"""
    assert run_here(program) == code
    assert capfd.readouterr().err.startswith("r1mega: rank 1 ")


@pytest.mark.parametrize(
    ("codes", "seen", "first"),
    [
        ([2, 75], 1, 0), ([75, 1], 0, 1), ([2, 134], 1, 0), ([137, 75], 1, 0),
        ([2, 1], 1, 1), ([1, 2], 1, 1), ([75, 134], 1, 1), ([75, 0], 0, 0),
        ([None, 75], 1, 1), ([0, None], None, None),
    ],
)  # fmt: skip
def test_a_crash_is_no_consequence_of_another(codes: list[int | None], seen: int | None, first: int | None):
    ended = [subprocess.Popen(["sh", "-c", f"exit {code or 0}"]) for code in codes]
    for code, child in zip(codes, ended, strict=True):
        child.wait()
        if code is None:  # it still runs
            child.returncode = None
            child.poll = lambda: None
    assert ranks._first_failed(ended, seen) == first


def test_no_port_to_meet_at_is_one_message(run_here, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process, "port_is_free", lambda port, host: False)
    with pytest.raises(R1MegaError, match=r"nowhere to meet: no port from 10000 to 19999 of 127.0.0.1 can be"):
        run_here("")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RanksLostError("rank 0 waited for rank 1: gone"), "r1mega: rank 0 waited for rank 1: gone\n"),
        (RuntimeError("[gloo/pair.cc:538] Connection closed by peer [::1]:5"), "r1mega: another rank has ended or "
         "does not answer, so this one cannot go on; the other's log says why\n"),
    ],
)  # fmt: skip
def test_a_rank_that_lost_another_leaves_with_a_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, said: str
):
    def app():
        raise error

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 75
    assert capsys.readouterr() == ("", said)


def test_a_killed_rank_is_named(run_here, capfd: pytest.CaptureFixture[str]):
    assert run_here("rank == 0 and os.kill(os.getpid(), signal.SIGKILL); time.sleep(600)") == 137
    assert capfd.readouterr() == ("", "r1mega: rank 0 was ended by SIGKILL\n")


def heard(folder: Path, want: str) -> None:
    """Both ranks get exactly these signals, in this order."""
    deadline = time.monotonic() + LIMIT_S
    while (found := [file.read_text() for file in sorted(folder.glob("signals_*"))]) != [want, want]:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def test_each_signal_reaches_each_rank_once(tmp_path: Path):
    parent, _ = start(tmp_path, RECORDER)
    want = ""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        parent.send_signal(signum)
        want += f"{signum:d} "
        heard(tmp_path, want)
    assert parent.communicate(timeout=LIMIT_S) == ("", "")
    assert parent.returncode == 128 + signal.SIGUSR1
    heard(tmp_path, want)


def test_ctrl_c_on_a_terminal_reaches_ranks_once(tmp_path: Path):
    """A terminal signals its whole foreground group."""
    parent, _ = start(tmp_path, RECORDER, start_new_session=True)
    os.killpg(parent.pid, signal.SIGINT)
    heard(tmp_path, f"{signal.SIGINT:d} ")
    parent.send_signal(signal.SIGUSR1)
    parent.communicate(timeout=LIMIT_S)
    heard(tmp_path, f"{signal.SIGINT:d} {signal.SIGUSR1:d} ")


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGHUP])
def test_no_rank_outlives_the_parent(tmp_path: Path, signum: signal.Signals):
    parent, pids = start(tmp_path, HEADER + "up()\ntime.sleep(600)")
    parent.send_signal(signum)
    parent.wait(LIMIT_S)
    assert wait_gone(pids)


def test_schedulers_may_repeat_themselves_and_people_may_not_wait():
    with Interrupt() as interrupt:
        for signum in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), signum)
        assert interrupt.received == signal.SIGUSR1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_other_ranks_join_the_directory_that_rank_0_opens(tmp_path: Path):
    code = "import pathlib, sys, time; time.sleep(0.5); pathlib.Path(sys.argv[1]).write_text('{}')"
    opener = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "config.json")])
    joined = run_dir.RunDir.join(tmp_path, LIMIT_S)
    assert (tmp_path / "config.json").exists()
    assert joined.saved_steps() == []
    with pytest.raises(AssertionError, match="rank 0 alone writes"):
        joined.rewind(0)
    joined.close()
    assert opener.wait(LIMIT_S) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"config.json"}
    with pytest.raises(RanksLostError, match=r"nowhere: rank 0 did not open this run directory within 0\.2 s"):
        run_dir.RunDir.join(tmp_path / "nowhere", 0.2)


def test_a_guard_without_signals_to_pass_leaves_its_command_alone(tmp_path: Path):
    command = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(1.0)"]
    child = process.spawn(command, environment=process.child_environment(), log_file=tmp_path / "log")
    while "up" not in (tmp_path / "log").read_text():
        time.sleep(0.02)
    while child.poll() is None and not catches(child.pid, signal.SIGTERM):  # before, it ends as the command would
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    assert child.wait(LIMIT_S) == 0
