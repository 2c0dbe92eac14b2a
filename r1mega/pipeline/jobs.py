"""A chain's stages as jobs of a launcher, and what the job of a stage does before and after it.

A job runs what the chain itself would run for its stage: the same settings, found once all that it needs is done, in
the same run directory. It begins as the chain does (`begin`: done before, goes on, or begins anew after what was
there was moved aside) and ends as the chain does (`end`: what the stage leaves is written down; the one that ends
last makes the chain's summary). Stages that need nothing of each other may run at the same time.
"""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from r1mega.config import slurm
from r1mega.config.load import nearest
from r1mega.errors import ConfigError
from r1mega.launchers.job import StageJob
from r1mega.pipeline import artefacts
from r1mega.pipeline.chain import count, held, made_ready, settings, summarise
from r1mega.pipeline.graph import Node, own_overrides
from r1mega.pipeline.plan import PipelineRun, Planned, Selection
from r1mega.preflight.look import Look
from r1mega.runtime import process
from r1mega.runtime.digests import Digests
from r1mega.runtime.ranks import POLL_S, collected_signals, exit_code, hand_on

LOGS = ".jobs"
"""Folder in a chain's run directory for what its jobs write; no stage has such a name."""
SCRIPT = "slurm/chain_stage.sh"
WAIT_S = 600.0
"""How long a job waits for another one that begins, ends or makes the chain's summary at this moment."""


def job_of_stage(seen: Look, cluster: str, run_dir: Path, overrides: Sequence[str], more: Sequence[str]) -> StageJob:
    """The job of a stage by itself, named as its run directory.

    Args:
        cluster, overrides: what it was looked at with.
        more: options of `sbatch` beyond what it needs.

    Raises: as `jobs_of`.
    """
    shared = [str(seen.config), "--cluster", cluster, "--run-dir", str(run_dir)]
    shared += [word for override in overrides for word in ("--set", override)]
    return StageJob(
        name=run_dir.resolve().name,
        script=f"slurm/{seen.recipe.script}.sh",
        arguments=tuple(shared),
        here=("run", *shared, "--resume"),
        run_dir=run_dir,
        logs=run_dir / "logs",
        options=(*_needs(seen), *more),
    )


def jobs_of(
    chain: PipelineRun,
    plans: Sequence[Planned],
    looks: Sequence[Look],
    config: Path,
    more: Mapping[str, Sequence[str]],
) -> list[StageJob]:
    """A job for each stage that is asked for and is not done, so far as that is known; in the chain's order.

    Args:
        plans, looks: of all its stages.
        config: the chain's file.
        more: a stage's name -> options of `sbatch` beyond what it needs.

    Raises:
        ConfigError: how many GPUs a node has is not known, which says how many nodes to ask for.
    """
    runs = {plan.node.name: (plan, seen) for plan, seen in zip(plans, looks, strict=True) if plan.runs != "no"}
    shared = ["--cluster", chain.cluster, "--run-dir", str(chain.run_dir)]
    shared += [word for override in chain.overrides for word in ("--set", override)]
    return [
        StageJob(
            name=name,
            script=SCRIPT,
            arguments=(str(config), name, *shared),
            here=("chain-stage", "run", str(config), name, *shared),
            run_dir=chain.run_dir / name,
            logs=chain.run_dir / LOGS,
            options=(*_needs(seen), *more.get(name, ())),
            after=tuple(other for other in plan.waits_for if other in runs),
        )
        for name, (plan, seen) in runs.items()
    ]


def _needs(seen: Look) -> list[str]:
    """Options of `sbatch`, as `r1mega check --print slurm` has them."""
    sizes = slurm.sizes(seen.cluster, seen.fits)
    return slurm.needs_of(sizes, trains=seen.recipe.trains, serves=seen.recipe.serves)[0].options.split()


def place(chain: PipelineRun, name: str) -> list[str]:
    """A stage's config file, its cluster file and its settings of that, as `r1mega check` takes them. Nothing that it
    needs has to be there.

    Raises:
        ConfigError: no stage is named so.
    """
    node = _nodes(chain, name)[name]
    own = [override for override in own_overrides(node, chain.pipeline, chain.overrides) if _of_cluster(override)]
    return [str(node.config), "--cluster", node.on(chain.cluster), *(word for o in own for word in ("--set", o))]


def _of_cluster(override: str) -> bool:
    return override.startswith("cluster.")


def begin(chain: PipelineRun, name: str) -> list[str]:
    """Look at a stage whose job starts, and make its run directory ready.

    Returns:
        Config file, run directory and settings of the stage as `r1mega run` takes them, but for --run-dir; nothing
        where it is done.

    Raises:
        ConfigError: no stage is named so, or its settings are wrong.
        RunDirError: what it needs of another stage is not done, or another process runs in its run directory.
        DataError: as `artefacts.standing`.
    """
    plan = _planned(chain, name)
    with held(chain.run_dir, wait_s=WAIT_S):
        if not made_ready(plan, chain.run_dir):
            return []
        count(chain.run_dir, 0.0)  # by whose id its stages know that they belong together
    cluster = ["--cluster", plan.node.on(chain.cluster)]
    return [str(plan.node.config), str(chain.run_dir / name), *cluster, *settings(plan)]


def run(chain: PipelineRun, name: str) -> int:
    """Begin a stage, run it on this machine alone, and end it: the exit code of `r1mega run`.

    Raises: as `begin` and `end`.
    """
    began = time.monotonic()
    if words := begin(chain, name):
        config, run_dir, *more = words
        command = [sys.executable, "-m", "r1mega.cli", "run", config, "--run-dir", run_dir, *more, "--resume"]
        with collected_signals() as received:
            # Guarded: it ends with this process, however that ends. A signal reaches it once, from here.
            stage = process.spawn(command, environment=process.child_environment(), log_file=None, pass_signals=True)
            while stage.poll() is None:
                hand_on(received, [stage])
                time.sleep(POLL_S)
        if code := exit_code(stage):
            return code
    if end(chain, name, time.monotonic() - began):
        print(f"the chain is done; `r1mega report {chain.run_dir}` draws it")
    return 0


def end(chain: PipelineRun, name: str, seconds: float) -> bool:
    """Write down what a stage leaves that has ended, and the chain's summary where it was the last one.

    Args:
        seconds: what its job took, this time.

    Returns:
        Whether the chain is done.

    Raises: as `begin`; and DataError where a held-out question was trained on.
    """
    folder = chain.run_dir / name
    recipe = chain.of(_nodes(chain, name)[name]).recipe
    recorded = artefacts.is_recorded(folder)
    if not recorded:
        artefacts.record_outputs(folder, recipe, Digests(folder))
    with held(chain.run_dir, wait_s=WAIT_S):
        if not recorded:
            count(chain.run_dir, seconds)
        if not all(_has_ended(chain.run_dir / node.name) for node in chain.pipeline.stages):
            return False
        plans = chain.plan()
        if not all(plan.runs_never() for plan in plans):
            return False
        summarise(chain.pipeline, chain.run_dir, {plan.node.name: plan.recipe for plan in plans})
    return True


def _nodes(chain: PipelineRun, name: str) -> dict[str, Node]:
    """The chain's stages by their names. Raises ConfigError where none is named so."""
    nodes = {node.name: node for node in chain.pipeline.stages}
    if name not in nodes:
        raise ConfigError(f"{name}: no stage is named so; there are {', '.join(nodes)}{nearest(name, nodes)}")
    return nodes


def _has_ended(folder: Path) -> bool:
    return artefacts.is_recorded(folder) and (folder / "summary.json").is_file()


def _planned(chain: PipelineRun, name: str) -> Planned:
    """A stage with all that it needs, which must be done."""
    nodes = _nodes(chain, name)
    needed, waiting = {name}, [name]
    while waiting:
        earlier = nodes[waiting.pop()].earlier()
        waiting += [other for other in earlier if other not in needed]
        needed.update(earlier)
    alone = dataclasses.replace(chain, asked=Selection(only=name))
    plans = alone.plan(names=needed)
    alone.refuse_what_is_needed(plans)
    assert plans[-1].node.name == name, "a stage comes after all that it needs"
    return plans[-1]
