"""From a source to what a sandbox starts. C++ is compiled in a sandbox too; what came of it is kept by content."""

import functools
import hashlib
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from r1mega.errors import RewardError
from r1mega.rewards.programs.harness import CALL, START
from r1mega.rewards.programs.settings import CodeSettings
from r1mega.rewards.sandbox.bounds import Bounds
from r1mega.rewards.sandbox.machine import REMEDY, tools
from r1mega.rewards.sandbox.run import Ran
from r1mega.rewards.sandbox.sound import sound_run
from r1mega.runtime.env import cache_dir

FLAGS = ("-O2", "-std=gnu++20", "-pipe")


@dataclass(frozen=True)
class Program:
    """What a sandbox starts, and the files that it finds in /code."""

    argv: tuple[str, ...]
    files: Mapping[str, bytes]


class DoesNotCompile(Exception):
    """A source that is no program. The answer's doing."""


class CompilerEnded(DoesNotCompile):
    """The compiler took too much: no error of the source is known."""


def python_program(source: str, *, calls: bool = False) -> Program:
    """A Python program; with `calls`, one whose function is called. Whether it compiles shows when it runs."""
    text = source.encode("utf-8", "replace")
    start = CALL if calls else START
    return Program(
        (tools().python, "-I", "-S", "/code/start.py"), {"start.py": start.encode(), "answer.py": text}
    )  # fmt: skip


def cpp_program(source: str, settings: CodeSettings, slot: int) -> Program:
    """A compiled C++ program.

    Raises:
        DoesNotCompile: with the first error.
        RewardError: there is no compiler, or no sandbox to run it in.
    """
    if not tools().compiler:
        raise RewardError(f"C++ cannot be judged here: g++ not found; {REMEDY}")
    text = source.encode("utf-8", "replace")
    kept = _Kept(hashlib.sha256(_compiler().encode() + b"\0" + text).hexdigest(), settings.cache_mib * 2**20)
    binary = kept.read()
    if binary is None:
        ran = _compiled(text, settings.compiler, slot)
        if ran.end != "exit" or ran.code:
            raise _fault(ran, settings.compiler)
        binary = ran.output
        kept.write(binary)
    return Program(("/code/answer",), {"answer": binary})


def _compiled(text: bytes, bounds: Bounds, slot: int) -> Ran:
    """Printed by the sandbox, which has no file outside to write."""
    script = f"{tools().compiler} {' '.join(FLAGS)} -o /tmp/answer /code/answer.cpp && exec cat /tmp/answer"
    return sound_run(("/bin/sh", "-c", script), {"answer.cpp": text}, b"", bounds, slot)


def _fault(ran: Ran, bounds: Bounds) -> DoesNotCompile:
    if ran.end in ("cpu", "wall"):
        return CompilerEnded(f"the compiler took more than {bounds.cpu_s} s")
    if ran.end == "memory" or b"out of memory" in ran.errors:
        return CompilerEnded(f"the compiler took more than {bounds.memory_mib} MiB")
    if ran.end != "exit":
        return CompilerEnded(f"the compiler was ended ({ran.end})")
    said = re.search(r"(?:fatal )?error: .*|undefined reference .*", ran.errors.decode("utf-8", "replace"))
    return DoesNotCompile(said.group()[:200] if said else "the compiler gives no reason")


@functools.cache
def _compiler() -> str:
    """Version and flags: another compiler's programs are others."""
    asked = subprocess.run([tools().compiler, "-dumpfullversion", "-dumpmachine"], capture_output=True, text=True)
    return f"{asked.stdout} {FLAGS}"


class _Kept:
    """A compiled program in the user's cache, oldest out first."""

    def __init__(self, key: str, most_bytes: int) -> None:
        self._folder = cache_dir() / "programs"
        self._path, self._most = self._folder / key, most_bytes

    def read(self) -> bytes | None:
        try:
            found = self._path.read_bytes()
            os.utime(self._path)
        except OSError:
            return None
        return found

    def write(self, binary: bytes) -> None:
        """Kept where that is possible; nothing depends on it."""
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_bytes(binary)
            temporary.replace(self._path)
            self._make_room()
        except OSError:
            temporary.unlink(missing_ok=True)

    def _make_room(self) -> None:
        found: list[tuple[float, int, Path]] = []
        for path in self._folder.iterdir():
            stat = path.stat()
            found.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._most:
                break
            path.unlink(missing_ok=True)
            total -= size
