"""The environment variables this system reads; every other room asks here."""

import os
from dataclasses import dataclass


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


def launch() -> Launch | None:
    """This process's place among torchrun's processes, or None when it was started by itself."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    return Launch(
        int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", "0")), place
    )
