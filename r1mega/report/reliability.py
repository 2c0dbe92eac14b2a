"""The reliability diagram of a reward model: what share is as it says, by how sure it is; from its last validation.

Rows of kind "validation" have `validation/bins`: [low, high, count, mean probability, observed share] of each bin
(`diagnostics.preferences.Bin`). The first validation is drawn pale beside the last.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1mega.errors import DataError
from r1mega.report.catalogue import RELIABILITY
from r1mega.report.figures import COLORS, new_axes
from r1mega.report.rows import Row, read_rows

KEY = "validation/bins"


def draw(run_dir: Path) -> Path | None:
    """Draw `run_dir`/figures/reliability.png and return its path; None where no validation has bins.

    Raises DataError where metrics.jsonl is malformed.
    """
    file = run_dir / "metrics.jsonl"
    rows = [row for row in (read_rows(file) if file.is_file() else []) if row.get("kind") == "validation"]
    rows = [row for row in rows if row.get(KEY)]
    if not rows:
        return None
    path = run_dir / "figures" / f"{RELIABILITY}.png"
    try:
        first, last = (_points(row[KEY]) for row in (rows[0], rows[-1]))
        least = float(rows[-1][KEY][0][0])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{file}: a validation's bins are not bins: {error!r}") from error
    with new_axes(path, "How sure the model is, and how right", "probability that the model gives", "share") as axes:
        axes.plot([least, 1], [least, 1], color="#7a7a7a", linewidth=1.0, linestyle="--", label="calibrated")
        if len(rows) > 1:
            _line(axes, first, f"step {_step(rows[0])}", COLORS[1], alpha=0.4)
        _line(axes, last, f"step {_step(rows[-1])} (numbers: how many)", COLORS[0])
        for x, y, count in last:
            axes.annotate(f"{count:,}", (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=8)
        axes.set_xlim(least - 0.02, 1.02)
        axes.set_ylim(-0.02, 1.08)
        axes.legend(loc="best")
    return path


def _points(bins: Any) -> list[tuple[float, float, int]]:
    """Mean probability, observed share and count of the bins that have members."""
    return [(float(p), float(share), int(count)) for _, _, count, p, share in bins if count]


def _line(axes: Any, points: Sequence[tuple[float, float, int]], label: str, color: str, alpha: float = 1.0) -> None:
    xs, ys = [x for x, *_ in points], [y for _, y, _ in points]
    axes.plot(xs, ys, color=color, alpha=alpha, marker="o", markersize=4, label=label)


def _step(row: Row) -> str:
    return str(row.get("step"))
