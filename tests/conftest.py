"""What all tests share: helpers (rotation.py, warm.py), signals, what was left out of long series, soak.json."""

import json
import os
import platform
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import rotation
import warm

SOAK = Path(__file__).parents[1] / "docs/measurements/soak.json"

BEGAN = time.monotonic()
PYTHON_IGNORES = {signal.SIGPIPE, signal.SIGXFSZ}
"""In itself; what `subprocess` starts has them by default."""


def pytest_configure() -> None:
    """What tests start ignores and blocks no signal, though these tests do, by nohup, cron or a shell's background.

    An exec gives back the default to a signal that is handled, and not to one that is ignored. The handler does
    nothing: the tests themselves still outlive their terminal.
    """
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) == signal.SIG_IGN and number not in PYTHON_IGNORES:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else lambda signum, frame: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # What earlier tests, or their user, kept there (verdicts, digests) decides nothing here.
    os.environ["WANDB_MODE"] = "disabled"  # but where W&B is what is tested, since its start takes a second or two
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="r1mega-tests-cache-")


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """What libraries set in this process (vLLM, Megatron, W&B) is not for what later tests start."""
    yield from _restored()


@pytest.fixture(autouse=True, scope="module")
def _environment_of_modules() -> Iterator[None]:
    """The same for what a module's or the session's fixtures set (a push to a server: NO_PROXY)."""
    yield from _restored()


def _restored() -> Iterator[None]:
    before = dict(os.environ)
    yield
    kept = {name: value for name, value in os.environ.items() if name.startswith("PYTEST_")}
    os.environ.clear()
    os.environ |= before | kept


def pytest_unconfigure() -> None:
    warm.close()
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    if rotation.chosen:
        terminalreporter.section(f"long series, by commit {rotation.commit()[:12] or '(none)'}")
        for series, rows in rotation.chosen.items():
            terminalreporter.write_line(f"{series}: {rows}")
    if os.environ.get("R1MEGA_SOAK") and _is_whole(config):
        counts = {
            what: len(terminalreporter.stats.get(what, [])) for what in ("passed", "failed", "error", "skipped")
        }
        result = {
            "commit": rotation.commit(),
            "date": time.strftime("%Y-%m-%d"),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "exit_status": int(exitstatus),
            **counts,
            "seconds": round(time.monotonic() - BEGAN),
            "failures": [
                report.nodeid for what in ("failed", "error") for report in terminalreporter.stats.get(what, [])
            ],
            "series": rotation.chosen,
        }
        SOAK.write_text(json.dumps(result, indent=2) + "\n")


def _is_whole(config: pytest.Config) -> bool:
    """Whether all tests were asked for: a record of one file alone is no record of the long series."""
    chosen = [config.option.keyword, config.option.markexpr, *(config.option.deselect or ())]
    return not any(chosen) and config.args_source is not pytest.Config.ArgsSource.ARGS


def _processor() -> str:
    names = (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    return next(names, platform.machine()).partition(":")[2].strip() or platform.machine()
