"""The rollout server of a model's folder and its client, started when they are first needed.

One server may answer for several folders in turn that are served alike (`alike.py`): it is started of the first that
is asked, and given the weights of each other one when that is first asked (`weights.folder`).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from r1mega.config.cluster import RolloutLayout
from r1mega.rollout.engine import OnAnswer, Request, SamplingParams
from r1mega.rollout.fleet import Fleet
from r1mega.rollout.kept import begin
from r1mega.rollout.recovery import Recovery
from r1mega.rollout.server import Server
from r1mega.runtime.interrupt import Interrupt
from r1mega.runtime.resources import peak_rss_gib
from r1mega.samples import Completion

log = logging.getLogger(__name__)

Reload = Callable[[Server, int], None]
"""Gives a restarted server the weights of a version (`Fleet`)."""


class Give(Protocol):
    """Gives a running server the weights of another folder (`weights.folder.GiveFolder`)."""

    def __call__(self, server: Server, folder: Path) -> object: ...


@dataclass(frozen=True)
class Lengthened:
    """A server that was started anew for longer sequences."""

    before: int
    """Tokens of prompt and answer for which it had room."""
    max_model_len: int
    """Those for which it has now."""
    seconds: float
    """Until it was ready."""


class ServedModel:
    """One server of a folder's own weights. An `Engine` of version 0; whoever pushes to it asks for its `client`."""

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
    ) -> None:
        """Nothing is started yet.

        Args:
            max_model_len: longest prompt + answer, in tokens.
            interrupt: breaks off waiting for the server or its answers.
            give: gives it a folder's weights. With it, a server that an earlier stage of a chain has left is taken
                where there is one (`kept.begin`), and the model may `turn_to` other folders.
        """
        self._model_dir, self._give = model_dir, give
        self._start = partial(begin if give else Server, layout=layout, seed=seed, log_file=log_file)
        self._max_model_len = max_model_len
        self._log_file, self._interrupt = log_file, interrupt
        self._server: Server | None = None
        self._client: Fleet | None = None

    @property
    def servers(self) -> tuple[Server, ...]:
        """Those that were started."""
        return (self._server,) if self._server is not None else ()

    def start(self) -> Server:
        """Start the processes, where they are not, and return while they are starting."""
        if self._server is None:
            self._server = server = self._start(self._model_dir, max_model_len=self._max_model_len)
            if self._give is not None and server.foreign:
                log.info("the rollout server is an earlier stage's; its log: %s", server.log_file)
            else:
                log_file = self._log_file if self._give is None else server.log_file
                log.info("starting the rollout server; its log: %s", log_file)
        return self._server

    def turn_to(self, model_dir: Path) -> None:
        """Answer for another folder from now on. Its weights are given when it is first asked something."""
        if model_dir != self._model_dir:
            assert self._give is not None, "made for one folder"
            self._model_dir, self._client = model_dir, None

    def make_room(self, max_model_len: int) -> Lengthened | None:
        """See to it that the server holds prompt and answer of so many tokens.

        Returns: what it took where a server that was started for fewer had to be started anew; its weights are then
        the folder's own again.

        Raises:
            RolloutError: it does not start.
            StopNow: a signal came while it started.
        """
        if max_model_len <= self._max_model_len:
            return None
        before, self._max_model_len = self._max_model_len, max_model_len
        if self._server is None or (self._give is not None and max_model_len <= self._server.max_model_len):
            return None
        log.info("the rollout server is started anew for %d tokens, where it had room for %d", max_model_len, before)
        with self._interrupt.at_once():
            return Lengthened(before, max_model_len, self._server.lengthen(max_model_len))

    def client(self, reload: Reload | None = None, on_recovery: Callable[[Recovery], None] = Recovery.tell) -> Fleet:
        """What asks the server, once it can answer; started where it was not.

        Args:
            reload, on_recovery: see `Fleet`; of the first call alone.

        Raises:
            RolloutError: it does not start.
            StopNow: a signal came while it started.
        """
        if self._client is None:
            server = self.start()
            with self._interrupt.at_once():
                server.wait_ready()
            # Whoever has a `reload` pushes weights of its own before anything is asked.
            gives = self._give if reload is None else None
            if gives is not None and (server.foreign or server.model_dir != self._model_dir):
                gives(server, self._model_dir)
            self._client = Fleet([server], reload=reload, on_recovery=on_recovery)
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
        """Of the server's processes on this host; 0 where none was started."""
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
