"""What a page or a terminal shows of a run, kept between looks: any number of them may ask at the same time."""

import math
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r1mega.report.live.answers import MAX_CHARS, NewestAnswers
from r1mega.report.live.chain import RunFacts, RunReader
from r1mega.report.live.feed import Feed, curves_since
from r1mega.report.live.spans import moment
from r1mega.report.live.status_text import as_json
from r1mega.report.text import cut, visible

LOOK_S = 2.0
"""Seconds for which what was read of the run's small files is not read again."""
MAX_FEEDS = 4
"""Stages whose curves are kept; the one that was looked at longest ago goes first."""


class Watcher:
    """A run that may begin later than this."""

    def __init__(self, run_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self.run_dir = run_dir
        self._clock = clock
        self._reader = RunReader(run_dir, may_wait=True)
        self._lock = threading.Lock()
        self._looked = -math.inf
        self._facts: RunFacts | None = None
        self._feeds: dict[str, Feed] = {}
        self._answers: tuple[Path, NewestAnswers] | None = None
        self._own = secrets.token_hex(4)
        """Versions of curves are this process's: a page that outlived another one draws them anew."""

    def facts(self) -> RunFacts:
        """The run as it was at most `LOOK_S` seconds ago."""
        with self._lock:
            return self._look()

    def _look(self) -> RunFacts:
        now = self._clock()
        if self._facts is None or not 0 <= now - self._looked < LOOK_S:
            self._facts, self._looked = self._reader.read(now), now
        return self._facts

    def feed(self, stage: Path, name: str) -> Feed:
        """A stage's metrics, read on by one chunk."""
        with self._lock:
            return self._read_on(stage, name)

    def _read_on(self, stage: Path, name: str) -> Feed:
        feed = self._feeds.pop(name, None) or Feed(stage)
        self._feeds[name] = feed
        while len(self._feeds) > MAX_FEEDS:
            self._feeds.pop(next(iter(self._feeds)))
        feed.refresh()
        return feed

    def view(self, stage: str = "", version: str = "", at: int = 0, answers: str = "") -> dict[str, Any]:
        """All that a page shows, as JSON.

        Args:
            stage: the stage whose curves are shown, by name; of a name that there is not the current one's.
            version, at: of the curves that the page has; it gets what came since, or all where they have changed.
            answers: the name of the answers that it has; it gets others alone.
        """
        with self._lock:
            facts = self._look()
            chosen = next((s for s in facts.stages if visible(s.name) == stage), facts.current)
            told: dict[str, Any] = {
                "status": as_json(facts),
                "read": moment(facts.now),
                "stage": chosen.name if chosen else None,
                "feed": None,
                "answers": None,
            }
            if chosen is None:
                return shown(told)
            told["feed"] = self._feed_since(chosen.path, chosen.name, version, at)
            if self._answers is None or self._answers[0] != chosen.path:
                self._answers = chosen.path, NewestAnswers(chosen.path)
            name, found = self._answers[1].look()
            name = visible(f"{chosen.name}.{name}")
            told["answers"] = {"id": name, "same": name == answers, "rows": [] if name == answers else found}
            return shown(told)

    def _feed_since(self, stage: Path, name: str, version: str, at: int) -> dict[str, Any]:
        try:
            feed = self._read_on(stage, name)
        except OSError as error:
            return {"version": "", "at": 0, "whole": True, "figures": [], "faults": [f"metrics.jsonl: {error}"]}
        now = f"{self._own}.{name}.{feed.version}"
        whole = now != version or at > feed.tail.offset
        faults = [
            f"{number:,} lines of metrics.jsonl {what}"
            for number, what in (
                (feed.tail.broken, "could not be read"),
                (feed.tail.too_long, "were too long, and passed over"),
            )
            if number
        ]
        return {
            "version": now,
            "at": feed.tail.offset,
            "behind": feed.tail.behind,
            "whole": whole,
            "rollbacks": feed.rollbacks,
            "figures": curves_since(feed, -1 if whole else at),
            "faults": faults,
        }


def shown(value: Any) -> Any:
    """As JSON, which knows no number that is not finite, and as text that can do nothing where it is shown."""
    if isinstance(value, str):
        return visible(cut(value, MAX_CHARS))
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): shown(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(part) for part in value]
    return value
