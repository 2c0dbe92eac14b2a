"""A run's metrics and journal while it writes them, and waiting for them."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from test_stages import LIMIT_S


def step_s(metrics: Path) -> float:
    """Mean seconds of an optimiser step so far, on this machine; one before the first."""
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []  # the last one may be half written
    seconds = [row["seconds/update"] for row in map(json.loads, lines) if row["kind"] == "train"]
    return sum(seconds) / len(seconds) if seconds else 1.0


def until(event: Callable[[], bool], process: Any = None) -> bool:
    """Wait for it; whether it came before the process, if one is given, had ended."""
    end = time.monotonic() + LIMIT_S
    while not event():
        if process is not None and process.poll() is not None:
            return event()
        assert time.monotonic() < end
        time.sleep(0.02)
    return True


def further(process: Any, seconds: float, metrics: Path, line: int) -> None:
    """Wait so long, but at most until it has written this line: a fast machine's run would be done by then."""
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() > end or num_lines(metrics) >= line, process)


def num_lines(metrics: Path) -> int:
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def journalled(run_dir: Path) -> int:
    """Bytes of answers on disk."""
    return sum(file.stat().st_size for file in (run_dir / "journal").glob("version_*.jsonl"))


def more_answers(run_dir: Path, process: Any) -> None:
    before = journalled(run_dir)
    assert until(lambda: journalled(run_dir) > before, process), f"ended with {process.returncode}"
