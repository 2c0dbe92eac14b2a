"""The tests as two pytest processes side by side, since neither half of them keeps two cores busy.

    python tests/lanes.py [pytest's arguments]

The first lane has the unit tests, most of which are one thread, and Slurm's, which wait for its clocks; the second
all that starts ranks or servers by itself. They share no fixture. The first lane's output is shown as it comes, then
the second's. Where the arguments name files or folders, or a debugger, they go to one pytest alone. Ctrl-C reaches
both.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

LANES = (("tests/unit", "tests/cluster"), ("tests/distributed", "tests/pipeline", "tests/gpu"))
PYTEST = (sys.executable, "-m", "pytest")
NOTHING_COLLECTED = 5
"""pytest's exit code where a lane has no test that was asked for (-m, -k)."""
ALONE = {"--pdb", "--trace", "-s", "--co", "--collect-only", "--lf", "--last-failed", "--ff", "--help", "-h"}
"""Arguments that need the terminal, or the record of the run before, for themselves."""


def lanes_of(arguments: Sequence[str], lanes: Sequence[Sequence[str]] = LANES) -> list[list[str]]:
    """pytest's arguments for each process: one a lane, or a single one for what cannot be divided."""
    named = any(not a.startswith("-") and Path(a.partition("::")[0]).exists() for a in arguments)
    if named or ALONE & set(arguments):
        return [list(arguments)]
    return [[*lane, "-o", f"cache_dir=.pytest_cache/lane_{i}", *arguments] for i, lane in enumerate(lanes, 1)]


def run(lanes: Sequence[Sequence[str]], command: Sequence[str] = PYTEST) -> int:
    """Run `command` once with each of `lanes`; the first exit code that tells of a failure, or 0."""
    if len(lanes) == 1:
        return subprocess.run([*command, *lanes[0]], check=False).returncode
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the terminal sends it to all; the lanes end, and this waits for them
    with tempfile.TemporaryDirectory() as scratch:
        logs = [Path(scratch, f"lane_{i}") for i in range(1, len(lanes))]
        started = [subprocess.Popen([*command, *lanes[0]], preexec_fn=_interruptible)]
        for lane, log in zip(lanes[1:], logs, strict=True):
            colour = ["--color=yes"] if sys.stdout.isatty() else []
            with log.open("wb") as file:
                started.append(subprocess.Popen([*command, *colour, *lane], stdout=file, preexec_fn=_interruptible))
        signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process in started])
        codes = [started[0].wait()]
        for process, log in zip(started[1:], logs, strict=True):
            _follow(process, log)
            codes.append(process.wait())
    failed = [code for code in codes if code not in (0, NOTHING_COLLECTED)]
    for number, (lane, code) in enumerate(zip(lanes, codes, strict=True), 1):
        print(f"lane {number} ({' '.join(a for a in lane if a.startswith('tests/'))}): exit code {code}")
    if all(code == NOTHING_COLLECTED for code in codes):
        return NOTHING_COLLECTED
    return failed[0] if failed else 0


def _interruptible() -> None:
    """In a lane before it begins: an exec would hand on that SIGINT is ignored here."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _follow(process: subprocess.Popen, log: Path) -> None:
    """Show a lane's output until it ends."""
    sys.stdout.flush()
    with log.open("rb") as file:
        while True:
            ended = process.poll() is not None  # asked before the rest is read, so that nothing is missed
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.flush()
            if ended:
                return
            time.sleep(0.5)


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    sys.exit(run(lanes_of(sys.argv[1:])))
