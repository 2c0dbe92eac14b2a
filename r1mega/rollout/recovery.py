"""Servers that failed: bring them back, and give up on one that fails again and again."""

from dataclasses import dataclass

from r1mega.errors import RolloutError
from r1mega.rollout.server import Server


@dataclass(frozen=True)
class Recovery:
    """A server that failed and serves again."""

    url: str
    """Where it was when it failed."""
    reason: str
    seconds: float
    """From when its failure was noticed until it could serve again."""
    requests_reissued: int
    """Requests that it had been sent and not answered; they were asked again, of it or of another server."""


class Restarts:
    """Restarts of each server in a row, without a success in between."""

    def __init__(self) -> None:
        self._in_a_row: dict[Server, int] = {}

    def succeeded(self, server: Server) -> None:
        """It did what it was asked: the next failure is the first one again."""
        self._in_a_row.pop(server, None)

    def bring_back(self, server: Server, reason: str) -> None:
        """Restart a server until it is ready.

        Raises:
            RolloutError: it was restarted `layout.max_restarts` times in a row; ends in the last `reason`.
        """
        while True:
            done = self._in_a_row.get(server, 0)
            if done >= server.layout.max_restarts:
                raise RolloutError(
                    f"gave up on the vLLM server at {server.url} after {done} restarts in a row without success "
                    f"(rollout.max_restarts). Last: {reason}"
                )
            self._in_a_row[server] = done + 1
            try:
                server.restart(reason)
                return
            except RolloutError as error:
                reason = str(error)
