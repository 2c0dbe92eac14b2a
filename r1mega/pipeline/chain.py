"""A chain of stages: each starts from an earlier one's final weights, in a fresh process.

A stage is done when its summary.json stands; a chain that was stopped goes on with the first stage that is not.
At the end the questions that stages were evaluated on are held against those that any stage trained on.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1mega.config.schema import Node, Pipeline
from r1mega.errors import DataError, R1MegaError, RunDirError
from r1mega.runtime import files


def run_chain(pipeline: Pipeline, cluster: str, run_dir: Path, overrides: Sequence[str], *, resume: bool) -> None:
    """Run what is left of `pipeline` and write its summary.json.

    Args:
        overrides: passed to every stage; one that starts with a stage's name and a colon to that stage alone
            ("rl:num_steps=40").

    Raises:
        RunDirError: `run_dir` holds a chain already and `resume` is off, or cannot be written.
        R1MegaError: a stage failed; its own message has been printed.
        DataError: a held-out question was trained on.
    """
    if run_dir.exists() and any(run_dir.iterdir()) and not resume:
        raise RunDirError(f"{run_dir}: already holds a run; pass --resume to continue it, or another --run-dir")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirError(f"{run_dir}: cannot be created: {error.strerror}; choose another --run-dir") from None
    began = time.monotonic()
    for node in pipeline.stages:
        summary = run_dir / node.name / "summary.json"
        if summary.is_file():
            print(f"{node.name}: done before", flush=True)
            continue
        _run_stage(node, cluster, run_dir, _overrides(node, pipeline, run_dir, overrides))
    stages = {node.name: json.loads((run_dir / node.name / "summary.json").read_text()) for node in pipeline.stages}
    num_trained, num_held_out = _check_held_out(run_dir, pipeline)
    questions = {"trained_on": num_trained, "held_out": num_held_out, "overlap": 0}
    files.write_json(
        run_dir / "summary.json",
        {"stages": stages, "questions": questions, "wall_seconds": time.monotonic() - began},
    )


def _overrides(node: Node, pipeline: Pipeline, run_dir: Path, overrides: Sequence[str]) -> list[str]:
    """The `--set` values of one stage: the user's, where it starts from, and how long it may take."""
    names = {n.name for n in pipeline.stages}
    own: list[str] = []
    for override in overrides:
        name, colon, rest = override.partition(":")
        if colon and name in names:
            own += [rest] if name == node.name else []
        else:
            own.append(override)
    if node.start:
        own.append(f"model.path={json.dumps(str((run_dir / node.start / 'hf').resolve()))}")
    if node.same_seconds_as:
        seconds: Any = json.loads((run_dir / node.same_seconds_as / "summary.json").read_text())["seconds"]
        own.append(f"max_seconds={seconds:.1f}")
    return own


def _run_stage(node: Node, cluster: str, run_dir: Path, overrides: list[str]) -> None:
    directory = run_dir / node.name
    command = [sys.executable, "-m", "r1mega.cli", "run", str(node.config), "--cluster", cluster]
    command += ["--run-dir", str(directory), *(part for o in overrides for part in ("--set", o))]
    if (directory / "config.json").exists():
        command.append("--resume")
    print(f"\n== {node.name}: {node.config.name}", flush=True)
    process = subprocess.Popen(command)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        # The terminal has sent Ctrl-C to the stage as well: let it save and leave.
        process.wait()
        raise
    if code:
        raise R1MegaError(f"stage {node.name} left with exit code {code}; mend it and continue with --resume")


def _check_held_out(run_dir: Path, pipeline: Pipeline) -> tuple[int, int]:
    """Numbers of distinct questions trained on and held out over all stages.

    Raises:
        DataError: the two have a question in common.
    """
    trained: set[str] = set()
    held_out: set[str] = set()
    for node in pipeline.stages:
        for name, found in (("trained_on", trained), ("held_out", held_out)):
            file = run_dir / node.name / f"{name}.jsonl"
            rows = file.read_text().splitlines() if file.is_file() else []
            found.update(json.loads(row)["question"] for row in rows)
    if common := trained & held_out:
        raise DataError(f"{len(common)} held-out questions were trained on, such as {min(common)!r}")
    return len(trained), len(held_out)
