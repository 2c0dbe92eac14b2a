"""Servers that failed: bring them back, and give up on one that fails again and again."""

import logging
import re
from dataclasses import dataclass

from r1mega.errors import RolloutError
from r1mega.rollout.server import Server

log = logging.getLogger(__name__)


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

    def tell(self) -> None:
        """Say it in the log."""
        log.warning("%s serves again after %.0f s: %s", self.url, self.seconds, self.reason)


class Restarts:
    """Restarts of each server in a row, without a success in between."""

    def __init__(self) -> None:
        self._in_a_row: dict[Server, int] = {}
        self._causes: dict[Server, str] = {}
        """Of the failure before, as far as the log says."""

    def succeeded(self, server: Server) -> None:
        """It did what it was asked: the next failure is the first one again."""
        self._in_a_row.pop(server, None)
        self._causes.pop(server, None)

    def bring_back(self, server: Server, reason: str) -> None:
        """Restart a server until it is ready.

        Raises:
            RolloutError: it failed twice in a row at the same error, which no restart mends; or was restarted
                `layout.max_restarts` times in a row. Ends in the last `reason`.
        """
        while True:
            cause = server.cause()
            if cause is not None and _same(cause, self._causes.get(server)):
                raise RolloutError(
                    f"gave up on the vLLM server at {server.url}: it failed again as before, and restarting does not "
                    f"mend it: {cause}. Its log: {server.log_file}. Last: {reason}"
                )
            if cause is not None:
                self._causes[server] = cause
                reason = reason if cause in reason else f"{reason}. The last error in its log: {cause}"
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


def _same(cause: str, before: str | None) -> bool:
    """Whether two errors are one, whatever process, address or port they speak of."""
    return before is not None and _NUMBERS.sub("", cause) == _NUMBERS.sub("", before)


_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d{4,}")
