"""Progress of long work: a bar with rate and time left on a terminal, a line now and then elsewhere."""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from r1mega.runtime import heartbeat

LINE_EVERY_S = 15.0
"""Seconds between lines where there is no terminal to draw a bar on."""


class Bar:
    """Counts `total` units of work of one kind.

    Use as a context manager; `advance(note=...)` after each unit. The note stands behind the bar, and so does what is
    waited for meanwhile (`say`).
    """

    def __init__(
        self, title: str, total: float, *, unit: str = "step", done: float = 0, silent: bool = False
    ) -> None:
        """silent: count and show nothing, as on every rank but the first."""
        self.title, self.total, self.unit = title, total, unit
        self.done, self._done_before = done, done
        self._console = Console(quiet=silent)
        self._started = self._last_line = time.monotonic()
        self._progress: Progress | None = None
        self._said = set[str]()

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.quiet:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),  # 80 columns have room for the note
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            done = int(self.done)
            self._task = self._progress.add_task(self.title, total=self.total, completed=done, rate="", note="")
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def say(self, what: str, text: str) -> None:
        """What is waited for, or what has come of the unit in hand: behind the bar.

        Args:
            what: it is about. In a log the first word of each stands at once, later ones now and then.
        """
        heartbeat.detail(f"{what}: {text}")
        if self._progress is not None:
            self._progress.update(self._task, note=f"{what}: {text}")
        elif what not in self._said or time.monotonic() - self._last_line > LINE_EVERY_S:
            self._line(f"{what}: {text}")
        self._said.add(what)

    def advance(self, count: float = 1, note: str = "") -> None:
        """Units are done. Time may run past the total; what is shown does not."""
        self.done += count
        elapsed = time.monotonic() - self._started
        rate = (self.done - self._done_before) / max(elapsed, 1e-9)
        done = min(self.done, self.total)
        if self._progress is not None:
            self._progress.update(self._task, completed=done, rate=f"{rate:.2f} {self.unit}/s", note=note)
        elif time.monotonic() - self._last_line > LINE_EVERY_S or self.done >= self.total:
            left = (self.total - done) / max(rate, 1e-9)
            line = f"{_shown(done)}/{_shown(self.total)} {self.unit}s, {rate:,.2f} {self.unit}/s"
            self._line(f"{line}, {left:.0f} s left  {note}".rstrip())

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        if not self._console.quiet:
            print(f"{self.title}: {text}", flush=True)


def _shown(count: float) -> str:
    return f"{count:,.0f}" if float(count).is_integer() else f"{count:.4g}"


class Stopwatch:
    """Wall-clock seconds between entering and leaving."""

    seconds = 0.0

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.monotonic() - self._began
