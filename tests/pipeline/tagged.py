"""Processes of a run that was started with R1MEGA_TEST=tag in its environment: its ranks, and its servers."""

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
