"""Several servers that are alike: where each listens and logs, and what is done to all of them at once."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from r1mega.config.cluster import RolloutLayout
from r1mega.rollout.command import ServerPlace
from r1mega.rollout.server import Server

T = TypeVar("T")


def marks(number: int) -> list[str]:
    """What tells the files of so many servers apart: nothing of one alone, otherwise -0, -1, ..."""
    return [""] if number == 1 else [f"-{i}" for i in range(number)]


def marked(file: Path, mark: str) -> Path:
    """vllm.log with the mark -1: vllm-1.log."""
    return file.with_name(f"{file.stem}{mark}{file.suffix}")


def begin_all(
    begin: Callable[[str, RolloutLayout, ServerPlace], Server],
    layout: RolloutLayout,
    places: Sequence[ServerPlace],
    *,
    cleanup: Callable[[], None] = lambda: None,
) -> tuple[Server, ...]:
    """Start `layout.servers` servers, without waiting for any.

    Args:
        begin: starts the one of a mark, under a layout whose port is its own, at its place.
        places: of each; none: on the CPU.
        cleanup: called where one cannot be started, after those before it were stopped.
    """
    begun = list[Server]()
    try:
        for i, mark in enumerate(marks(layout.servers)):
            own = layout.model_copy(update={"port": layout.port + i if layout.port else 0})
            begun.append(begin(mark, own, places[i] if places else ServerPlace()))
    except BaseException:
        for server in begun:
            server.stop()
        cleanup()
        raise
    return tuple(begun)


def at_once(servers: Sequence[Server], do: Callable[[Server], T]) -> list[T]:
    """Do something that takes long to each of them, in threads of their own.

    A signal that breaks off the wait stops the servers for good, since their threads would go on otherwise.

    Raises: what the first of them raises that fails, once all have ended.
    """
    with ThreadPoolExecutor(len(servers)) as executor:
        try:
            return [future.result() for future in [executor.submit(do, server) for server in servers]]
        except KeyboardInterrupt:  # StopNow is one
            for server in servers:
                server.stop()
            raise
