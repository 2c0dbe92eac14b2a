"""`r1mega launch`: a stage or a chain handed to a launcher; and what the jobs of a chain call for their stages."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from r1mega.config.inputs import default_run_dir
from r1mega.errors import ConfigError, RunDirError
from r1mega.launchers.job import Launcher, LaunchOptions, StageJob, Submitted
from r1mega.launchers.record import LaunchRecord, Submission, launching, now
from r1mega.launchers.registry import launcher
from r1mega.launchers.slurm import refuse_options
from r1mega.launchers.tree import lines, states
from r1mega.pipeline import jobs
from r1mega.pipeline.graph import is_pipeline, load_pipeline, look_at_chain
from r1mega.pipeline.plan import PipelineRun, Selection
from r1mega.preflight.look import Look, look
from r1mega.runtime import files

Cluster = Annotated[str, typer.Option("--cluster", help="A file of configs/cluster, by name or path.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="a.b=value; cluster.a.b=value for the cluster.")]
RunDirectory = Annotated[Path | None, typer.Option("--run-dir", help="Default: runs/<config's folders and name>.")]


@dataclass(frozen=True)
class LaunchRequest:
    """What a user wants launched."""

    config: Path
    cluster: str
    run_dir: Path
    overrides: Sequence[str]
    sbatch: Sequence[str]
    """Options of sbatch, those of one stage of a chain as "NAME:--time=24:00:00"."""


@dataclass(frozen=True)
class ToLaunch:
    """What is left of a stage or a chain, as jobs."""

    jobs: list[StageJob]
    stages: list[str]
    """All of them, in their order."""
    done: tuple[str, ...]
    """Those that are done."""
    looks: dict[str, Look]
    """Of each stage that has a job for certain."""
    later: dict[str, dict[str, str]]
    """Stage -> settings that are known only when another one has ended, and what they will be."""


def launch(
    config: Annotated[Path, typer.Argument(help="A stage config or a chain (TOML).")],
    cluster: Cluster = "laptop",
    by: Annotated[str, typer.Option("--launcher", help="slurm, local, or another one of launchers/.")] = "slurm",
    run_dir: RunDirectory = None,
    overrides: Overrides = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            help="An option of sbatch: --sbatch --time=24:00:00; STAGE:--time=... for one stage of a chain."
        ),
    ] = None,
    more: Annotated[list[str] | None, typer.Option("--with", help="A setting of the launcher: name=value.")] = None,
    first: Annotated[str | None, typer.Option("--from", help="Launch this stage and later ones alone.")] = None,
    last: Annotated[str | None, typer.Option("--until", help="Launch this stage and earlier ones alone.")] = None,
    only: Annotated[str | None, typer.Option("--only", help="Launch this stage alone.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write what would be submitted to <run dir>.launch; start nothing.")
    ] = False,
) -> None:
    """Hand a stage, or what is left of a chain, to a launcher as jobs, each after what it needs.

    Launched again, a chain goes on from there: what is done has no job, what waits or runs keeps its own.
    """
    asked = LaunchRequest(config, cluster, run_dir or default_run_dir(config), overrides or [], sbatch or [])
    refuse_options(option.partition(":")[2] if _stage_of(option) else option for option in asked.sbatch)
    through = launcher(by, LaunchOptions(Path.cwd(), tuple(more or [])))
    selection = Selection(first, last, only)
    _refuse_other(asked, chain=is_pipeline(config))
    found = (_chain if is_pipeline(config) else _stage)(asked, selection, through.elsewhere)
    for name, seen in found.looks.items():
        for line in (*(seen.absent if dry_run else ()), *seen.unseen, *seen.notes):
            print(f"note: {name}: {line}", file=sys.stderr)
    if dry_run:
        _render(through, found, asked.run_dir)
        return
    for seen in found.looks.values():
        seen.refuse_absent()
    with launching(asked.run_dir):
        record, num_new = _submitted(through, found, asked, tuple(more or []))
    if not num_new:
        print("nothing to submit: all that is asked for is done, or has a job that is not over")
    if not record.launches:
        return
    print("\n".join([f"{asked.run_dir}: {config}", *lines(record, states(record))]))
    print(f"`r1mega jobs {asked.run_dir}` shows what becomes of them")


def _stage_of(option: str) -> str:
    """The stage that an option of sbatch is for; "" where it is for all."""
    name, colon, _ = option.partition(":")
    return name if colon and not option.startswith("-") else ""


def _refuse_other(asked: LaunchRequest, *, chain: bool) -> None:
    """Raises RunDirError where the run directory is another one's."""
    record, run_dir = LaunchRecord.read(asked.run_dir), asked.run_dir
    if record is not None and record.config != _named(asked.config):
        raise RunDirError(
            f"{run_dir}: {record.config} was launched here, and this is {asked.config}: choose another --run-dir"
        )
    if chain and (run_dir / "run.json").is_file():
        raise RunDirError(
            f"{run_dir}: holds a run of a stage, and {asked.config} is a chain: choose another --run-dir"
        )
    if not chain and (run_dir / "chain.json").is_file():
        raise RunDirError(
            f"{run_dir}: holds a run of a chain, and {asked.config} is a stage: choose another --run-dir"
        )


def _named(config: Path) -> str:
    """A config as the record has it: from the checkout's root where it is in there."""
    full = config.resolve()
    return str(full.relative_to(Path.cwd()) if full.is_relative_to(Path.cwd()) else full)


def _stage(asked: LaunchRequest, selection: Selection, elsewhere: bool) -> ToLaunch:
    if selection != Selection():
        raise ConfigError(f"{asked.config} is a stage, not a chain: leave out --from, --until and --only")
    if own := [option for option in asked.sbatch if _stage_of(option)]:
        raise ConfigError(f"--sbatch {own[0]}: {asked.config} is a stage by itself: leave out {_stage_of(own[0])}:")
    resumed = any((asked.run_dir / "checkpoints").glob("step_*"))
    seen = look(asked.config, asked.cluster, asked.overrides, starting=True, resumed=resumed, elsewhere=elsewhere)
    job = jobs.job_of_stage(seen, asked.cluster, asked.run_dir, asked.overrides, asked.sbatch)
    return ToLaunch([job], [job.name], (), {job.name: seen}, {})


def _chain(asked: LaunchRequest, selection: Selection, elsewhere: bool) -> ToLaunch:
    pipeline = load_pipeline(asked.config)
    names = [node.name for node in pipeline.stages]
    if other := [option for option in asked.sbatch if _stage_of(option) not in ("", *names)]:
        raise ConfigError(f"--sbatch {other[0]}: no stage is named so; there are {', '.join(names)}")
    looks = look_at_chain(pipeline, asked.cluster, asked.run_dir, asked.overrides, elsewhere=elsewhere)
    chain = PipelineRun(pipeline, asked.cluster, asked.run_dir, asked.overrides, selection)
    plans = chain.plan(glance=True)
    chain.refuse_what_is_needed(plans)
    more = {name: [o.removeprefix(f"{name}:") for o in asked.sbatch if _stage_of(o) in ("", name)] for name in names}
    found = jobs.jobs_of(chain, plans, looks, asked.config, more)
    # What a stage may still need of itself is asked of those that will run for certain, as `r1mega pipeline` does.
    sure = {plan.node.name for plan in plans if plan.runs == "yes"}
    done = tuple(plan.node.name for plan in plans if plan.runs_never())
    later = {
        node.name: {"max_seconds": f"as many as {node.same_seconds_as} took"}
        for node in pipeline.stages
        if node.same_seconds_as
    }
    seen = {name: seen for name, seen in zip(names, looks, strict=True) if name in sure}
    return ToLaunch(found, names, done, seen, later)


def _render(through: Launcher, found: ToLaunch, run_dir: Path) -> None:
    """Write and print what would be submitted, and each stage's settings as the run would have them."""
    folder = run_dir.with_name(f"{run_dir.name}.launch")
    first, *others = through.render(found.jobs, folder) if found.jobs else [None]
    for name, seen in found.looks.items():
        resolved: dict[str, Any] = {"stage": seen.recipe.model_dump(mode="json")}
        files.write_json(
            file := folder / f"{name}.json", resolved | {"cluster": seen.cluster.model_dump(mode="json")}
        )
        others.append(file)
    if first is None:
        print("nothing to submit: all that is asked for is done")
        return
    print(first.read_text(encoding="utf-8"), end="")
    print("\n".join(["# written:", *(f"#   {file}" for file in [first, *others])]))


def _submitted(
    through: Launcher, found: ToLaunch, asked: LaunchRequest, settings: tuple[str, ...]
) -> tuple[LaunchRecord, int]:
    """Submit the jobs of stages that have none which still waits or runs, and write them down; how many they are."""
    record = LaunchRecord.read(asked.run_dir)
    if record is None:
        record = LaunchRecord(asked.run_dir.resolve(), _named(asked.config), str(Path.cwd()), tuple(found.stages), ())
    still = {
        name: job for name, (job, state) in states(record).items() if job is not None and not state.phase.is_over
    }
    _refuse_clash(through.name, found.jobs, still, asked.run_dir)
    new = [
        dataclasses.replace(job, after=_after(job, found.jobs, still)) for job in found.jobs if job.name not in still
    ]
    if not new:
        return record, 0
    submitted = through.submit(new, earlier=still)
    record = record.with_launch(Submission(now(), through.name, settings, found.done, tuple(submitted)), found.stages)
    try:
        record.write()
    except RunDirError:  # of jobs that nobody has written down nobody would know
        through.cancel(submitted)
        raise
    return record, len(new)


def _after(job: StageJob, others: Sequence[StageJob], still: dict[str, Submitted]) -> tuple[str, ...]:
    known = {*(other.name for other in others), *still}
    return tuple(name for name in job.after if name in known)


def _refuse_clash(by: str, wanted: Sequence[StageJob], still: dict[str, Submitted], run_dir: Path) -> None:
    """Raises RunDirError where a job that still waits or runs is in the way of one that is asked for."""
    remedy = f"wait for it, or `r1mega jobs {run_dir} --cancel` first"
    for job in still.values():
        if job.launcher != by:
            raise RunDirError(
                f"{run_dir}: job {job.id} of {job.job.name}, of launcher {job.launcher}, is not over: {remedy}"
            )
    for job in wanted:
        old = still.get(job.name)
        if old is not None and old.job.arguments != job.arguments:
            raise RunDirError(
                f"{run_dir}: job {old.id} of {job.name} is not over, and was launched with other arguments "
                f"({' '.join(old.job.arguments)}): {remedy}"
            )


def chain_stage(
    what: Annotated[str, typer.Argument(help="place, begin, end or run")],
    config: Annotated[Path, typer.Argument(help="The chain.")],
    name: Annotated[str, typer.Argument(help="The stage.")],
    run_dir: Annotated[Path, typer.Option("--run-dir", help="Of the chain.")],
    cluster: Cluster = "laptop",
    overrides: Overrides = None,
    seconds: Annotated[float, typer.Option(help="end: how long its job took.", min=0.0)] = 0.0,
) -> None:
    """What a job of a chain asks before and after its stage (slurm/chain_stage.sh); run does all of it here.

    place prints the stage's config and what concerns its cluster file, a word a line. begin prints config, run
    directory and settings of the stage, each with a null byte behind it; nothing where it is done. end prints "done"
    where the whole chain is. All else that they say goes to stderr.
    """
    chain = PipelineRun(load_pipeline(config), cluster, run_dir, overrides or [])
    if what == "run":
        raise typer.Exit(jobs.run(chain, name))
    out, sys.stdout = sys.stdout, sys.stderr
    try:
        told = _part(what, chain, name, seconds)
    finally:
        sys.stdout = out
    print(told, end="")


def _part(what: str, chain: PipelineRun, name: str, seconds: float) -> str:
    if what == "place":
        return "".join(f"{word}\n" for word in jobs.place(chain, name))
    if what == "begin":
        return "".join(f"{word}\0" for word in jobs.begin(chain, name))
    if what == "end":
        return "done\n" if jobs.end(chain, name, seconds) else ""
    raise ConfigError(f"chain-stage {what}: place, begin, end or run")
