"""Rows of a run directory: metrics.jsonl, summary.json and samples/*.jsonl, as plain dictionaries."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1mega.errors import DataError

Row = dict[str, Any]


def read_rows(file: Path) -> list[Row]:
    """Objects of a JSONL file. A last line without its newline is left out: a run may be writing it.

    Raises DataError where the file is missing or a line is no JSON object.
    """
    try:
        *lines, _unfinished = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}: a row is a JSON object, not {type(row).__name__}")
        rows.append(row)
    return rows


def read_summary(run_dir: Path) -> Row | None:
    """summary.json of a run, None while there is none. Raises DataError when it is no JSON object."""
    file = run_dir / "summary.json"
    if not file.is_file():
        return None
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file}: {error}") from error
    if not isinstance(summary, dict):
        raise DataError(f"{file}: a summary is a JSON object, not {type(summary).__name__}")
    return summary


def number(row: Row, key: str) -> float | None:
    """A finite number under `key`, else None: a metric may be absent, null or of another kind."""
    value = row.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)


def series(rows: Sequence[Row], kind: str, x: str, y: str) -> tuple[list[float], list[float]]:
    """The points (x, y) of the rows of `kind` that have both, in order of x."""
    pairs = [(number(row, x), number(row, y)) for row in rows if row.get("kind") == kind]
    points = sorted((a, b) for a, b in pairs if a is not None and b is not None)
    return [a for a, _ in points], [b for _, b in points]
