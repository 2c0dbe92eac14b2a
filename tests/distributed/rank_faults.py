"""Tasks that go wrong: `task(folder, "die:1")` on every rank of a pool; see test_rank_pool.py."""

import os
import signal
import time
from pathlib import Path

left: list[str] = []


def task(folder: Path, fault: str) -> None:
    rank = os.environ.get("RANK", "alone")
    name, _, where = fault.partition(":")
    what = name if where == rank else "end"
    print(f"rank {rank} is going to {what}", flush=True)
    assert not left, "of the task before"
    left.append(what)
    (folder / f"{rank}.ppid").write_text(str(os.getppid()))
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "fail":
        raise ValueError(f"rank {rank} has failed")
    while what == "hang":
        time.sleep(1)
