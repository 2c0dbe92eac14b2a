"""The environment variables this system reads; every other room asks here."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from r1mega.errors import ConfigError


@dataclass(frozen=True)
class Launch:
    """What torchrun tells a process of itself."""

    rank: int
    world_size: int
    local_rank: int
    meeting_place: str
    """host:port where the ranks find each other."""


def bypass_proxy(host: str) -> None:
    """Make HTTP clients that obey HTTP_PROXY reach `host` directly, in this process and its children."""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [h for h in os.environ.get(name, "").split(",") if h]
        if host not in hosts:
            os.environ[name] = ",".join([*hosts, host])


def cache_dir() -> Path:
    """Where this system's caches lie: in $XDG_CACHE_HOME, or in ~/.cache; without a home, in none that lasts."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "r1mega"
    try:
        return Path.home() / ".cache/r1mega"
    except RuntimeError:  # a user without a home, as in containers
        return Path(tempfile.gettempdir()) / f"r1mega-cache-{os.getuid()}"


def launch() -> Launch | None:
    """This process's place among torchrun's processes, or None when it was started by itself.

    Raises:
        ConfigError: the variables are no place among any processes.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    found = {name: os.environ.get(name, "0") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    wrong = [name for name, value in found.items() if not (value.isascii() and value.isdecimal())]
    if not wrong and int(found["RANK"]) >= int(found["WORLD_SIZE"]):
        wrong = ["RANK", "WORLD_SIZE"]
    if wrong:
        said = ", ".join(f"{name}={found[name]!r}" for name in wrong)
        raise ConfigError(
            f"{said} in the environment: ranks are numbered from 0 to below WORLD_SIZE, as torchrun and srun set "
            "them; unset RANK and WORLD_SIZE to start a run by itself"
        )
    return Launch(int(found["RANK"]), int(found["WORLD_SIZE"]), int(found["LOCAL_RANK"]), place)


def slurm_job() -> str | None:
    """The Slurm job that this process belongs to, as Slurm's commands take it; None outside one.

    A task of an array has a number of its own as well, but the last one's is the whole array's.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID") or None
