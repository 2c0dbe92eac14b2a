"""Where metrics go: metrics.jsonl (always) and Weights & Biases (offline unless logged in)."""

import json
import logging
import math
import os
from pathlib import Path
from typing import Any, Protocol

from r1mega.config.training import Wandb
from r1mega.runtime.mirror import Mirror, choose_mode

log = logging.getLogger(__name__)


class Settings(Protocol):
    """Of any stage."""

    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


class Tracker:
    """Writes one JSON line a step and mirrors it to W&B.

    A line is {"kind": "train" | "eval", "step": optimiser steps taken, ...}; a value that is not finite is
    written as null, since NaN is not JSON.
    """

    def __init__(self, run_dir: Path, wandb: Wandb, stage: Settings) -> None:
        self._file = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        mode, said = choose_mode(wandb.mode, os.environ)
        if said:
            log.warning("%s", said)
        config = stage.model_dump(mode="json")
        self._wandb = Mirror(run_dir, wandb, mode, config) if mode != "disabled" else None

    def log(self, kind: str, step: int, metrics: dict[str, Any]) -> None:
        """Append the metrics of one step."""
        row = {"kind": kind, "step": step, **{k: _json_number(v) for k, v in metrics.items()}}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log({k: v for k, v in metrics.items() if isinstance(v, int | float)} | {"step": step})

    def sync(self) -> None:
        """Make the lines survive the machine: a checkpoint must not know more steps than they do."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        if self._wandb is not None:
            self._wandb.close()


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
