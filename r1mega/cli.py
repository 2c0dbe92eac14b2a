"""The command line: `r1mega check | run | pipeline | launch | jobs | trace | convert | score | make-tests | report |
status | watch | compare | decontaminate | review`.

Faults of the user's making (R1MegaError) are one message on stderr and exit code 2; an interrupted run leaves
with 128 + signal; a rank that has lost another one, and a run whose endpoint failed again and again, with 75.
Everything heavy is imported inside the commands, so that `check` answers at once.
"""

import enum
import errno
import importlib.metadata
import logging
import sys
import warnings
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from r1mega.config import slurm
from r1mega.config.cluster import Cluster
from r1mega.config.entering import shell_lines
from r1mega.config.inputs import default_run_dir
from r1mega.config.load import cluster_overrides, load_cluster
from r1mega.conversion import commands
from r1mega.data import commands as data
from r1mega.errors import ConfigError, R1MegaError, RanksLostError, is_of_a_lost_rank
from r1mega.evaluation import commands as evaluation
from r1mega.launchers import commands as launched
from r1mega.pipeline import commands as chains
from r1mega.pipeline import launching
from r1mega.pipeline.graph import is_pipeline, load_pipeline, look_at_chain
from r1mega.preflight.look import Look, look
from r1mega.recipe.recipe import Recipe, imported
from r1mega.report.live import commands as live
from r1mega.rewards import commands as rewards
from r1mega.runtime import env, environment, openmp, process

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""A disk that is full or not ours to write: the user's to mend, at whatever write it shows."""

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(commands.app, name="convert")
app.add_typer(data.app, name="review")
app.command()(rewards.score)
app.command()(rewards.make_tests)
app.command()(evaluation.compare)
app.command()(evaluation.decontaminate)
app.command()(chains.trace)
app.command()(live.status)
app.command()(live.watch)
app.command()(launching.launch)
app.command()(launched.jobs)
app.command("chain-stage", hidden=True)(launching.chain_stage)

ConfigFile = Annotated[Path, typer.Argument(help="A stage config (TOML).")]
ClusterName = Annotated[str, typer.Option("--cluster", help="A file of configs/cluster, by name or path.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="a.b=value; cluster.a.b=value for the cluster.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --run-dir from its last checkpoint.")]
VerifyInputs = Annotated[
    bool,
    typer.Option(
        "--verify-inputs", help="Hash weights and data again, also where size, time and inode are the same."
    ),
]
RunDirectory = Annotated[Path | None, typer.Option("--run-dir", help="Default: runs/<config's folders and name>.")]


def _say_version(asked: bool) -> None:
    if asked:
        print(f"r1mega {importlib.metadata.version('r1mega')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version alone.")
    ] = False,
) -> None: ...


class Fact(enum.StrEnum):
    """What `check --print` tells whoever starts the run."""

    SLURM = "slurm"
    PLACEMENT = "placement"
    ENVIRONMENT = "environment"


Print = Annotated[
    Fact | None,
    typer.Option(
        "--print",
        help="Print this alone. slurm: options of sbatch that grant what the stage needs; placement: within a Slurm "
        "job, where its ranks and its server go; environment: shell lines by which slurm/ enters [environment].",
    ),
]


@app.command()
def check(
    config: ConfigFile,
    cluster: ClusterName = "laptop",
    overrides: Overrides = None,
    fact: Print = None,
    leave_out: Annotated[
        str, typer.Option("--leave-out", help="With --print placement: nodes of the job to use nothing of, N,N.")
    ] = "",
) -> None:
    """Say whether `run`, or of a pipeline `pipeline`, would start: exit 2 with the fault, or 0.

    Weights, data and GPUs need not be there yet; what is missing is listed.
    """
    if fact is Fact.ENVIRONMENT:  # of any stage on this machine, and for what is no stage as well
        print(shell_lines(load_cluster(cluster, cluster_overrides(overrides or [])), Path.cwd()))
        return
    if is_pipeline(config):
        if fact is not None:
            raise ConfigError(f"--print {fact}: {config} is a pipeline; ask about one of its stages")
        chain = load_pipeline(config)
        looks = look_at_chain(chain, cluster, default_run_dir(config), overrides or [])
        for node, seen in zip(chain.stages, looks, strict=True):
            _note(seen, f"{node.name}: ")
        print(f"{config}: pipeline of {len(looks)} stages on {cluster}: ok")
        return
    seen = look(config, cluster, overrides or [])
    _note(seen)
    if fact is not None:
        _print(fact, seen, leave_out.split(","))
    else:
        print(f"{config}: {seen.recipe.stage} stage on {cluster}: ok")


def _print(fact: Fact, seen: Look, left_out: Collection[str]) -> None:
    machines = slurm.sizes(seen.cluster, seen.fits)
    wanted = slurm.needs_of(machines, trains=seen.recipe.trains, serves=seen.recipe.serves)
    if fact is Fact.SLURM:
        print(wanted[0].options)
        return
    from r1mega.runtime.slurm import granted

    print(f"script={seen.recipe.script}")  # first: it holds whatever was granted
    number, placed = slurm.place_largest(wanted, [node for node in granted() if node.name not in left_out])
    print(f"dp={machines[number].trainer.dp if number else ''}")
    print(f"loss={slurm.when_a_node_is_lost(seen.cluster, wanted, placed)}")
    print(placed.lines)


def _note(seen: Look, stage: str = "") -> None:
    for line in (*seen.absent, *seen.unseen, *seen.notes):
        print(f"note: {stage}{line}", file=sys.stderr)


@app.command()
def run(
    config: ConfigFile,
    cluster: ClusterName = "laptop",
    run_dir: RunDirectory = None,
    overrides: Overrides = None,
    resume: Resume = False,
    verify_inputs: VerifyInputs = False,
) -> None:
    """Run one stage. Where the cluster file has several trainer ranks, this process starts them and waits.

    Under torchrun or srun, which set RANK and WORLD_SIZE, this process is one rank.
    """
    path = run_dir or default_run_dir(config)
    resumed = resume and any((path / "checkpoints").glob("step_*"))  # the stage looks closer
    seen = look(config, cluster, overrides or [], starting=True, resumed=resumed)
    seen.refuse_absent()
    environment.enter(seen.cluster.environment)
    leads = (launch := env.launch()) is None or launch.rank == 0
    for line in (*(seen.notes if launch is None else ()), *environment.not_entered(seen.cluster.environment)):
        if leads:
            print(f"note: {line}", file=sys.stderr)
    if env.launch() is None and seen.num_ranks > 1:
        raise typer.Exit(_run_ranks(path, seen.num_ranks))
    _run_stage(seen.recipe, seen.cluster, path, resume=resume, verify_inputs=verify_inputs)


@app.command()
def pipeline(
    config: ConfigFile,
    cluster: ClusterName = "laptop",
    run_dir: RunDirectory = None,
    overrides: Overrides = None,
    resume: Resume = False,
    verify_inputs: VerifyInputs = False,
    first: Annotated[str | None, typer.Option("--from", help="Run this stage and later ones alone.")] = None,
    last: Annotated[str | None, typer.Option("--until", help="Run this stage and earlier ones alone.")] = None,
    only: Annotated[str | None, typer.Option("--only", help="Run this stage alone.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and why; start nothing.")] = False,
    retries: Annotated[int, typer.Option(help="Start a stage that crashed so many times again.", min=0)] = 0,
) -> None:
    """Run the stages of a pipeline one after the other.

    With --resume those that are done are passed over, a stage that was stopped goes on, and one whose settings or
    inputs are others now begins anew, as does what depends on it.
    """
    from r1mega.pipeline.chain import run_chain, tell_plan
    from r1mega.pipeline.plan import PipelineRun, Selection

    directory = run_dir or default_run_dir(config)
    asked = Selection(first, last, only)
    chain = PipelineRun(load_pipeline(config), cluster, directory, overrides or [], asked, verify_inputs)
    if dry_run:
        tell_plan(chain)
    elif run_chain(chain, resume=resume, retries=retries):
        _report_of_done(directory, again=False)  # its stages have drawn their curves


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(help="A run directory, of a stage or a pipeline.")]) -> None:
    """Draw the figures of a run, finished or not, print its summary, and write its page, report.html."""
    _report(run_dir)


def _run_stage(recipe: Recipe, machine: Cluster, path: Path, *, resume: bool, verify_inputs: bool) -> None:
    """The stage, on this rank."""
    launch = env.launch()
    leads = launch is None or launch.rank == 0
    if machine.device == "cpu":
        openmp.restart_with_preload()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("r1mega").setLevel(logging.INFO)
    # What Megatron says at import on a machine without Apex and Transformer Engine, a dozen times.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.")

    from r1mega.runtime import events, watchdog
    from r1mega.runtime.mirror import mirrored
    from r1mega.runtime.run_dir import RunDir, config_of

    telling, shown = nullcontext(), nullcontext()
    rank, ranks = (launch.rank, launch.world_size) if launch else (0, 1)
    if leads:
        directory = RunDir(path, recipe, machine, resume=resume, verify_inputs=verify_inputs)
        what = f"{recipe.stage} stage, {ranks} rank(s)"
        telling = events.told(path, what, resumed=directory.resumed)
        shown = mirrored(path, recipe.wandb, config_of(recipe, machine))
    else:
        directory = RunDir.join(path, machine.trainer.collective_timeout_s)
    try:
        with watchdog.guarded(path, rank, ranks, machine.trainer.watchdog), shown as directory.mirror, telling:
            imported(recipe.runs)(recipe, machine, directory)
    finally:
        directory.close()
    if leads:
        _report_of_done(path)


def _run_ranks(run_dir: Path, num_ranks: int) -> int:
    """This same command line once per rank; the exit code of the rank that failed first, or 0."""
    from r1mega.runtime.events import Events
    from r1mega.runtime.ranks import start_ranks
    from r1mega.runtime.run_dir import create

    create(run_dir)
    command = [sys.executable, "-m", "r1mega.cli", *sys.argv[1:]]
    return start_ranks(command, num_ranks, log_dir=run_dir / "logs", events=Events(run_dir))


def _report_of_done(run_dir: Path, *, again: bool = True) -> None:
    """The report at the end of a run, which has all it was started for without it."""
    try:
        _report(run_dir, again=again)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        print(
            f"r1mega: the run is done; its report cannot be made ({what}). `r1mega report {run_dir}` tries again",
            file=sys.stderr,
        )


def _report(run_dir: Path, *, again: bool = True) -> None:
    from r1mega.report.show import show

    show(run_dir, again=again)


def main() -> None:
    """Entry point: one message and exit code 2 for a fault of the user's, 128 + signal for an interruption."""
    process.settle_signals()
    try:
        app()
    except R1MegaError as error:
        print(f"r1mega: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        what = "read or written" if error.errno == errno.EACCES else "written"
        print(f"r1mega: {error.filename or 'a file'}: cannot be {what}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        code = getattr(error, "exit_code", None)  # Interrupted, StageCrashed: known without importing them here
        # Below a traceback, which tells nobody anything.
        if code is None and env.launch() is not None and is_of_a_lost_rank(error):
            said = "another rank has ended or does not answer, so this one cannot go on; the other's log says why"
            print(f"r1mega: {said}", file=sys.stderr)
            sys.exit(RanksLostError.exit_code)
        if code is None:
            raise
        print(f"r1mega: {error}", file=sys.stderr)
        sys.exit(code)


if __name__ == "__main__":
    main()
