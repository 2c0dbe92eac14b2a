"""Where metrics go: metrics.jsonl (always) and Weights & Biases (offline unless logged in)."""

import json
import logging
import math
import os
import uuid
from pathlib import Path
from typing import Any

from r1mega.config.schema import Stage
from r1mega.config.training import Wandb

log = logging.getLogger(__name__)


class Tracker:
    """Writes one JSON line a step and mirrors it to W&B.

    A line is {"kind": "train" | "eval", "step": optimiser steps taken, ...}; a value that is not finite is
    written as null, since NaN is not JSON.
    """

    def __init__(self, run_dir: Path, wandb: Wandb, stage: Stage) -> None:
        self._file = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        self._wandb = _start_wandb(run_dir, wandb, stage)

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
            self._wandb.finish()


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _start_wandb(run_dir: Path, settings: Wandb, stage: Stage) -> Any:
    if settings.mode == "disabled":
        return None
    os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")  # it advertises itself on every start
    # Set where a process that uses W&B has started this one: its service ends with it, and would not let a run that
    # was killed begin again ("run ID ... is in use").
    os.environ.pop("WANDB_SERVICE", None)
    try:
        import wandb
    except ImportError:
        log.warning("wandb is not installed: metrics go to %s/metrics.jsonl alone", run_dir)
        return None
    mode = settings.mode
    if mode == "auto":
        mode = "online" if wandb.login(prompt=False) else "offline"
    # The same id joins the parts of a resumed run into one.
    id_file = run_dir / "wandb" / "r1mega_id"
    resumed = id_file.is_file()
    if not resumed:
        id_file.parent.mkdir(exist_ok=True)
        id_file.write_text(uuid.uuid4().hex[:12])
    try:
        run = wandb.init(
            project=settings.project,
            name=f"{run_dir.parent.name}-{run_dir.name}",
            id=id_file.read_text(),
            resume="allow" if resumed and mode == "online" else None,
            dir=run_dir,
            mode=mode,
            config=stage.model_dump(mode="json"),
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )
    except wandb.Error as error:
        log.warning("W&B does not start (%s): metrics go to %s/metrics.jsonl alone", error, run_dir)
        return None
    # Lines come out of order in steps (an evaluation after its step), so our own step is the axis.
    run.define_metric("*", step_metric="step")
    return run
