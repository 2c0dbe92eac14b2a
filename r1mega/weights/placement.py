"""Trainer and engine on the same GPUs: whose turn it is, and what is put aside before the other's begins.

`Colocated` keeps the state of `layout.turns` and makes its moves, on rank 0: every rank's policy is told what to put
aside or take back and is waited for, and the servers are told to sleep or to wake by vLLM's own routes. `Apart` is
for trainer and engine that share nothing, or take turns on a CPU, where vLLM has no sleep: it does nothing.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import httpx

from r1mega.errors import RolloutError, ServerLostError
from r1mega.layout.turns import MOVES, STATES, Stage, State, way
from r1mega.rollout.server import Server
from r1mega.rollout.several import at_once

log = logging.getLogger(__name__)

Trainer = Callable[[Sequence[Stage], Sequence[Stage]], None]
"""Puts the first stages of every rank's policy aside and takes the second back; returns when every rank has."""
Post = Callable[[Server, str], None]
"""Sends a request without a body to a path of a server."""


class Turns(Protocol):
    """What `live_engine.LiveEngine` asks for before each thing that it does."""

    @property
    def shared(self) -> bool:
        """Whether trainer and engine have the same GPUs."""
        ...

    def before_start(self) -> None:
        """Servers are about to be started, or started anew."""

    def started(self, servers: Sequence[Server]) -> None:
        """Servers have been started, and hold weights of their own."""

    def before_push(self) -> None:
        """Weights are about to be pushed to all servers."""

    def before_answers(self) -> None:
        """They are about to be asked."""

    def before_learning(self) -> None:
        """They will not be asked until weights have been pushed again, and the policy is to be used."""


class Apart:
    """Memory that nobody else wants."""

    shared = False

    def before_start(self) -> None: ...

    def started(self, servers: Sequence[Server]) -> None: ...

    def before_push(self) -> None: ...

    def before_answers(self) -> None: ...

    def before_learning(self) -> None: ...


def post(server: Server, path: str) -> None:
    """Send it, and wait until the server has done it.

    Raises:
        ServerLostError: it does not answer.
        RolloutError: it refuses.
    """
    timeout_s = server.layout.request_timeout_s
    try:
        # Plain http, past any proxy: this host's loopback address is none of a proxy's.
        answer = httpx.post(server.url + path, timeout=timeout_s, trust_env=False, verify=False)
    except httpx.HTTPError as error:
        raise ServerLostError(
            f"the vLLM server at {server.url} did not answer {path} within {timeout_s:g} s "
            f"(rollout.request_timeout_s): {error!r}. Trainer and engine share their GPUs, where no other can take "
            f"its place halfway: go on with --resume. Its log: {server.log_file}"
        ) from error
    if answer.status_code != 200:
        raise RolloutError(
            f"the vLLM server at {server.url} refused {path}: {answer.status_code} {answer.text[:300]}"
        )


class Colocated:
    """The same GPUs, in turns."""

    shared = True

    def __init__(self, trainer: Trainer, post: Post = post) -> None:
        self._trainer, self._post = trainer, post
        self._servers: Sequence[Server] = ()
        self.state: State = "alone"
        """As `layout.turns` names it: the policy has the device to itself until servers are started."""

    def before_start(self) -> None:
        self._reach("vacant")

    def started(self, servers: Sequence[Server]) -> None:
        self._servers = servers
        self._reach("sampling")

    def before_push(self) -> None:
        self._reach("pushing")

    def before_answers(self) -> None:
        if STATES[self.state].engine in ("absent", "asleep"):
            raise RuntimeError("trainer and engine share their GPUs: asleep, the engine has lost its weights")
        self._reach("sampling")

    def before_learning(self) -> None:
        self._reach("alone" if STATES[self.state].engine == "absent" else "learning")

    def _reach(self, state: State) -> None:
        for after in way(self.state, state):
            self.move(after)

    def move(self, after: State) -> None:
        """Go over to a state that may follow the present one.

        Raises:
            RuntimeError: it may not follow.
            RolloutError: a server does not do its part.
        """
        if (self.state, after) not in MOVES:
            raise RuntimeError(f"trainer and engine share their GPUs: {after!r} does not follow {self.state!r}")
        log.info("memory of the GPUs: %s, then %s", self.state, after)
        have, want = STATES[self.state], STATES[after]
        aside, back = sorted(have.trainer - want.trainer), sorted(want.trainer - have.trainer)
        if aside or back:
            self._trainer(aside, back)
        for path in _PATHS.get((have.engine, want.engine), ()):
            at_once(self._servers, lambda server, path=path: self._post(server, path))
        self.state = after


_PATHS = {
    ("asleep", "weights"): ("/wake_up?tags=weights",),
    ("weights", "everything"): ("/wake_up?tags=kv_cache",),
    # What is still asked is broken off. At level 1 the weights would be kept on the host, and they are pushed anew.
    ("everything", "asleep"): ("/sleep?level=2",),
}
"""By what the engine has and is to have. What starts or ends servers is another's to do."""
