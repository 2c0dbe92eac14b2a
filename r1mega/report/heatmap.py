"""The load of every expert in every layer over a run, as one picture, from experts.jsonl.

Rows are experts, layer above layer; columns are steps; the colour is log2 of the load over the even one. Where there
are more of either than a picture can show, a cell stands for several and shows the one farthest from even.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from r1mega.errors import DataError
from r1mega.report.catalogue import EXPERT_LOAD
from r1mega.report.figures import new_axes
from r1mega.report.rows import Row, read_rows

T = TypeVar("T")

MAX_LINES, MAX_COLUMNS = 900, 600
"""Cells that are drawn in each direction; a figure has about so many dots."""
RANGE = 3.0
"""Colours end at 1/8 of the even load and at 8 times it; an expert without any load is at the lower end."""


def draw(run_dir: Path) -> Path | None:
    """Draw `run_dir`/figures/expert_load.png and return its path; None where no loads were kept.

    Raises DataError where experts.jsonl is malformed.
    """
    file = run_dir / "experts.jsonl"
    rows = read_rows(file) if file.is_file() else []
    if not rows:
        return None
    try:
        layers, cells = _cells(rows)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{file}: a row is not a step's loads: {error!r}") from error
    per_layer = len(cells) // len(layers)
    path = run_dir / "figures" / f"{EXPERT_LOAD}.png"
    first, last = rows[0]["step"], rows[-1]["step"]
    with new_axes(path, "Load of each expert", "optimiser step", "layer, its experts from top to bottom") as axes:
        # A column lies around its step; a single one needs some width of its own.
        half = max(last - first, 1) / max(len(cells[0]) - 1, 1) / 2
        image = axes.imshow(
            cells, aspect="auto", cmap="RdBu_r", vmin=-RANGE, vmax=RANGE, interpolation="nearest",
            extent=(first - half, last + half, len(cells), 0),
        )  # fmt: skip
        labelled = range(0, len(layers), math.ceil(len(layers) / 20))
        axes.set_yticks([(i + 0.5) * per_layer for i in labelled], [layers[i] for i in labelled])
        axes.hlines([i * per_layer for i in range(1, len(layers))], first - half, last + half, "black", linewidth=1.0)
        axes.grid(False)
        bar = axes.figure.colorbar(image, ax=axes, label="load over the even load")
        bar.set_ticks([-3, -2, -1, 0, 1, 2, 3], labels=["≤ 1/8", "1/4", "1/2", "1", "2", "4", "≥ 8"])
    return path


def _cells(rows: Sequence[Row]) -> tuple[list[str], list[list[float]]]:
    """The layers' names, and log2 of the relative load as lines (experts, layer after layer) of columns (rows)."""
    layers = list(rows[0]["load"])
    lines: list[list[float]] = []
    per_layer = max(1, MAX_LINES // len(layers))
    for layer in layers:
        loads = [_relative(row["load"][layer]) for row in rows]
        experts = [[column[e] for column in loads] for e in range(len(loads[0]))]
        lines += [_farthest(some) for some in _blocks(experts, per_layer)]
    return layers, [[_farthest_one(some) for some in _blocks(line, MAX_COLUMNS)] for line in lines]


def _relative(load: Sequence[int]) -> list[float]:
    even = sum(load) / len(load)
    return [max(-RANGE, min(RANGE, math.log2(count / even))) if count else -RANGE for count in load]


def _farthest(lines: Sequence[Sequence[float]]) -> list[float]:
    return [_farthest_one(values) for values in zip(*lines, strict=True)]


def _farthest_one(values: Sequence[float]) -> float:
    return max(values, key=abs)


def _blocks(values: Sequence[T], most: int) -> list[Sequence[T]]:
    """At most `most` runs of neighbours, of one size but for the last."""
    size = math.ceil(len(values) / most)
    return [values[i : i + size] for i in range(0, len(values), size)]
