"""`r1mega jobs`: what has become of what `r1mega launch` has submitted."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from r1mega.config.load import nearest
from r1mega.errors import ConfigError, RunDirError
from r1mega.launchers.job import LaunchOptions, Submitted
from r1mega.launchers.record import LaunchRecord
from r1mega.launchers.registry import launcher
from r1mega.launchers.tree import lines, states


def jobs(
    run_dir: Annotated[Path, typer.Argument(help="A run directory, of a stage or a chain, that was launched.")],
    cancel: Annotated[
        bool, typer.Option("--cancel", help="End its jobs for good; those that run save first where they can.")
    ] = False,
    logs: Annotated[
        str | None, typer.Option("--logs", help="Print the files that this stage's job writes, a path a line.")
    ] = None,
) -> None:
    """Show the jobs of a launched stage or chain as a tree: where each is, and why.

    A stage stands below the last one that it waits for.
    """
    record = LaunchRecord.read(run_dir)
    if record is None:
        raise RunDirError(f"{run_dir}: nothing was launched here (no launch.json); `r1mega launch` does that")
    if logs is not None:
        print("\n".join(map(str, _logs(record, logs))))
        return
    found = states(record)
    if cancel:
        open_jobs = [job for job, state in found.values() if job is not None and not state.phase.is_over]
        _cancel(record, open_jobs)
        print(f"cancelled: {', '.join(job.job.name for job in open_jobs) or 'nothing, all are over'}", flush=True)
        found = states(record)
    print("\n".join([f"{run_dir}: {record.config}", *lines(record, found)]))


def _of(record: LaunchRecord, name: str) -> LaunchOptions:
    settings = {launch.launcher: launch.settings for launch in record.launches}
    return LaunchOptions(Path(record.root), settings[name])


def _cancel(record: LaunchRecord, open_jobs: list[Submitted]) -> None:
    for name in dict.fromkeys(job.launcher for job in open_jobs):
        # What waits goes first: nothing starts because of what is cancelled.
        its = [job for job in reversed(open_jobs) if job.launcher == name]
        launcher(name, _of(record, name)).cancel(its)


def _logs(record: LaunchRecord, name: str) -> list[Path]:
    latest = record.latest()
    if name not in latest:
        raise ConfigError(
            f"--logs {name}: no stage is named so; there are {', '.join(latest)}{nearest(name, latest)}"
        )
    job = latest[name]
    if job is None:
        raise ConfigError(f"--logs {name}: it was done before the last launch, and has no job")
    found = launcher(job.launcher, _of(record, job.launcher)).logs(job)
    if not found:
        print(f"{name}: its job has written nothing yet", file=sys.stderr)
    return found
