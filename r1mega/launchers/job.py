"""What a launcher is: it takes jobs somewhere, says what has become of them, and ends them.

A job is one stage, alone or of a chain. It is described once, for every launcher: which script of slurm/ runs it with
which arguments, and which command runs the same on this machine alone. Every job can be started again: it goes on
from what its run directory holds.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

EXITS = "exits.txt"
"""In a job's folder of logs, a line for each start that has ended: "job ID start N exit code C"."""


@dataclass(frozen=True)
class StageJob:
    """One stage to be run.

    StageJob("dev1", "slurm/chain_stage.sh", ("configs/r1/pipeline.toml", "dev1", "--cluster", "h800_v3", "--run-dir",
        "runs/r1/pipeline"), ("chain-stage", "run", "configs/r1/pipeline.toml", "dev1", ...),
        Path("runs/r1/pipeline/dev1"), Path("runs/r1/pipeline/.jobs"), ("--nodes=64", ...), ("cold_start_data",))
    """

    name: str
    """Its stage's name in its chain; the name of its run directory where it is a stage by itself."""
    script: str
    """What a batch system runs, from the repository's root: "slurm/rl_stage.sh"."""
    arguments: tuple[str, ...]
    """Of the script."""
    here: tuple[str, ...]
    """Arguments of `r1mega` that do the same on this machine alone, without a batch system."""
    run_dir: Path
    """Of its stage."""
    logs: Path
    """Folder for what the job itself writes: its output, and `EXITS`. It stays where it is when a stage's run
    directory is moved aside to begin anew."""
    options: tuple[str, ...] = ()
    """Of `sbatch`: those that grant what the stage needs on its cluster file, and those that the user has added."""
    after: tuple[str, ...] = ()
    """Names of jobs of the same chain that must end well before it may start."""


@dataclass(frozen=True)
class Submitted:
    """A job that a launcher has taken."""

    job: StageJob
    launcher: str
    """Its name in `registry.LAUNCHERS`."""
    id: str
    """What the launcher knows it by: "1234" under Slurm."""


class Phase(enum.StrEnum):
    """Where a job is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"
    """Nobody remembers how it ended."""
    UNCLEAR = "unclear"
    """It may still wait or run: whoever knows could not be asked, or has said what is not understood."""

    @property
    def is_over(self) -> bool:
        """Whether it will not run any more, so far as is known."""
        return self not in (Phase.WAITING, Phase.RUNNING, Phase.UNCLEAR)


@dataclass(frozen=True)
class JobState:
    """What has become of a job."""

    phase: Phase
    reason: str = ""
    """Why it waits, has failed or was cancelled, for people, on one line."""
    exit_code: int | None = None
    """Of the last start that has ended, where it is known; 128 + signal where one ended it."""


@dataclass(frozen=True)
class LaunchOptions:
    """What a user tells a launcher beyond what follows from configs."""

    root: Path
    """The repository's root, from which scripts are run."""
    more: tuple[str, ...] = ()
    """Further settings of this launcher alone, as its module describes them: "name=value"."""


class Launcher(Protocol):
    """Runs jobs somewhere. A launcher keeps nothing in memory that its `Submitted` do not say: another process, days
    later, asks with what was written down of them (`record`).

    Raises:
        ConfigError: from every method, where what it works with is not here or refuses; the message says how to mend
            that.
    """

    name: str
    elsewhere: bool
    """Whether jobs run on other machines than this one, which then need not have what they need."""

    def render(self, jobs: Sequence[StageJob], folder: Path) -> list[Path]:
        """Write into `folder` what `submit` would start, as files that people read; nothing is started.

        Returns:
            The files, the one to read first at the front.
        """
        ...

    def submit(self, jobs: Sequence[StageJob], *, earlier: Mapping[str, Submitted]) -> list[Submitted]:
        """Start jobs, or have them wait for those that they come after.

        Args:
            jobs: each after those that it waits for.
            earlier: jobs of an earlier submission that have not ended yet, which `after` may name as well.

        Returns:
            One for each job, in their order. Where a later one cannot be submitted, those before it are cancelled
            again before the error is raised.
        """
        ...

    def states(self, jobs: Sequence[Submitted]) -> list[JobState]:
        """What has become of each, in their order; asked with as few questions as there can be."""
        ...

    def cancel(self, jobs: Sequence[Submitted]) -> None:
        """End jobs for good: those that wait do not start, those that run save first where they can. Those that are
        over stay as they are."""
        ...

    def logs(self, job: Submitted) -> list[Path]:
        """Files that hold what a job has written so far, the one to read first at the front."""
        ...
