"""Run directories written by hand, as stages leave them, for whoever watches runs."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from r1mega.report.live.chain import RunFacts, RunReader
from r1mega.report.live.status_text import lines

NOW = 1_790_000_000.0
"""Seconds since 1970 at which the runs are looked at."""
HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "\x1b[31m\x1b]0;owned\x07\u202eevil\u202c"
)
"""What would run in a page, colour a terminal and turn a line round."""


def train_row(step: int, **changes: Any) -> dict[str, Any]:
    """A line of a GRPO step; odd steps begin a rollout, as with two mini-batches."""
    row: dict[str, Any] = {
        "kind": "train",
        "step": step,
        "loss": 1.0 / step,
        "grad_norm": 0.5,
        "reward/total": 0.5 + step / 1000,
        "reward/total_low": 0.4,
        "reward/total_high": 0.6,
        "response_length/mean": 20.0,
        "kl/mean": 0.01 * step,
        "mismatch/mean": 1e-7,
        "mismatch/max": 1e-5,
        "rollout/answers": 512.0,
        "rollout/learnt_from": 400.0,
        "rollout/tokens": 10_000.0,
        "tokens": 5000,
        "seconds/update": 1.0,
    }
    if step % 2:
        row |= {"seconds/rollout": 4.0, "seconds/logprobs": 2.0}
    return {**row, **changes}


def eval_row(step: int, strict: float) -> dict[str, Any]:
    ends = {"eval/strict_low": strict - 0.1, "eval/strict_high": strict + 0.1}
    return {"kind": "eval", "step": step, "eval/strict": strict, **ends}


def write_lines(file: Path, rows: Iterable[Mapping[str, Any]], end: str = "\n") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows)[:-1] + end)
    return file


def write_stage(
    folder: Path,
    rows: Iterable[Mapping[str, Any]] = (),
    *,
    kind: str = "grpo",
    num_steps: int | None = 400,
    started: str = "2026-09-21T10:00:00+00:00",
    starts: int = 1,
    events: Iterable[Mapping[str, Any]] = (),
    done: bool = False,
    written: float = NOW - 3600,
    **config: Any,
) -> Path:
    """A stage's run directory, all of whose files are as old as `written` says."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    stage = {"stage": kind, "num_steps": num_steps, **config}
    (folder / "config.json").write_text(json.dumps({"stage": stage, "cluster": {}}))
    (folder / "run.json").write_text(json.dumps({"parts": [{"started": started}] * starts}))
    if rows := list(rows):
        write_lines(folder / "metrics.jsonl", rows)
    if events := list(events):
        write_lines(folder / "events.jsonl", events)
    if done:
        (folder / "summary.json").write_text(json.dumps({"stage": kind, "seconds": 10.0}))
    age(folder, written)
    return folder


def event(kind: str, time: float, text: str = "words", step: int | None = None) -> dict[str, Any]:
    return {"time": time, "kind": kind, "step": step, "text": text, "host": "node1"}


def age(folder: Path, written: float) -> None:
    """Make all that is in a folder as old as that."""
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (written, written))


def answer(question: str, text: str, step: int = 1) -> dict[str, Any]:
    return {
        "step": step, "question": question, "truth": "2", "text": text, "status": "scored", "reward": 1.0,
        "parts": {"accuracy": 1.0}, "reason": "", "tokens": 5, "finish_reason": "stop",
    }  # fmt: skip


def write_beat(run_dir: Path, rank: int, **changes: object) -> None:
    """As `runtime.heartbeat` writes one."""
    row = {
        "rank": rank,
        "host": f"node{rank}",
        "pid": 7,
        "phase": "update",
        "step": 3,
        "since": NOW - 40.0,
        "wait": None,
    }
    row |= {"time": NOW - 1.0, "phases": 9, "detail": "", "blocked": False, "at": "", "worked": {}, "verdict": ""}
    file = run_dir / f"logs/beats/rank_{rank}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(row | changes))


def look(run_dir: Path, now: float = NOW) -> RunFacts:
    return RunReader(run_dir).read(now)


def told(facts: RunFacts) -> dict[str, list[str]]:
    """Lines by topic."""
    found: dict[str, list[str]] = {}
    topic = ""
    for name, text, _ in lines(facts):
        topic = name or topic
        found.setdefault(topic, []).append(text)
    return found
