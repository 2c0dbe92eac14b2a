"""The environment variables this system reads; every other room asks here."""

import math
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
    address: str = ""
    """Of rank 0's host, MASTER_ADDR."""
    port_said: str = ""
    """MASTER_PORT, where the ranks find each other."""
    agent_keeps_store: bool = False
    """Whether torchrun's agent listens there, and not rank 0."""

    @property
    def port(self) -> int | None:
        """`port_said`, if it is one."""
        said = self.port_said
        return int(said) if said.isascii() and said.isdecimal() and 0 < int(said) < 65536 else None

    @property
    def meeting_place(self) -> str:
        """host:port where the ranks find each other."""
        return f"{self.address or '?'}:{self.port_said or '?'}"


OURS = "R1MEGA_SET"
"""Names of the variables that this process has set for itself; runtime/process.py keeps them from its children."""

KEPT = "R1MEGA_KEPT_SERVER"
"""How a chain's stages hand a server on, as JSON."""


def use_interface(name: str) -> None:
    """Let gloo and NCCL speak over a network interface, each unless the user has chosen one for it."""
    chosen = {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}  # "=": not every name that begins so
    ours = os.environ.get(OURS, "").split()
    for variable, value in chosen.items():
        if variable in ours or not os.environ.get(variable):
            os.environ[variable] = value
            ours.append(variable)
    os.environ[OURS] = " ".join(dict.fromkeys(ours))


def compute_the_same_twice() -> None:
    """Have Transformer Engine and cuBLAS choose kernels that add in a fixed order. Before CUDA is first used."""
    os.environ |= {"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def let_nccl_speak_last(seconds: float) -> None:
    """Keep NCCL's own watchdog from ending a rank before ours has said which one is missing. Before NCCL is used;
    what the environment has already stays.

    PyTorch ends a process whose NCCL thread has been stuck in CUDA for TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC, 480 unless
    it is told; and where a collective runs out of its own time it writes down the last ones, if it has kept them.

    Args:
        seconds: the longest wait of a collective.
    """
    os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(math.ceil(seconds) + 60))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000")


def gloo_interfaces() -> list[str]:
    """The interfaces that gloo will use, as the environment has them now."""
    return [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]


def visible_gpus() -> str | None:
    """The GPUs that this process was given, as CUDA_VISIBLE_DEVICES has them; None where it has all of its host."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def keep_server(how: str | None) -> None:
    """Tell the processes that are started from here on how they hand a server on (`rollout.kept`); None: they do
    not."""
    if how is None:
        os.environ.pop(KEPT, None)
    else:
        os.environ[KEPT] = how


def kept_server() -> str | None:
    """What a chain's process has told this one with `keep_server`."""
    return os.environ.get(KEPT) or None


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
    return Launch(
        int(found["RANK"]),
        int(found["WORLD_SIZE"]),
        int(found["LOCAL_RANK"]),
        os.environ.get("MASTER_ADDR", ""),
        os.environ.get("MASTER_PORT", ""),
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def slurm_job() -> str | None:
    """The Slurm job that this process belongs to, as Slurm's commands take it; None outside one.

    A task of an array has a number of its own as well, but the last one's is the whole array's.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID") or None


def secret(name: str) -> str | None:
    """The value of a variable that holds a key; None where it is not set. It goes into no message and no file.

    Raises:
        ConfigError: what it holds cannot be sent in a header.
    """
    value = os.environ.get(name, "").strip()
    if not (value.isascii() and value.isprintable()):
        raise ConfigError(f"the environment variable {name} holds characters that no API key has")
    return value or None
