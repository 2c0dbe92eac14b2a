"""A chain of stages: each starts from an earlier one's final weights, in a fresh process.

What is done is found by content (`artefacts`); a chain that was stopped goes on where it was, and a stage whose
settings or inputs are others than those it ran with is run again from nothing, and then what depends on it. Before
anything runs, every stage is looked at with its overrides and data, so that the last one's mistake does not show
after the first one's hours. At the end the questions that stages were evaluated on are held against those that any
stage trained on.

chain.json   {"id": ..., "wall_seconds": ..., "stages": [...]}: seconds of all parts so far, stages in their order
"""

import contextlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from r1mega.errors import DataError, R1MegaError, RunDirError
from r1mega.launchers.record import LOCK as LAUNCH_LOCK
from r1mega.pipeline import artefacts
from r1mega.pipeline.artefacts import State
from r1mega.pipeline.graph import Pipeline, look_at_chain, refuse_unfit, refuse_unmeant
from r1mega.pipeline.kept import Keeping
from r1mega.pipeline.overrides import for_shell
from r1mega.pipeline.plan import PipelineRun, Planned, read_summary
from r1mega.pipeline.starting import Starts
from r1mega.recipe.recipe import Recipe
from r1mega.runtime import files, locks
from r1mega.runtime.digests import Digests
from r1mega.runtime.interrupt import Interrupted
from r1mega.runtime.provenance import CHAIN
from r1mega.runtime.ranks import POLL_S, collected_signals, exit_code, hand_on

LOCK = ".lock"


class StageCrashed(Exception):
    """A stage left with an exit code that is not a fault of its input; its own output says more."""

    exit_code = 1


def tell_plan(chain: PipelineRun) -> None:
    """Print what `run_chain` would do with each stage, and why; nothing is written or started.

    Raises: as `PipelineRun.plan`; and ConfigError as `refuse_unmeant` and `refuse_unfit`.
    """
    refuse_unmeant(chain.pipeline, chain.overrides)
    plans = chain.plan(glance=True)
    refuse_unfit(chain.pipeline, {plan.node.name: plan.recipe for plan in plans})
    width = max(len(plan.node.name) for plan in plans)
    for plan in plans:
        print(f"{plan.node.name:{width}}  {plan.told()}")
    chain.refuse_what_is_needed(plans)


def run_chain(chain: PipelineRun, *, resume: bool, retries: int = 0) -> bool:
    """Run what is left of a chain, or of the stages that are asked for; summary.json when all of it is done.

    Args:
        retries: how often a stage that crashed is started again, from where it was.

    Returns:
        Whether the chain is done.

    Raises:
        ConfigError: a stage's config with its overrides is wrong; nothing has run.
        RunDirError: the run directory holds a chain already and `resume` is off, is in use by another chain, or
            cannot be written; or what is needed of a stage that is not asked for is not there.
        R1MegaError: a stage was given something wrong; its own message has been printed.
        Interrupted: Ctrl-C or SIGTERM; the stage has saved and left.
        DataError: a held-out question was trained on.
    """
    asked, run_dir = chain.asked.names(chain.pipeline), chain.run_dir
    looks = look_at_chain(chain.pipeline, chain.cluster, run_dir, chain.overrides)
    _refuse_used(run_dir, resume=resume)
    plans = chain.plan()
    chain.refuse_what_is_needed(plans)
    for plan, seen in zip(plans, looks, strict=True):
        if plan.runs == "yes":
            seen.refuse_absent()
    with held(run_dir), Keeping(run_dir, chain.pipeline.server) as kept, Starts(plans) as starts:
        _refuse_used(run_dir, resume=resume)  # by a chain that was faster
        names = [node.name for node in chain.pipeline.stages]  # for whoever watches
        files.write_json(run_dir / CHAIN, _state(run_dir) | {"stages": names})  # its stages belong together by its id
        for number, node in enumerate(chain.pipeline.stages):
            if node.name in asked:
                kept.before(plan.recipe for plan in plans[number:] if plan.runs != "no")
                _bring_to_its_end(chain.of(node), chain, starts, retries)
        others = chain.plan() if len(asked) < len(plans) else []
        if left := [plan.node.name for plan in others if not plan.runs_never()]:
            print(f"not done yet: {', '.join(left)}; continue with --resume", flush=True)
            return False
        summarise(chain.pipeline, run_dir, {plan.node.name: plan.recipe for plan in plans})
    return True


def _refuse_used(run_dir: Path, *, resume: bool) -> None:
    try:
        used = run_dir.exists() and any(p.name not in (LOCK, CHAIN, LAUNCH_LOCK) for p in run_dir.iterdir())
    except OSError as error:
        raise _unusable(run_dir, error) from None
    if used and not resume:
        raise RunDirError(f"{run_dir}: already holds a run; pass --resume to continue it, or another --run-dir")


@contextlib.contextmanager
def held(run_dir: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """The run directory, for this chain alone, or for one job of it; others are waited for so long."""
    try:
        files.make_folder(run_dir)
        lock = (run_dir / LOCK).open("w")
    except OSError as error:
        raise _unusable(run_dir, error) from None
    deadline = time.monotonic() + wait_s
    with lock:
        while not locks.take(lock):
            if time.monotonic() >= deadline:
                raise RunDirError(f"{run_dir}: another chain is running in this directory; wait for it")
            time.sleep(0.2)
        yield


def _unusable(run_dir: Path, error: OSError) -> RunDirError:
    return RunDirError(f"{run_dir}: cannot be used: {error.strerror}; choose another --run-dir")


def _bring_to_its_end(plan: Planned, chain: PipelineRun, starts: Starts, retries: int) -> None:
    """Run a stage, all that is earlier being done, unless it is done itself."""
    folder = chain.run_dir / plan.node.name
    if made_ready(plan, chain.run_dir):
        for left in range(retries, -1, -1):
            with _counted(chain.run_dir):
                if _ended(plan, chain, starts, tries_left=left):
                    break
    elif artefacts.is_recorded(folder):
        return
    artefacts.record_outputs(folder, plan.recipe, Digests(folder))


def made_ready(plan: Planned, run_dir: Path) -> bool:
    """Make the chain's run directory ready for a stage that now begins, goes on or begins anew, and say which.

    Returns:
        Whether it runs: False where it is done.
    """
    name, folder, standing = plan.node.name, run_dir / plan.node.name, plan.standing
    if standing.state is State.DONE:
        print(f"{name}: done before", flush=True)
        return False
    print(f"\n== {name}: {plan.node.config.name}: {plan.told()}", flush=True)
    (run_dir / "summary.json").unlink(missing_ok=True)
    if standing.state is State.CHANGED:
        print(f"{name}: what was there is now {artefacts.set_aside(folder)}", flush=True)
    else:
        artefacts.reopen(folder)
    return True


def _ended(plan: Planned, chain: PipelineRun, starts: Starts, *, tries_left: int) -> bool:
    """Run a stage's process to its end; False where it crashed, and may be tried again."""
    name = plan.node.name
    code, received = _run_stage(plan, chain, starts)
    if received:
        raise Interrupted(received, f"stage {name} was stopped; continue with --resume")
    if code == 2:
        raise R1MegaError(f"stage {name} cannot go on (see above); mend it and continue with --resume")
    if code and not tries_left:
        raise StageCrashed(f"stage {name} left with exit code {code}; continue with --resume")
    if code:
        print(
            f"stage {name} left with exit code {code}; started again, {tries_left - 1} more times at most", flush=True
        )
    return not code


def _run_stage(plan: Planned, chain: PipelineRun, starts: Starts) -> tuple[int, int | None]:
    """Exit code of a stage's process, 128 + signal where one ended it; and the signal that this one got meanwhile."""
    arguments = ["run", str(plan.node.config), "--cluster", plan.node.on(chain.cluster), "--resume"]
    arguments += ["--run-dir", str(chain.run_dir / plan.node.name), *settings(plan)]
    arguments += ["--verify-inputs"] if chain.verify_inputs else []
    with collected_signals() as received:
        stage = starts.start(plan, arguments)
        sent: set[int] = set()
        while stage.poll() is None:
            sent |= hand_on(received, [stage])
            time.sleep(POLL_S)
    return exit_code(stage), next(iter([*sent, *received]), None)


def settings(plan: Planned) -> list[str]:
    """The `--set` arguments of a stage's process."""
    return [word for override in for_shell(plan.overrides, plan.recipe) for word in ("--set", override)]


@contextlib.contextmanager
def _counted(run_dir: Path) -> Iterator[None]:
    """Add the time that is spent here to the chain's, also where it is left by an error."""
    began = time.monotonic()
    try:
        yield
    finally:
        count(run_dir, time.monotonic() - began)


def count(run_dir: Path, seconds: float) -> None:
    """Add what a stage's process took to the chain's time."""
    state = _state(run_dir)
    files.write_json(run_dir / CHAIN, state | {"wall_seconds": state["wall_seconds"] + seconds})


def _state(run_dir: Path) -> dict[str, Any]:
    """chain.json, with an id that no other chain has where there is none yet; wall_seconds are of all stages'
    processes so far."""
    file = run_dir / CHAIN
    found = json.loads(file.read_text()) if file.is_file() else {}
    return {"id": secrets.token_hex(4), "wall_seconds": 0.0, **found}


def summarise(pipeline: Pipeline, run_dir: Path, recipes: Mapping[str, Recipe]) -> None:
    """summary.json: every stage's, table and relations, and the check of held-out questions; seconds add up over
    resumed parts."""
    stages = {node.name: read_summary(run_dir / node.name) for node in pipeline.stages}
    num_trained, num_held_out = _check_held_out(run_dir, pipeline)
    questions = {"trained_on": num_trained, "held_out": num_held_out, "overlap": 0}
    summary = {"stages": stages, "questions": questions, "wall_seconds": _state(run_dir)["wall_seconds"]}
    if pipeline.table is not None:
        from r1mega.pipeline.outcome import outcome_of  # with numpy, which a dry run does without

        summary |= outcome_of(pipeline.table, pipeline.relations, run_dir, recipes)
    files.write_json(run_dir / "summary.json", summary)


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
