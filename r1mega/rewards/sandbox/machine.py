"""What a sandbox needs of the machine, and a clear refusal where it is not there."""

import functools
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from r1mega.errors import RewardError

REMEDY = "install it with `make system-deps` (as root; Debian or Ubuntu), or with this system's package manager"
PLACES = "/usr/bin:/usr/local/bin:/bin:/usr/sbin:/sbin"
"""Where programs are looked for: what lies elsewhere is not seen from inside."""
PYTHONS = ("python3.11", "python3", "python3.12", "python3.13")
"""The first that there is runs answers in Python."""


@dataclass(frozen=True)
class Tools:
    """Paths of what a sandbox is made of."""

    bwrap: str
    prlimit: str
    setpriv: str
    """Empty where this process is not root's, and cannot become another user."""
    python: str
    compiler: str
    """g++; empty where there is none."""


@functools.cache
def tools() -> Tools:
    """What there is.

    Raises RewardError, with the remedy, where a sandbox cannot be had: nothing is ever run without one.
    """
    if platform.machine() not in ("x86_64", "aarch64"):
        raise RewardError(f"code cannot be judged here: no filter of system calls for {platform.machine()}")
    root = os.geteuid() == 0
    found = {name: _found(name) for name in ("bwrap", "prlimit", "setpriv")}
    found["python3"] = next(filter(None, map(_found, PYTHONS)), "")
    missing = [name for name, path in found.items() if not path and (root or name != "setpriv")]
    if missing:
        names = ", ".join({"bwrap": "bubblewrap (bwrap)"}.get(name, name) for name in missing)
        raise RewardError(f"code cannot be judged here: {names} not found in {PLACES}; {REMEDY}")
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        raise RewardError("code cannot be judged here: this kernel's /proc does not list a process's children")
    return Tools(
        found["bwrap"], found["prlimit"], found["setpriv"] if root else "", found["python3"], _found("g++")
    )  # fmt: skip


def seen() -> str:
    """What of a sandbox is there, in words: a verdict on questions of code holds where it is the same."""
    try:
        return str(tools())
    except RewardError as error:
        return str(error)


def _found(name: str) -> str:
    return shutil.which(name, path=PLACES) or ""
