"""Children end with their parent, however the parent ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r1mega.runtime import process

FAMILY = """
import subprocess, sys, pathlib, os, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1]).write_text(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""
"""A program with a child of its own, as a vLLM server has."""
SLOW_GUARD = """
import os, pathlib, sys, time
from r1mega.runtime import process
def prctl(option, value):
    if option == process._PR_SET_PDEATHSIG:
        pathlib.Path(sys.argv[1]).touch()
        time.sleep(600)
process._prctl = prctl
process._guard(os.getppid(), ["true"], pass_signals=False)
"""
"""A guard whose command never gets to its exec."""
LIMIT_S = 200.0
"""Of what takes a moment, on a machine that may stand still for one; a third of what the programs above sleep."""
NEVER_S = 1e6
"""A grace that a test cannot wait out: what comes back did not wait for its end."""
PARENT = """
import sys, time, pathlib
from r1mega.runtime import process
command = [sys.executable, "-c", sys.argv[1], sys.argv[2]]
process.spawn(command, environment=process.child_environment(), log_file=pathlib.Path(sys.argv[3]))
time.sleep(600)
"""


def wait_for_pids(file: Path) -> list[int]:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if file.exists() and (text := file.read_text()):
            return [int(pid) for pid in text.split()]
        time.sleep(0.02)
    raise AssertionError("the program did not start")


def gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + LIMIT_S
    while not all(gone(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.timeout(300)  # half of what the programs sleep
def test_stop_ends_the_whole_family(tmp_path: Path) -> None:
    pids_file = tmp_path / "pids"
    child = process.spawn(
        [sys.executable, "-c", FAMILY, str(pids_file)],
        environment=process.child_environment(),
        log_file=tmp_path / "log",
    )
    pids = wait_for_pids(pids_file)
    process.stop_group(child, grace_s=NEVER_S)
    assert wait_gone([child.pid, *pids])
    process.stop_group(child, grace_s=5)  # once more does nothing


@pytest.mark.timeout(300)  # half of what the programs sleep
def test_stop_is_heard_between_fork_and_exec(tmp_path: Path) -> None:
    up = tmp_path / "up"
    child = subprocess.Popen([sys.executable, "-c", SLOW_GUARD, str(up)], start_new_session=True)
    while not up.exists():
        time.sleep(0.02)
    process.stop_group(child, grace_s=NEVER_S)
    assert child.returncode is not None


def test_stop_kills_what_ignores_sigterm(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    log = tmp_path / "log"
    child = process.spawn([sys.executable, "-c", deaf], environment=process.child_environment(), log_file=log)
    while "up" not in log.read_text():
        time.sleep(0.02)
    process.stop_group(child, grace_s=0.3)
    assert gone(child.pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_child_outlives_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    pids_file = tmp_path / "pids"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, FAMILY, str(pids_file), str(tmp_path / "log")], stderr=subprocess.DEVNULL
    )
    pids = wait_for_pids(pids_file)
    os.kill(parent.pid, number)
    parent.wait()
    assert wait_gone(pids)


def test_a_free_port_is_none_that_the_kernel_gives_away() -> None:
    lowest, highest = map(int, process.PORTS_GIVEN_AWAY.read_text().split())
    if lowest <= process.PORTS[0] and process.PORTS[-1] <= highest:
        pytest.skip(f"this kernel gives away {lowest} to {highest}")
    for _ in range(20):
        assert not lowest <= process.free_port() <= highest


@pytest.mark.parametrize(
    ("said", "chosen"),
    [("1024\t65535\n", range(10000, 20000)), ("10000 19949", range(19950, 20000)),
     ("10100 65535", range(10000, 10100)), ("nonsense", range(10000, 20000)), (None, range(10000, 20000))],
)  # fmt: skip
def test_a_free_port_is_found_whatever_the_kernel_gives_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, chosen: range
) -> None:
    monkeypatch.setattr(process, "PORTS_GIVEN_AWAY", tmp_path / "range")
    if said is not None:
        (tmp_path / "range").write_text(said)
    assert all(process.free_port() in chosen for _ in range(20))
    busy = process.free_port()
    refusal = f"no port from {busy} to {busy} of 127.0.0.1 can be listened on"
    with socket.create_server(("127.0.0.1", busy)), pytest.raises(OSError, match=refusal):
        process.free_port(ports=range(busy, busy + 1))
    with pytest.raises(OSError, match="can be listened on"):
        process.free_port("192.0.2.7")


def test_exit_code_is_the_commands(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit(7)"]
    child = process.spawn(command, environment=process.child_environment(), log_file=tmp_path / "log")
    assert child.wait(LIMIT_S) == 7


def test_child_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("KEPT", "yes")
    env = process.child_environment(EXTRA="1")
    assert "PYTHONDONTWRITEBYTECODE" not in env and "RANK" not in env
    assert env["KEPT"] == "yes" and env["EXTRA"] == "1"
