"""What one run of an untrusted program may use."""

from pydantic import Field

from r1mega.config.section import Section


class Bounds(Section):
    """Limits of one run. What goes beyond one ends, and is scored as the answer's doing."""

    cpu_s: int = Field(default=6, ge=1, le=3600)
    """Processor seconds, of all processes together: what a time limit of a problem is."""
    wall_s: float = Field(default=10.0, gt=0, le=7200)
    """Seconds from start to end, without those in which a busy machine gives it no core: for a program that waits."""
    memory_mib: int = Field(default=512, ge=16, le=1 << 20)
    """Of all its processes together, looked at every 20 ms; one process may ask for `SLACK_MIB` of addresses more."""
    stack_mib: int = Field(default=128, ge=1)
    """Of each thread, unless the program asks for another."""
    processes: int = Field(default=64, ge=4, le=4096)
    """Processes and threads at once, three of them the sandbox's own."""
    open_files: int = Field(default=64, ge=8, le=4096)
    """Of each process."""
    file_mib: int = Field(default=16, ge=1)
    """The largest file."""
    scratch_mib: int = Field(default=64, ge=1)
    """All files in /tmp together, and 10,000 of them."""
    output_bytes: int = Field(default=8 * 2**20, ge=1024, le=2**30)
    """Read of what it prints, before it is ended."""


SLACK_MIB = 512
"""What a process maps and does not use: libraries, the stacks of threads."""
MAX_INODES = 10_000
"""Files, folders and links in /tmp, and in /dev/shm, at once: empty ones take the kernel's memory too."""
SHM_MIB = 4
"""Of /dev/shm: semaphores of processes stand there."""
