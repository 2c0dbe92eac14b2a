"""What a run costs in memory, as the kernel counts it."""

from pathlib import Path


def peak_rss_gib(pid: int | str = "self") -> float:
    """Peak resident memory in GiB of a process and its living descendants, summed; 0 where there is no /proc.

    A peak over the sum of processes would need sampling; the sum of their peaks is an upper bound of it.
    """
    root = Path("/proc") / str(pid)
    peak = 0.0
    try:
        for line in (root / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                peak = int(line.split()[1]) / 2**20
        children = (root / "task").glob("*/children")
        return peak + sum(peak_rss_gib(int(child)) for file in children for child in file.read_text().split())
    except OSError:
        return peak
