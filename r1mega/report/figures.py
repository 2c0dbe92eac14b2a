"""Figures of a run from its metrics.jsonl: the report's Figures 2 and 3 and the health of training beside them.

A curve whose metric is absent is left out, and a figure without curves is not written. Labels name the unit.
A long curve is thinned out to what a figure can show, its spikes kept.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from r1mega.report.catalogue import FIGURES, Curve, Figure
from r1mega.report.rows import Row, number, read_rows, read_summary, series
from r1mega.report.runs import learns_from

COLORS = ("#1f5fa8", "#d1642a", "#3a8a5c", "#8a4f9e", "#7a7a7a")
STYLE: dict[Any, Any] = {
    "figure.figsize": (7.0, 4.2),
    "figure.dpi": 150,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
MAX_POINTS = 2000
"""Points of a curve that are drawn; a figure is about a thousand dots wide."""
LOG_RANGE = 1e-6
"""Share of the largest value below which nothing is drawn on a log axis."""
SMOOTHED_FROM = 50
"""Points from which on a curve of training steps is drawn pale, with its running mean on top."""


def draw(run_dir: Path, out_dir: Path | None = None, *, again: bool = True) -> list[Path]:
    """Draw what the run has metrics for as PNG files; into the run's `figures/` unless told otherwise.

    Args:
        again: False: figures that are younger than metrics.jsonl stay as they are.

    Returns the files. Raises DataError where metrics.jsonl is missing or malformed.
    """
    metrics = run_dir / "metrics.jsonl"
    rows, changed = read_rows(metrics), metrics.stat().st_mtime_ns
    out_dir = out_dir or run_dir / "figures"

    def drawn(figure: Figure) -> Path | None:
        path = out_dir / f"{figure.file}.png"
        stays = not again and path.is_file() and path.stat().st_mtime_ns > changed
        return path if stays else _draw(figure, rows, path)

    return [path for figure in FIGURES if (path := drawn(figure)) is not None]


def pass_at_1(runs: Mapping[str, Path | Sequence[Path]], out: Path) -> Path | None:
    """Held-out pass@1 of several lines of training from one base against time: RL beside its control.

    Args:
        runs: label -> run directory, or run directories in the order in which they ran. Training runs put their
            evaluations at the seconds trained so far; an evaluate run stands at the end of the runs before it,
            so [control, its evaluate run] shows a stage that does not evaluate itself.
        out: the PNG to write.

    Returns: `out`, or None when no run has an evaluation.
    """
    lines = {
        label: points
        for label, paths in runs.items()
        if (points := _over_time([paths] if isinstance(paths, Path) else paths))
    }
    if not lines:
        return None
    title = "Held-out pass@1 over training time"
    with new_axes(out, title, "training time, minutes", "pass@1 (share of answers; bars: 95%, by question)") as axes:
        for (label, points), color in zip(lines.items(), _colors(len(lines)), strict=True):
            minutes = [seconds / 60 for seconds, *_ in points]
            shares = [share for _, share, *_ in points]
            errors = _arms(shares, [low for *_, low, _ in points], [high for *_, high in points])
            axes.errorbar(minutes, shares, yerr=errors, color=color, marker="o", markersize=4, capsize=3, label=label)
            axes.annotate(
                f"{shares[-1]:.2f}", (minutes[-1], shares[-1]), (8, 0), textcoords="offset points",
                va="center", color=color, fontweight="bold",
            )  # fmt: skip
        axes.set_ylim(0, 1.02)
        axes.margins(x=0.08)
        axes.legend(loc="best")
    return out


def _over_time(run_dirs: Sequence[Path]) -> list[tuple[float, float, float, float]]:
    """(seconds of training, pass@1, the ends of its interval) of each evaluation."""
    points, trained = [], 0.0
    for run_dir in run_dirs:
        summary = read_summary(run_dir) or {}
        trains = learns_from(summary.get("stage")) != "nothing"
        metrics = run_dir / "metrics.jsonl"
        rows = read_rows(metrics) if metrics.is_file() else []
        steps = [row for row in rows if row.get("kind") == "train"]
        evals = [row for row in rows if row.get("kind") == "eval"]
        for row in evals:
            share, step = number(row, "eval/strict"), number(row, "step")
            if share is not None and step is not None:
                seconds = sum(_seconds(s) for s in steps if (number(s, "step") or 0) <= step)
                points.append((trained + seconds, share, *_ends(row, "eval/strict_low", "eval/strict_high", share)))
        if not evals:
            rate = ((summary.get("eval") or {}).get("after") or {}).get("strict") or {}
            at = trained + (number(summary, "seconds") or 0.0 if trains else 0.0)
            if (share := number(rate, "mean")) is not None:
                points.append((at, share, *_ends(rate, "low", "high", share)))
        if trains:
            trained += sum(map(_seconds, steps)) or number(summary, "seconds") or 0.0
    return points


def _ends(row: Row, low: str, high: str, share: float) -> tuple[float, float]:
    """Of an interval; where a run of an older version has none, the share itself, which draws no bar."""
    found = number(row, low), number(row, high)
    return tuple(share if end is None else end for end in found)  # pyright: ignore[reportReturnType]


def _arms(ys: Sequence[float], low: Sequence[float], high: Sequence[float]) -> list[list[float]]:
    """[2, points]: how far each bar reaches below and above its point."""
    below = [max(y - end, 0.0) for y, end in zip(ys, low, strict=True)]
    return [below, [max(end - y, 0.0) for y, end in zip(ys, high, strict=True)]]


def _seconds(row: Row) -> float:
    """Time that a training step took, all of its phases (`seconds/...`) together."""
    return sum(number(row, key) or 0.0 for key in row if key.startswith("seconds/"))


def _draw(figure: Figure, rows: Sequence[Row], path: Path) -> Path | None:
    lines = [(curve, *series(rows, curve.kind, "step", curve.key)) for curve in figure.curves]
    if figure.log:  # a zero has no place on a log axis, and what rounding left of one would stretch it to 1e-16
        least = LOG_RANGE * max((y for _, _, ys in lines for y in ys), default=0.0)
        kept = [[(x, y) for x, y in zip(xs, ys, strict=True) if y > least > 0] for _, xs, ys in lines]
        lines = [
            (line[0], [x for x, _ in some], [y for _, y in some]) for line, some in zip(lines, kept, strict=True)
        ]
    if not any(xs for _, xs, _ in lines):
        return None
    changes = {step for row in rows if row.get("kind") == "schedule" and (step := number(row, "step")) is not None}
    with new_axes(path, figure.title, "optimiser step", figure.y_label) as axes:
        for step in sorted(changes):
            axes.axvline(step, color="#9a9a9a", linestyle=":", linewidth=1.2, zorder=0.5)
            axes.set_xlabel("optimiser step (dotted: settings change)")
        for (curve, xs, ys), color in zip(lines, _colors(len(lines)), strict=True):
            if len(xs) >= SMOOTHED_FROM and curve.kind == "train" and not figure.log:
                half = max(2, len(xs) // 40)
                axes.plot(*_thin(xs, ys), color=color, alpha=0.3, linewidth=0.9)
                axes.plot(*_thin(xs, _running_mean(ys, half)), color=color, label=curve.label)
                dotted = "; dotted: settings change" if changes else ""
                axes.set_xlabel(f"optimiser step (bold: mean of {2 * half + 1} steps{dotted})")
            elif xs:
                xs, ys = _thin(xs, ys)
                axes.errorbar(
                    xs, ys, yerr=_bars(rows, curve, xs, ys) if curve.bars else None, capsize=3, color=color,
                    label=curve.label, linestyle="--" if curve.dashed else "-", markersize=4,
                    # Few points stand alone; hundreds would be a band of dots.
                    marker="o" if curve.kind != "train" or len(xs) < 3 else "",
                )  # fmt: skip
        if figure.log:
            axes.set_yscale("log")
        elif figure.share:
            axes.set_ylim(-0.02, 1.02)  # a curve that lies at 0 shows
        elif min(y for _, _, ys in lines for y in ys) >= 0:
            axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if sum(bool(xs) for _, xs, _ in lines) > 1:
            axes.legend(loc="best")
    return path


def _bars(rows: Sequence[Row], curve: Curve, xs: Sequence[float], ys: Sequence[float]) -> list[list[float]]:
    """[2, points]; nothing where a row has no interval."""
    ends = (
        dict(zip(*series(rows, curve.kind, "step", f"{curve.key}_{end}"), strict=True)) for end in ("low", "high")
    )
    low, high = ([of.get(x, y) for x, y in zip(xs, ys, strict=True)] for of in ends)
    return _arms(ys, low, high)


def _thin(xs: Sequence[float], ys: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """About `MAX_POINTS` of the points: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(xs) <= MAX_POINTS:
        return xs, ys
    size = math.ceil(2 * len(xs) / MAX_POINTS)
    stretches = (range(i, min(i + size, len(xs))) for i in range(0, len(xs), size))
    ends = ((min(s, key=ys.__getitem__), max(s, key=ys.__getitem__)) for s in stretches)
    kept = sorted({0, len(xs) - 1, *itertools.chain.from_iterable(ends)})
    return [xs[i] for i in kept], [ys[i] for i in kept]


def _running_mean(ys: Sequence[float], half: int) -> list[float]:
    """Mean of each point with `half` neighbours on either side, fewer towards the ends: the ends stay as they are."""
    sums = [0.0, *itertools.accumulate(ys)]
    reach = [min(half, i, len(ys) - 1 - i) for i in range(len(ys))]
    return [(sums[i + r + 1] - sums[i - r]) / (2 * r + 1) for i, r in enumerate(reach)]


def _colors(num: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(num)]


@contextlib.contextmanager
def new_axes(path: Path, title: str, x_label: str, y_label: str) -> Iterator[Any]:
    """Fresh axes in the house style; saved to `path` when the block ends without an error."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas  # no pyplot: it would pick a window system

    with mpl.rc_context(STYLE):
        canvas = Canvas(layout="constrained")
        axes = canvas.add_subplot()
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        yield axes
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        canvas.savefig(temporary, format="png")
        temporary.replace(path)
