"""The command line of a sandbox: another user where possible, bubblewrap, limits, the program."""

import resource
from collections.abc import Mapping, Sequence
from pathlib import Path

from r1mega.rewards.sandbox.bounds import SHM_MIB, SLACK_MIB, Bounds
from r1mega.rewards.sandbox.machine import Tools

CODE = "/code"
"""The folder in which a program finds its files, to read only."""
_FIRST = ("/bin/sh", "-c", '"$@"; exit $?', "sh")
"""The first process of the sandbox, with which all others end, and which bubblewrap waits for: for its own first
process it does not, and leaves it to whoever reaps on a machine, which in a container may be nobody."""
_MIB = 2**20


def command(
    tools: Tools, argv: Sequence[str], files: Mapping[str, int], bounds: Bounds, uid: int | None,
    filter_fd: int, status_fd: int,
) -> list[str]:  # fmt: skip
    """What to start, in an empty environment: bubblewrap's own would be seen in /proc/1/environ.

    Args:
        files: name in `CODE` -> descriptor of its content.
        uid: the user to become; None: this process's own.
    """
    addresses, allowed = (bounds.memory_mib + SLACK_MIB) * _MIB, resource.getrlimit(resource.RLIMIT_AS)[1]
    first: list[str] = []
    if allowed != resource.RLIM_INFINITY and addresses > allowed:  # a pool's worker has a limit
        if uid is not None and _may_raise_limits():
            first = [tools.prlimit, f"--as={addresses}", "--"]
        else:
            addresses = allowed
    # From root's own user id RLIMIT_NPROC holds for nobody.
    user = [
        *first, tools.setpriv, f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs", "--",
    ] if uid is not None else []  # fmt: skip
    walls = _walls(files, bounds, filter_fd, status_fd)
    return [*user, tools.bwrap, *walls, "--", *_FIRST, *_limits(tools, bounds, addresses), *argv]


def _walls(files: Mapping[str, int], bounds: Bounds, filter_fd: int, status_fd: int) -> list[str]:
    given = ["--dir", CODE]
    for name, fd in files.items():
        given += ["--perms", "0555", "--ro-bind-data", str(fd), f"{CODE}/{name}"]
    return [
        "--unshare-all", "--die-with-parent", "--new-session", "--as-pid-1", "--clearenv", "--cap-drop", "ALL",
        "--hostname", "sandbox",
        "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/tmp", "--setenv", "LANG", "C.UTF-8",
        "--ro-bind", "/usr", "/usr", *_outside_usr(), "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache",
        "--proc", "/proc", "--dev", "/dev",
        "--perms", "1777", "--size", str(SHM_MIB * _MIB), "--tmpfs", "/dev/shm",
        "--perms", "1777", "--size", str(bounds.scratch_mib * _MIB), "--tmpfs", "/tmp",
        *given,
        # Both are tmpfs of half the machine's memory, and the program's user owns them.
        "--remount-ro", "/dev", "--remount-ro", "/",
        "--chdir", "/tmp", "--seccomp", str(filter_fd), "--json-status-fd", str(status_fd),
    ]  # fmt: skip


def _outside_usr() -> list[str]:
    """/bin, /lib and the like: links into /usr, or on older systems folders of their own."""
    found: list[str] = []
    for place in (Path("/bin"), Path("/sbin"), Path("/lib"), Path("/lib64")):
        if place.is_symlink():
            found += ["--symlink", str(place.readlink()), str(place)]
        elif place.is_dir():
            found += ["--ro-bind", str(place), str(place)]
    return found


def _may_raise_limits() -> bool:
    """Whether this process has CAP_SYS_RESOURCE, which root in a container may lack."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> 24 & 1)


def _limits(tools: Tools, bounds: Bounds, addresses: int) -> list[str]:
    return [
        tools.prlimit, f"--as={addresses}", f"--cpu={bounds.cpu_s}:{bounds.cpu_s + 1}",
        f"--nproc={bounds.processes}", f"--fsize={bounds.file_mib * _MIB}", f"--nofile={bounds.open_files}",
        f"--stack={bounds.stack_mib * _MIB}:", "--core=0", "--memlock=0", "--msgqueue=0", "--rtprio=0", "--",
    ]  # fmt: skip
