"""A chain of stages: each starts from an earlier one's final weights, in a fresh process.

A stage is done when its summary.json stands; a chain that was stopped goes on with the first stage that is not.
Before anything runs, every stage is looked at with its overrides and data, so that the last one's mistake does not
show after the first one's hours. At the end the questions that stages were evaluated on are held against those that
any stage trained on.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from r1mega.errors import DataError, R1MegaError, RunDirError
from r1mega.pipeline.graph import Node, Pipeline, handed_over, look_at_chain, own_overrides
from r1mega.recipe.load import load
from r1mega.runtime import files
from r1mega.runtime.digests import Digests
from r1mega.runtime.interrupt import Interrupted
from r1mega.runtime.process import heeded_stop_signals
from r1mega.runtime.provenance import inputs_of
from r1mega.runtime.resume import changes


class StageCrashed(Exception):
    """A stage left with an exit code that is not a fault of its input; its own output says more."""

    exit_code = 1


def run_chain(
    pipeline: Pipeline,
    cluster: str,
    run_dir: Path,
    overrides: Sequence[str],
    *,
    resume: bool,
    verify_inputs: bool = False,
) -> None:
    """Run what is left of `pipeline` and write its summary.json.

    Args:
        overrides: one that starts with a stage's name and a colon goes to that stage alone ("rl:num_steps=40"), any
            other to every stage that has its first key.
        verify_inputs: see `RunDir`; of every stage.

    Raises:
        ConfigError: a stage's config with its overrides is wrong; nothing has run.
        RunDirError: `run_dir` holds a chain already and `resume` is off, holds stages of other configs, or cannot be
            written.
        R1MegaError: a stage was given something wrong; its own message has been printed.
        Interrupted: Ctrl-C or SIGTERM; the stage has saved and left.
        DataError: a held-out question was trained on.
    """
    for seen in look_at_chain(pipeline, cluster, run_dir, overrides):
        seen.refuse_absent()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        used = any(run_dir.iterdir())
    except OSError as error:
        raise RunDirError(f"{run_dir}: cannot be used: {error.strerror}; choose another --run-dir") from None
    if used and not resume:
        raise RunDirError(f"{run_dir}: already holds a run; pass --resume to continue it, or another --run-dir")
    began = time.monotonic()
    for node in pipeline.stages:
        own = [*own_overrides(node, pipeline, overrides), *_handed_over(node, run_dir)]
        if (run_dir / node.name / "summary.json").is_file():
            _refuse_other_config(node, cluster, run_dir, own, verify_inputs)
            print(f"{node.name}: done before", flush=True)
        else:
            _run_stage(node, cluster, run_dir, own, verify_inputs)
    _summarise(pipeline, run_dir, time.monotonic() - began)


def _handed_over(node: Node, run_dir: Path) -> list[str]:
    """What earlier stages decide: the weights to start from, what is read and the time it may take."""
    handed = handed_over(node, run_dir)
    if node.same_seconds_as:
        seconds: Any = json.loads((run_dir / node.same_seconds_as / "summary.json").read_text())["seconds"]
        handed.append(f"max_seconds={max(seconds, 0.1):.1f}")
    return handed


def _refuse_other_config(node: Node, cluster: str, run_dir: Path, overrides: list[str], verify: bool) -> None:
    recipe, machine = load(node.config, cluster, overrides)
    folder = run_dir / node.name
    inputs = inputs_of(recipe, folder, Digests(folder, verify=verify))
    if changed := changes(folder, recipe, machine, inputs):
        lines = [f"{folder}: finished with another config; choose another --run-dir; changed:", *changed]
        raise RunDirError("\n  ".join(lines))


def _run_stage(node: Node, cluster: str, run_dir: Path, overrides: list[str], verify: bool) -> None:
    command = [sys.executable, "-m", "r1mega.cli", "run", str(node.config), "--cluster", cluster, "--resume"]
    command += ["--run-dir", str(run_dir / node.name), *(part for o in overrides for part in ("--set", o))]
    command += ["--verify-inputs"] if verify else []
    print(f"\n== {node.name}: {node.config.name}", flush=True)
    # A group of its own, so that a signal reaches the stage once, from here, however it came.
    process = subprocess.Popen(command, start_new_session=True)
    received: list[int] = []

    def forward(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        process.send_signal(signum)

    previous = {s: signal.signal(s, forward) for s in heeded_stop_signals()}
    try:
        code = process.wait()
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if received:
        raise Interrupted(received[0], f"stage {node.name} was stopped; continue with --resume")
    if code == 2:
        raise R1MegaError(f"stage {node.name} cannot go on (see above); mend it and continue with --resume")
    if code:
        raise StageCrashed(f"stage {node.name} left with exit code {code}; continue with --resume")


def _summarise(pipeline: Pipeline, run_dir: Path, seconds: float) -> None:
    """summary.json: every stage's, and the check of held-out questions; seconds add up over resumed parts."""
    file = run_dir / "summary.json"
    before = json.loads(file.read_text())["wall_seconds"] if file.is_file() else 0.0
    stages = {node.name: json.loads((run_dir / node.name / "summary.json").read_text()) for node in pipeline.stages}
    num_trained, num_held_out = _check_held_out(run_dir, pipeline)
    questions = {"trained_on": num_trained, "held_out": num_held_out, "overlap": 0}
    files.write_json(file, {"stages": stages, "questions": questions, "wall_seconds": before + seconds})


def _check_held_out(run_dir: Path, pipeline: Pipeline) -> tuple[int, int]:
    """Numbers of distinct questions trained on and held out over all stages.

    Raises:
        DataError: the two have a question in common, or a stage that trained left no list.
    """
    trained: set[str] = set()
    held_out: set[str] = set()
    for node in pipeline.stages:
        folder = run_dir / node.name
        if (folder / "checkpoints").is_dir() and any((folder / "checkpoints").iterdir()):
            trained |= _questions(folder / "trained_on.jsonl")
        if (folder / "held_out.jsonl").is_file():
            held_out |= _questions(folder / "held_out.jsonl")
    if common := trained & held_out:
        raise DataError(f"{len(common)} held-out questions were trained on, such as {min(common)!r}")
    return len(trained), len(held_out)


def _questions(file: Path) -> set[str]:
    try:
        return {json.loads(line)["question"] for line in file.read_text().splitlines()}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{file}: cannot be read as a list of questions: {error}") from None
