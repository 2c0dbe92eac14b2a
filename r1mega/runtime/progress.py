"""Progress of long work: a bar with rate and time left on a terminal, a line now and then elsewhere."""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 15.0
"""Seconds between lines where there is no terminal to draw a bar on."""


class Bar:
    """Counts `total` units of work of one kind.

    Use as a context manager; `advance(note=...)` after each unit. The note stands behind the bar.
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

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.quiet:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
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

    def advance(self, count: float = 1, note: str = "") -> None:
        self.done += count
        elapsed = time.monotonic() - self._started
        rate = (self.done - self._done_before) / max(elapsed, 1e-9)
        if self._progress is not None:
            self._progress.update(self._task, completed=self.done, rate=f"{rate:.2f} {self.unit}/s", note=note)
        elif time.monotonic() - self._last_line > LINE_EVERY_S or self.done >= self.total:
            self._last_line = time.monotonic()
            left = (self.total - self.done) / max(rate, 1e-9)
            line = f"{_shown(self.done)}/{_shown(self.total)} {self.unit}s, {rate:,.2f} {self.unit}/s"
            print(f"{self.title}: {line}, {left:.0f} s left  {note}", flush=True)


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
