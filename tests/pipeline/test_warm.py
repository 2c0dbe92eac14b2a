"""A command forked from the warm process is what a start of its own makes, but for the time it takes."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import warm

from r1mega.runtime.preloaded import Preloaded, PreloadError

REPORT = """
import json, os, pathlib, resource, signal, sys
if sys.orig_argv[1:3] == ["-m", "r1mega.cli"]:
    number_of = lambda handler: handler if isinstance(handler, int) else getattr(handler, "__name__", str(handler))
    streams = (sys.stdin, sys.stdout, sys.stderr)
    status = pathlib.Path("/proc/self/status").read_text().split("\\n")
    of_libc = 0b11 << 31  # it uses two signals for itself once there have been threads
    masks = {line[:6]: int(line[8:], 16) & ~of_libc for line in status if line.startswith("Sig") and "/" not in line}
    found = {
        "arguments": sys.argv[1:],
        "original arguments": sys.orig_argv,
        "warnings": sys.warnoptions,
        "flags": str(sys.flags).replace("hash_randomization=1", ""),
        "path": [folder for folder in sys.path if not folder.endswith("setuptools/_vendor")],  # by its import
        "folder": os.getcwd(),
        "environment": {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "PYTEST_CURRENT_TEST")},
        "leads its session": os.getsid(0) == os.getpgid(0) == os.getpid(),
        "handlers": {s.name: number_of(signal.getsignal(s)) for s in signal.valid_signals() if hasattr(s, "name")},
        "blocked signals": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "signals in the kernel": masks,
        "umask": [line for line in status if line.startswith("Umask")],
        "threads": [line for line in status if line.startswith("Threads")],
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if "RLIMIT" in name},
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "processors": sorted(os.sched_getaffinity(0)),
        "streams": [(s.fileno(), s.isatty(), s.line_buffering, s.errors) for s in streams],
        "open files": sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1],
    }
    pathlib.Path(__file__).with_name("report").write_text(json.dumps(found))
"""


@pytest.fixture
def report(tmp_path: Path) -> dict[str, str]:
    """The environment of a command that writes down what it sees of itself."""
    (tmp_path / "sitecustomize.py").write_text(REPORT)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "R1MEGA_TEST": "5"}


def test_it_sees_what_a_process_of_its_own_sees(report: dict[str, str], tmp_path: Path):
    found: list[dict[str, Any]] = []
    for cold in (True, False):
        with (tmp_path / "output").open("w+") as output:
            process = warm.start(
                "check", "nowhere.toml", "--set", "seed=3", environment=report, output=output, cold=cold
            )
            assert process.wait(600) == 2
            output.seek(0)
            found.append({"said": output.read(), **json.loads((tmp_path / "report").read_text())})
    assert found[0]["said"] == "r1mega: nowhere.toml: no such config file\n"
    assert found[0]["arguments"] == ["check", "nowhere.toml", "--set", "seed=3"]
    assert {what: (found[1][what], cold) for what, cold in found[0].items() if found[1][what] != cold} == {}


def test_its_end_is_that_of_a_process(tmp_path: Path):
    """What it prints, its exit code, and the signal that ended it."""
    done = warm.run("check", "configs/tiny/r1_zero/0_base.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "configs/tiny/r1_zero/0_base.toml: pretrain stage on laptop: ok\n"
    run = (
        "run",
        "configs/tiny/r1_zero/0_base.toml",
        "--set",
        "wandb.mode=disabled",
        "--run-dir",
        str(tmp_path / "run"),
    )
    for number in (signal.SIGKILL, signal.SIGHUP):
        process = warm.start(*run)
        assert process.poll() is None and os.getpgid(process.pid) == process.pid
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        assert process.wait(600) == -number


def test_an_environment_that_imports_may_have_read_is_refused():
    with pytest.raises(PreloadError, match=r"\['OMP_NUM_THREADS'\] may be read while modules are imported"):
        warm.run("check", "nowhere.toml", environment={**os.environ, "OMP_NUM_THREADS": "7"})


def test_none_outlives_the_tests(tmp_path: Path):
    """However they end: the warm process notices that its socket is closed."""
    other = Preloaded((), os.environ)
    with (tmp_path / "output").open("w") as output:
        arguments = ("run", "configs/tiny/r1_zero/0_base.toml", "--run-dir", str(tmp_path / "run"))
        process = other.start(arguments, os.environ, warm.ROOT, output, output)
    other.close()
    end = time.monotonic() + 600
    while Path(f"/proc/{process.pid}").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
