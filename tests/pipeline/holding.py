"""A run that stands still after a step until it is killed, told to leave or let go: however late the test comes."""

import os
from pathlib import Path

_HOOK = """
import pathlib, sys, time
if sys.orig_argv[1:4] == ["-m", "r1mega.cli", "run"]:
    from r1mega.runtime import interrupt, tracking
    armed, held = (pathlib.Path(__file__).with_name(name) for name in ("armed", "held"))
    log, handle = tracking.Tracker.log, interrupt.Interrupt._handle

    def log_and_hold(self, kind, step, row):
        log(self, kind, step, row)
        if kind == "train" and step == {step} and armed.exists():
            armed.rename(held)
            while held.exists():
                time.sleep(0.01)

    def let_go(self, *signal):
        held.unlink(missing_ok=True)
        handle(self, *signal)

    tracking.Tracker.log, interrupt.Interrupt._handle = log_and_hold, let_go
"""


def hold_after_step(step: int, folder: Path) -> tuple[Path, dict[str, str]]:
    """For one hold of `r1mega run`, once metrics.jsonl has this step.

    Returns:
        A file that stands while the run does, and lets it go when it is removed, as a signal does; and the run's
        environment.
    """
    hook = folder / "hook"
    hook.mkdir()
    (hook / "armed").touch()
    (hook / "sitecustomize.py").write_text(_HOOK.replace("{step}", str(step)))
    path = os.pathsep.join(filter(None, [str(hook), os.environ.get("PYTHONPATH")]))
    return hook / "held", {**os.environ, "PYTHONPATH": path}
