"""What metrics.jsonl of a stage says, read as it grows: curves, the newest row of each kind, what came of late."""

from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r1mega.report.catalogue import FIGURES, Curve, Figure
from r1mega.report.live.tail import Tail
from r1mega.report.live.thinned import Thinned
from r1mega.report.rows import Row, number

RECENT_ROWS = 400
"""Rows of training steps that are kept whole, for what is compared with the run's own past."""
PHASE = "seconds/"
MOST_CURVES = 200
"""A run names its phases itself: no file of metrics fills the memory with names."""

ROLLOUT_RATE, UPDATE_RATE = "live/rollout_rate", "live/update_rate"

FIRST = (
    "reward",
    "pass_at_1",
    "loss",
    "response_length",
    "kl",
    "mismatch",
    "mismatch_kl",
    "grad_norm",
    "speed",
    "phases",
    "entropy",
)
"""Figures in the order in which they are looked at; the rest of the catalogue follows."""


def _live_figures() -> tuple[Figure, ...]:
    speed = Figure(
        "speed",
        "Speed",
        "tokens per second",
        (Curve(ROLLOUT_RATE, "rollout"), Curve(UPDATE_RATE, "update")),
        "Of each phase by itself. A level that falls while answers keep their length is a machine, not the policy.",
    )
    phases = Figure(
        "phases",
        "Seconds by phase",
        "seconds of a line",
        (),  # whichever the run has
        "What stands on a step's line; a rollout's phases stand on its first step's.",
        log=True,
    )
    all_of_them = {figure.file: figure for figure in (*FIGURES, speed, phases)}
    order = [*FIRST, *(name for name in all_of_them if name not in FIRST)]
    return tuple(all_of_them[name] for name in order)


LIVE_FIGURES = _live_figures()
_BARS = {(curve.kind, curve.key) for figure in FIGURES for curve in figure.curves if curve.bars}
_BARS.add(("train", "reward/total"))  # in a report a bar at every step would hide the curve; here it is a band
_KNOWN = {(curve.kind, curve.key) for figure in LIVE_FIGURES for curve in figure.curves}


class Feed:
    """The metrics of one stage."""

    def __init__(self, stage: Path) -> None:
        self.tail = Tail(stage / "metrics.jsonl")
        self.rollbacks = 0
        """How often steps went back, within the file or because it was written anew."""
        self._clear()

    def _clear(self) -> None:
        self.curves: dict[tuple[str, str], Thinned] = {}
        """By kind of row and key."""
        self.newest: dict[str, Row] = {}
        """The last row of each kind."""
        self.recent: deque[Row] = deque(maxlen=RECENT_ROWS)
        """Of training steps."""
        self.counts: Counter[str] = Counter()
        """Rows of each kind."""
        self.others: deque[Row] = deque(maxlen=RECENT_ROWS)
        """Neither of steps nor of evaluations: what happened on the way."""
        self._generation = self.tail.generation

    @property
    def version(self) -> str:
        """Another one where curves have changed otherwise than by growing."""
        joined = sum(curve.joined for curve in self.curves.values())
        return f"{self.tail.generation}.{self.rollbacks}.{joined}"

    def refresh(self) -> None:
        """Read on by at most `tail.CHUNK_BYTES`; `tail.behind` says how much is left.

        Raises:
            OSError: the file cannot be read.
        """
        rows = self.tail.read()
        if self.tail.generation != self._generation:
            self.rollbacks += 1
            self._clear()
        for end, row in rows:
            self._take(row, end)

    def _take(self, row: Row, end: int) -> None:
        kind, step = str(row.get("kind")), number(row, "step")
        if step is None:
            return
        before = number(self.newest.get(kind, {}), "step")
        if before is not None and step <= before:
            self._go_back(kind, step)
        self.newest[kind] = row
        self.counts[kind] += 1
        for key, value, low, high in _figures(row, kind):
            if (kind, key) in self.curves or len(self.curves) < MOST_CURVES:
                self._curve(kind, key).add(step, value, end, low, high)
        if kind == "train":
            self.recent.append(row)
        elif not kind.startswith(("eval", "validation")):
            self.others.append(row)

    def _go_back(self, kind: str, step: float) -> None:
        """Steps are taken again: what was measured from `step` on counts no more, of all kinds where steps of
        training are."""
        if kind == "train":
            self.rollbacks += 1
            while self.recent and (number(self.recent[-1], "step") or 0.0) >= step:
                self.recent.pop()
        for (of, _), curve in self.curves.items():
            if kind in ("train", of):
                curve.drop_from(step)

    def _curve(self, kind: str, key: str) -> Thinned:
        if (kind, key) not in self.curves:
            self.curves[kind, key] = Thinned(interval=(kind, key) in _BARS)
        return self.curves[kind, key]

    def phases(self) -> list[str]:
        """Names of the phases that training steps have spent seconds in."""
        return [key.removeprefix(PHASE) for kind, key in self.curves if kind == "train" and key.startswith(PHASE)]

    def figures(self) -> Iterator[tuple[Figure, list[Curve]]]:
        """Figures that have anything to show, in their order, each with those of its curves that have."""
        for figure in LIVE_FIGURES:
            curves = list(figure.curves)
            if figure.file == "phases":
                curves = [Curve(PHASE + name, name) for name in self.phases()]
            shown = [curve for curve in curves if len(self.curves.get((curve.kind, curve.key), ()))]
            if shown:
                yield figure, shown


def _figures(row: Row, kind: str) -> Iterator[tuple[str, float, float | None, float | None]]:
    """What of a row is drawn: key, value, and the ends of its interval where it has one."""
    if kind == "train":
        yield from ((key, value, None, None) for key, value in rates(row).items())
    for key in row:
        is_phase = kind == "train" and key.startswith(PHASE)
        if (is_phase or (kind, key) in _KNOWN) and (value := number(row, key)) is not None:
            bars = (kind, key) in _BARS
            low, high = (number(row, f"{key}_{end}") if bars else None for end in ("low", "high"))
            yield key, value, low, high


def rates(row: Row) -> dict[str, float]:
    """Tokens a second of a training step's line, of the phases that the line has seconds of."""
    found: dict[str, float] = {}
    for key, tokens, phase in ((ROLLOUT_RATE, "rollout/tokens", "rollout"), (UPDATE_RATE, "tokens", "update")):
        num, seconds = number(row, tokens), number(row, PHASE + phase)
        if num is not None and seconds:
            found[key] = num / seconds
    return found


def curves_since(feed: Feed, end: int) -> list[dict[str, Any]]:
    """Figures for a page that has drawn all rows up to the one that ends at `end`."""
    told: list[dict[str, Any]] = []
    for figure, curves in feed.figures():
        lines: list[dict[str, Any]] = []
        for curve in curves:
            thinned = feed.curves[curve.kind, curve.key]
            start, points = thinned.since(end)
            lines.append(
                {
                    "id": f"{curve.kind}:{curve.key}",
                    "label": curve.label,
                    "bars": (curve.kind, curve.key) in _BARS,
                    "dashed": curve.dashed,
                    "from": start,
                    "points": points,
                }
            )
        told.append(
            {
                "id": figure.file,
                "title": figure.title,
                "unit": figure.y_label,
                "says": figure.caption,
                "log": figure.log,
                "share": figure.share,
                "main": figure.file in FIRST,
                "curves": lines,
            }
        )
    return told
