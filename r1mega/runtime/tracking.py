"""Where metrics go: metrics.jsonl (always) and Weights & Biases (offline unless logged in)."""

import json
import math
import os
from pathlib import Path
from typing import Any

from r1mega.runtime.mirror import Mirror


class Tracker:
    """Writes one JSON line a step and mirrors it to W&B.

    A line is {"kind": "train" | "eval", "step": optimiser steps taken, ...}; a value that is not finite is
    written as null, since NaN is not JSON.
    """

    def __init__(self, run_dir: Path, mirror: Mirror | None = None) -> None:
        """mirror: which others than the run's own end close."""
        self._file = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        self._mirror = mirror
        if mirror is not None:
            mirror.stands(self._file.tell())

    def log(self, kind: str, step: int, metrics: dict[str, Any]) -> None:
        """Append the metrics of one step."""
        row = {"kind": kind, "step": step, **{k: _json_number(v) for k, v in metrics.items()}}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._mirror is not None:
            numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
            self._mirror.log(numbers | {"step": step, "kind": kind})

    def sync(self) -> None:
        """Make the lines survive the machine: a checkpoint must not know more steps than they do."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
