"""The figure of reward hacking: trained rewards beside what they are held against, and when a run was warned of it.

Drawn of what the detector saw (`diagnostics.hacking`): the hacking/REWARD/... of steps' lines, means over the answers
that have both, and the rows of kind "hacking". Trained rewards have the left axis, truths the right one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1mega.diagnostics.hacking import SYMPTOMS
from r1mega.report.catalogue import HACKING
from r1mega.report.figures import COLORS, new_axes
from r1mega.report.rows import Row, number, read_rows, series
from r1mega.report.text import visible

MAX_LABEL = 30
"""Characters of a name in the legend."""


def draw(run_dir: Path) -> Path | None:
    """Draw `run_dir`/figures/hacking.png and return its path; None where nothing was held against anything.

    Raises DataError where metrics.jsonl is malformed.
    """
    file = run_dir / "metrics.jsonl"
    rows = read_rows(file) if file.is_file() else []
    curves = _curves(rows)
    trained = {name: points for (name, other), points in curves.items() if other == "trained"}
    truths = {pair: points for pair, points in curves.items() if pair[1] not in ("trained", *SYMPTOMS)}
    if not trained:
        return None
    path = run_dir / "figures" / f"{HACKING}.png"
    with new_axes(path, "Trained rewards and held-out truths", "optimiser step", "trained reward (solid)") as axes:
        colors = iter(COLORS * (len(curves) // len(COLORS) + 1))
        lines = [_line(axes, points, next(colors), _short(name), "-") for name, points in trained.items()]
        if truths:
            right = axes.twinx()
            right.set_ylabel("truth (dashed)")
            right.grid(False)
            right.spines["right"].set_visible(True)
            for (name, truth), points in truths.items():
                label = _short(truth) + (f", of {_short(name)}" if len(trained) > 1 else "")
                lines.append(_line(right, points, next(colors), label, "--"))
            if all(0 <= y <= 1 for _, ys in truths.values() for y in ys):
                right.set_ylim(-0.02, 1.02)
        for grade, style in (("parted", "-"), ("suspected", ":")):
            warned = [row for row in rows if row.get("kind") == "hacking" and row.get("grade") == grade]
            steps = sorted({step for row in warned if (step := number(row, "step")) is not None})
            marked = [axes.axvline(step, color="black", linestyle=style, linewidth=1.2) for step in steps]
            if marked:
                marked[0].set_label(f"warned: {grade}")
                lines.append(marked[0])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(lines, [line.get_label() for line in lines], loc="best")
    return path


def _curves(rows: Sequence[Row]) -> dict[tuple[str, str], tuple[list[float], list[float]]]:
    """(trained reward, what it is held against or "trained") -> its points, a step each."""
    steps = (row for row in rows if row.get("kind") == "train")
    names = dict.fromkeys(key for row in steps for key in row if key.startswith("hacking/"))
    pairs = {key: tuple(key.split("/")[1:]) for key in names}
    return {pair: series(rows, "train", "step", key) for key, pair in pairs.items() if len(pair) == 2}


def _line(axes: Any, points: tuple[list[float], list[float]], color: str, label: str, style: str) -> Any:
    (line,) = axes.plot(*points, color=color, linestyle=style, label=label)
    return line


def _short(name: str) -> str:
    shown = visible(name)
    return shown if len(shown) <= MAX_LABEL else f"{shown[:MAX_LABEL]}…"
