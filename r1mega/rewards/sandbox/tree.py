"""The processes of a running sandbox, as the kernel shows them from outside."""

import os
from collections.abc import Iterator
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def processes(root: int) -> Iterator[int]:
    """`root` and all that descend from it: orphans become children of the sandbox's first process."""
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text(encoding="ascii").split())
        except (OSError, ValueError):
            continue  # it has ended meanwhile


def memory_bytes(root: int, more_than: int) -> int:
    """What the processes hold together, without files of the system. Exact where it is more than `more_than`: below,
    pages that several of them share count more than once."""
    pids = list(processes(root))
    held = sum(_kib(f"/proc/{pid}/status", ("RssAnon:", "RssShmem:", "VmSwap:")) for pid in pids) * 1024
    if held <= more_than or len(pids) == 1:
        return held
    shares = sum(_kib(f"/proc/{pid}/smaps_rollup", ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")) for pid in pids) * 1024
    return shares or held


def cpu_seconds(root: int) -> float:
    """Processor time of the processes that there are, and of those that these have waited for: all that there were,
    since none can have its children go unseen (`filter`)."""
    total = 0
    for pid in processes(root):
        try:
            fields = (
                Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            )
            total += sum(map(int, fields[11:15]))
        except (OSError, ValueError):
            continue
    return total / _TICKS


def waited_seconds(root: int) -> float:
    """How long the one of the processes that waited most for a core has done so; 0 where the kernel does not say."""
    longest = 0
    for pid in processes(root):
        try:
            longest = max(longest, int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[1]))
        except (OSError, ValueError, IndexError):
            continue
    return longest / 1e9


def inodes(root: int, folder: str, size_bytes: int) -> int:
    """Files, folders and links in a folder of the sandbox that is a file system of this size; 0 before it is one, and
    where this process may not look."""
    try:
        found = os.statvfs(f"/proc/{root}/root{folder}")
    except OSError:
        return 0
    return found.f_files - found.f_ffree if found.f_blocks * found.f_frsize == size_bytes else 0


def _kib(path: str, names: tuple[str, ...]) -> int:
    try:
        text = Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(names))
