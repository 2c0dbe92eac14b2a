"""Processes of a run, or a chain, that was started with R1MEGA_TEST=tag in its environment."""

from pathlib import Path


def ranks_of(tag: int) -> list[int]:
    """Process ids of the ranks of the run that was started with R1MEGA_TEST=tag, by rank; none where it has one."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            mine = f"R1MEGA_TEST={tag}".encode() in environment
            rank = next((e for e in environment if e.startswith(b"RANK=")), None)
            command_line = (folder / "cmdline").read_bytes()
            if mine and rank and b"r1mega.cli" in command_line and b"r1mega.runtime.process" not in command_line:
                found[int(rank[5:])] = int(folder.name)
        except OSError:
            continue
    return [found[rank] for rank in sorted(found)]


def servers_of(tag: int) -> list[int]:
    """Process ids of the vLLM servers of the run that was started with R1MEGA_TEST=tag."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            command_line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        of_the_run = f"R1MEGA_TEST={tag}".encode() in environment
        if of_the_run and b"vllm.entrypoints" in command_line and b"r1mega.runtime.process" not in command_line:
            found.append(int(folder.name))
    return found


def parts_of(tag: int) -> dict[str, list[int]]:
    """Process ids of what a chain that was started with R1MEGA_TEST=tag has started itself, by what they are.

    "imports": what its stages are forked from. "stage": those that run. "guard", "server" and "engine": of a vLLM
    server; an engine is told by its parents, since it writes over what /proc shows of its environment. "worker": all
    others, such as those that judge answers.
    """
    parents, lines, mine = dict[int, int](), dict[int, bytes](), set[int]()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_bytes().rpartition(b")")[2].split()[:2]
            tagged = f"R1MEGA_TEST={tag}".encode() in (folder / "environ").read_bytes().split(b"\0")
            command_line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if state not in b"ZX":
            parents[int(folder.name)], lines[int(folder.name)] = int(parent), command_line
            mine |= {int(folder.name)} if tagged else set()
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    found = dict[str, list[int]]()
    for pid in sorted(mine):
        if part := _part(lines[pid], lines.get(parents[pid], b"")):
            found.setdefault(part, []).append(pid)
    return found


def _part(command_line: bytes, of_parent: bytes) -> str:
    """Empty for the chain itself."""
    if b"r1mega.runtime.preloaded" in command_line:
        return "stage" if b"r1mega.runtime.preloaded" in of_parent else "imports"
    if b"r1mega.runtime.process" in command_line:
        return "guard"
    if b"vllm.entrypoints" in command_line:
        return "server"
    if b"r1mega.cli\0pipeline" in command_line:
        return ""
    if b"r1mega.cli\0run" in command_line:
        return "stage"
    return "engine" if b"VLLM" in command_line else "worker"
