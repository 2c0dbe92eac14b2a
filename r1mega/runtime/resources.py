"""What a run costs in memory, as the kernel counts it."""

import ctypes
import resource
from pathlib import Path


def peak_rss_gib(pid: int | str = "self", *, tree: bool = False) -> float:
    """Peak resident memory in GiB of a process; with `tree`, of its living descendants too; 0 without /proc.

    The peak over a sum of processes would need sampling: the sum of their peaks is an upper bound of it.
    """
    root = Path("/proc") / str(pid)
    peak = 0.0
    try:
        for line in (root / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                peak = int(line.split()[1]) / 2**20
        if tree:
            children = [int(child) for file in root.glob("task/*/children") for child in file.read_text().split()]
            peak += sum(peak_rss_gib(child, tree=True) for child in children)
    except OSError:  # it ended meanwhile
        pass
    return peak


def machine_memory_gib() -> float | None:
    """Memory of this machine in GiB; None without /proc."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemTotal:")), None)


def open_all_files() -> int:
    """Let this process open as many files and sockets as it may at all; returns how many: -1 without a limit.

    A rank has a socket to every member of each of its groups: of 512 ranks, more than the 1,024 that are usual.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def num_gpus() -> int:
    """GPUs of which this process may use, as CUDA's driver counts them; 0 without a driver. Needs no torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value
