"""Rows of a run directory: metrics.jsonl, summary.json and samples/*.jsonl, as plain dictionaries."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1mega.errors import DataError

Row = dict[str, Any]

MAX_SAMPLE_CHARS = 20_000_000
"""How much of a file of samples is read: a rollout of the report's size is a gigabyte of text."""


def read_rows(file: Path, *, max_chars: float = math.inf) -> list[Row]:
    """Objects of a JSONL file. A last line without its newline is left out: a run may be writing it.

    Lines that begin after `max_chars` characters are left out. Raises DataError where the file is missing or a line
    is no JSON object.
    """
    rows, num_chars = [], 0
    try:
        with file.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if num_chars > max_chars or not line.endswith("\n"):
                    break
                num_chars += len(line)
                if line.strip():
                    rows.append(_object(line, f"{file}, line {number}", "a row"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {error}") from error
    return rows


def read_object(file: Path) -> Row | None:
    """The JSON object in a file, None where there is no file. Raises DataError when it is no JSON object."""
    if not file.is_file():
        return None
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {error}") from error
    return _object(text, str(file), "it")


def _object(text: str, where: str, what: str) -> Row:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: {what} is a JSON object, not {type(value).__name__}")
    return value


def read_summary(run_dir: Path) -> Row | None:
    """summary.json of a run, None while there is none. Raises DataError when it is no JSON object."""
    return read_object(run_dir / "summary.json")


def early_and_late(run_dir: Path, num: int) -> dict[int, list[Row]]:
    """Answers of the earliest and of the latest samples/step_N.jsonl, by step: the first to each of `num` questions.

    Questions that both have come first, in the same order, else as sampled. Empty where there are no samples; one
    step where there is one file.
    """
    steps = sorted(
        (int(name[1]), file)
        for file in (run_dir / "samples").glob("step_*.jsonl")
        if (name := re.fullmatch(r"step_(\d+)\.jsonl", file.name))
    )
    firsts: dict[int, dict[str, Row]] = {}
    for step, file in steps[:1] + steps[1:][-1:]:
        firsts[step] = {}
        for row in read_rows(file, max_chars=MAX_SAMPLE_CHARS):
            firsts[step].setdefault(str(row.get("question")), row)
    common = sorted(set.intersection(*map(set, firsts.values()))) if firsts else []
    return {step: list(({q: rows[q] for q in common} | rows).values())[:num] for step, rows in firsts.items()}


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
