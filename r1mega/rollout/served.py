"""The rollout servers of a model's folder and their client, started when they are first needed.

They may answer for several folders in turn that are served alike (`alike.py`): they are started of the first that is
asked, and given the weights of each other one when that is first asked (`weights.folder`).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from r1mega.config.cluster import RolloutLayout
from r1mega.rollout.command import ServerPlace
from r1mega.rollout.engine import OnAnswer, Request, SamplingParams
from r1mega.rollout.fleet import Fleet
from r1mega.rollout.kept import begin, begin_own
from r1mega.rollout.recovery import Recovery
from r1mega.rollout.server import Server
from r1mega.rollout.several import at_once
from r1mega.runtime.interrupt import Interrupt
from r1mega.runtime.resources import peak_rss_gib
from r1mega.samples import Completion

log = logging.getLogger(__name__)

Reload = Callable[[Server, int], None]
"""Gives a restarted server the weights of a version (`Fleet`)."""


class Give(Protocol):
    """Gives running servers the weights of another folder (`weights.folder.GiveFolder`)."""

    def __call__(self, servers: Sequence[Server], folder: Path) -> object: ...


@dataclass(frozen=True)
class Lengthened:
    """Servers that were started anew for longer sequences."""

    before: int
    """Tokens of prompt and answer for which they had room."""
    max_model_len: int
    """Those for which they have now."""
    seconds: float
    """Until all of them were ready."""


class ServedModel:
    """Servers of a folder's own weights, `layout.servers` of them. An `Engine` of version 0; whoever pushes to them
    asks for their `client`."""

    def __init__(
        self,
        model_dir: Path,
        layout: RolloutLayout,
        *,
        max_model_len: int,
        seed: int,
        log_file: Path,
        interrupt: Interrupt,
        give: Give | None = None,
        places: Sequence[ServerPlace] = (),
    ) -> None:
        """Nothing is started yet.

        Args:
            max_model_len: longest prompt + answer, in tokens.
            seed: of every server; answers depend on their requests' own seeds alone.
            log_file: of one server; several have one each (`several.marked`).
            interrupt: breaks off waiting for the servers or their answers.
            give: gives them a folder's weights. With it, servers that an earlier stage of a chain has left are taken
                where there are such (`kept.begin`), and the model may `turn_to` other folders.
            places: of each server; none: on the CPU.
        """
        self._model_dir, self._give = model_dir, give
        begin_with = begin if give else begin_own
        self._start = partial(begin_with, layout=layout, seed=seed, log_file=log_file, places=places)
        self._max_model_len, self._interrupt = max_model_len, interrupt
        self.servers: tuple[Server, ...] = ()
        """Those that were started."""
        self._client: Fleet | None = None

    def start(self) -> Sequence[Server]:
        """Start the processes, where they are not, and return while they are starting."""
        if not self.servers:
            self.servers = self._start(self._model_dir, max_model_len=self._max_model_len)
            for server in self.servers:
                what = "is an earlier stage's" if server.foreign else "is starting"
                log.info("the rollout server at %s %s; its log: %s", server.url, what, server.log_file)
        return self.servers

    def turn_to(self, model_dir: Path) -> None:
        """Answer for another folder from now on. Its weights are given when it is first asked something."""
        if model_dir != self._model_dir:
            assert self._give is not None, "made for one folder"
            self._model_dir, self._client = model_dir, None

    def must_start(self, max_model_len: int) -> bool:
        """Whether `make_room` of so many tokens, or `client`, starts servers, anew or for the first time."""
        if not self.servers:
            return True
        return self._max_model_len < max_model_len and any(max_model_len > s.max_model_len for s in self.servers)

    def make_room(self, max_model_len: int) -> Lengthened | None:
        """See to it that the servers hold prompt and answer of so many tokens.

        Returns: what it took where servers that were started for fewer had to be started anew; their weights are then
        the folder's own again.

        Raises:
            RolloutError: one does not start.
            StopNow: a signal came while they started.
        """
        if max_model_len <= self._max_model_len:
            return None
        before, self._max_model_len = self._max_model_len, max_model_len
        if all(max_model_len <= server.max_model_len for server in self.servers):
            return None
        log.info(
            "started anew for %d tokens, where there was room for %d: %s", max_model_len, before,
            ", ".join(f"the rollout server at {server.url}" for server in self.servers),
        )  # fmt: skip
        with self._interrupt.at_once():
            seconds = at_once(self.servers, lambda server: server.lengthen(max_model_len))
        return Lengthened(before, max_model_len, max(seconds))

    def client(self, reload: Reload | None = None, on_recovery: Callable[[Recovery], None] = Recovery.tell) -> Fleet:
        """What asks the servers, once they can answer; started where they were not.

        Args:
            reload, on_recovery: see `Fleet`; of the first call alone.

        Raises:
            RolloutError: one does not start.
            StopNow: a signal came while they started.
        """
        if self._client is None:
            servers = self.start()
            with self._interrupt.at_once():
                for server in servers:  # which start side by side
                    server.wait_ready()
            # Whoever has a `reload` pushes weights of its own before anything is asked.
            others = [server for server in servers if server.foreign or server.model_dir != self._model_dir]
            if self._give is not None and reload is None and others:
                self._give(others, self._model_dir)
            self._client = Fleet(servers, reload=reload, on_recovery=on_recovery)
        return self._client

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        version: int,
        on_answer: OnAnswer | None = None,
    ) -> list[tuple[Completion, ...]]:
        """See `Engine.generate`; no version but 0, of which the folder's own weights are. StopNow at a signal."""
        client = self.client()
        with self._interrupt.at_once():
            return client.generate(requests, params, version=version, on_answer=on_answer)

    def peak_rss_gib(self) -> float:
        """Of the servers' processes on this host together; 0 where none was started."""
        return sum(peak_rss_gib(server.pid, tree=True) for server in self.servers)

    def stop(self) -> None:
        for server in self.servers:
            server.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class NotServed:
    """`ServedModel` on the ranks that start no server."""

    def start(self) -> None: ...

    def peak_rss_gib(self) -> float:
        return 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
