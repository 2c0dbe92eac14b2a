"""Signals that whoever starts the program ignores or blocks: what was meant stays, what would break it does not."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from test_runtime_ranks import LIMIT_S, RECORDER, gone, heard, start

from r1mega.runtime.interrupt import Interrupt
from r1mega.runtime.process import STOP_SIGNALS

ROOT = Path(__file__).parents[2]
SHELLS = (signal.SIGHUP, signal.SIGINT)
"""What nohup ignores, and a shell without job control for its background jobs."""
ALL = (*STOP_SIGNALS, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD)


def inheriting(ignored: Iterable[int] = (), blocked: Iterable[int] = ()) -> Callable[[], object]:
    """A `preexec_fn` by which the program ignores and blocks these from its start."""

    def prepare() -> None:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)

    return prepare


def run(command: list[str], prepare: Callable[[], object]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, preexec_fn=prepare, capture_output=True, text=True, cwd=ROOT)


def shown(mask: str) -> set[int]:
    """The signals of a line of /proc/PID/status."""
    return {number for number in map(int, signal.Signals) if int(mask.split()[1], 16) >> (number - 1) & 1}


def test_the_program_undoes_what_it_cannot_work_with_and_no_more():
    code = """
import subprocess, sys
from r1mega import cli
def app():
    subprocess.call(["grep", "-E", "SigBlk|SigIgn", "/proc/self/status"])
    sys.exit(subprocess.call(["sh", "-c", "exit 7"]))
cli.app = app
cli.main()
"""
    done = run([sys.executable, "-c", code], inheriting(ALL, ALL))
    assert done.returncode == 7, "with SIGCHLD ignored, a child's exit code is lost"
    blocked, ignored = sorted(done.stdout.splitlines())
    assert shown(ignored) == {*SHELLS, signal.SIGQUIT}
    assert shown(blocked) == {signal.SIGHUP, signal.SIGQUIT}


def test_the_launcher_hears_how_a_run_ended_where_sigchld_is_ignored():
    done = run([sys.executable, "launchers/local.py", "no_such.toml"], inheriting([signal.SIGCHLD]))
    assert (done.returncode, "no_such.toml: no such config file" in done.stderr) == (2, True)


def test_ranks_go_on_without_their_terminal_and_can_still_be_asked_to_leave(tmp_path: Path):
    parent, pids = start(tmp_path, RECORDER, preexec_fn=inheriting(SHELLS), start_new_session=True)
    for number in SHELLS:
        os.killpg(parent.pid, number)  # as a terminal does
    os.kill(pids[1], signal.SIGHUP)
    parent.send_signal(signal.SIGTERM)
    heard(tmp_path, f"{signal.SIGTERM:d} ")
    assert parent.poll() is None and not any(map(gone, pids))
    parent.send_signal(signal.SIGUSR1)
    assert parent.communicate(timeout=LIMIT_S) == ("", "")
    assert parent.returncode == 128 + signal.SIGUSR1
    heard(tmp_path, f"{signal.SIGTERM:d} {signal.SIGUSR1:d} ")


def test_an_ignored_ctrl_c_stays_ignored_in_a_step_and_after_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupt.received is None
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupt.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_tests_hold_whatever_signals_are_ignored_or_blocked():
    """As nohup, cron and runners of CI have it: those that live on signals, in a session of their own."""
    chosen = (
        "test_runtime_ranks.py::test_no_rank_outlives_the_parent",
        "test_runtime.py::test_first_signal_waits_for_the_step_and_the_second_does_not",
        "test_rollout_process.py::test_no_child_outlives_its_parent",
    )
    command = [sys.executable, "-m", "pytest", "-q", *(f"tests/unit/{name}" for name in chosen)]
    done = run(command, inheriting(ALL, ALL))
    assert done.returncode == 0 and "6 passed" in done.stdout, done.stdout[-3000:]
