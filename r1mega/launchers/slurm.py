"""Jobs on Slurm: the scripts of slurm/, submitted with sbatch.

What has become of a job is asked of squeue as long as Slurm remembers it (MinJobAge, five minutes unless a site says
otherwise), then of sacct where there is accounting, and else read from the line that the script has left at its end
(`job.EXITS`). So an end is known where there is no Slurm any more, and on machines without its commands. A job of
which Slurm cannot be asked, and that may have been requeued, is not over.
"""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from r1mega.errors import ConfigError
from r1mega.launchers.job import EXITS, JobState, LaunchOptions, Phase, StageJob, Submitted
from r1mega.runtime import files

OURS = (
    "--array", "--chdir", "--clusters", "--dependency", "--error", "--help", "--kill-on-invalid-dep", "--output",
    "--parsable", "--test-only", "--version", "--wait", "--wrap",
)  # fmt: skip
"""Options of sbatch that are this launcher's, or with which a job would be no stage."""
SQUEUE = "--Format=JobID:|,State:|,Reason:|,exit_code:|,RestartCnt:|"
WAITING = frozenset(("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"))
RUNNING = frozenset(
    ("RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED")
)
CANCELLED = frozenset(("CANCELLED", "PREEMPTED", "REVOKED"))
FAILED: Mapping[str, str] = {
    "BOOT_FAIL": "its nodes did not start",
    "DEADLINE": "it was not done at its deadline",
    "FAILED": "",
    "LAUNCH_FAILED": "it could not be started",
    "NODE_FAIL": "a node of it failed",
    "OUT_OF_MEMORY": "it took more memory than its nodes gave it",
    "TIMEOUT": "its time limit came before it had left",
}
"""States of Slurm in which a job has failed, for people."""
NEVER = "DependencyNeverSatisfied"
Run = Callable[[Sequence[str], Path | None], subprocess.CompletedProcess[str]]
"""Runs one of Slurm's commands in a folder, and does not raise where it fails."""
_EXIT = re.compile(r"^job (\S+) start (\d+) exit code (\d+)$", re.MULTILINE)


def make(options: LaunchOptions) -> "SlurmLauncher":
    """Raises ConfigError where there are settings, of which this launcher has none."""
    if options.more:
        raise ConfigError(
            f"--with {options.more[0]}: the slurm launcher has no settings; options of sbatch are given as --sbatch "
            "--time=24:00:00"
        )
    return SlurmLauncher(options.root)


def refuse_options(options: Iterable[str]) -> None:
    """Raises ConfigError where an option for sbatch is none, or is not the user's to set."""
    for option in options:
        name = option.partition("=")[0]
        if not re.fullmatch(r"--[a-z][a-z0-9-]+(=.*)?", option, re.DOTALL):
            raise ConfigError(
                f"--sbatch {option}: not an option of sbatch in one word; write --sbatch --time=24:00:00"
            )
        if any(ours.startswith(name) for ours in OURS):  # sbatch takes the beginning of an option's name for it
            raise ConfigError(f"--sbatch {option}: {name} is set by the launcher, or would make the job no stage")


class SlurmLauncher:
    """Submits from a checkout on a file system that all nodes share."""

    name = "slurm"
    elsewhere = True

    def __init__(self, root: Path, run: Run | None = None) -> None:
        """run: how one of Slurm's commands is run, where that is not on this machine."""
        self._root, self._run = root, run or run_here

    def command(self, job: StageJob, after: Sequence[str]) -> list[str]:
        """The line that submits a job.

        Args:
            after: numbers of the jobs that it waits for. When one of them has not ended well, Slurm cancels it.
        """
        waits = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
        return [
            "sbatch", "--parsable", f"--job-name={job.name}", f"--output={job.logs}/{job.name}-%j.out",
            *job.options, *waits, job.script, *job.arguments,
        ]  # fmt: skip

    def render(self, jobs: Sequence[StageJob], folder: Path) -> list[Path]:
        """submit.sh, whose lines are those that `submit` runs; run by hand it submits the same jobs."""
        files.make_folder(folder)
        files.write_text(file := folder / "submit.sh", self.script(jobs))
        return [file]

    def script(self, jobs: Sequence[StageJob]) -> str:
        """A shell script that submits jobs; those that are not among them are not waited for."""
        names = {job.name for job in jobs}
        lines = [
            "#!/usr/bin/env bash",
            "# Submits the same jobs: run it in the repository's root. `r1mega jobs` then knows nothing of them.",
            "set -euo pipefail",
            f"mkdir -p {shlex.join(dict.fromkeys(str(job.logs) for job in jobs))}",
        ]
        for job in jobs:
            # Behind its number sbatch says the cluster's name where there are several.
            after = [f"${{{_variable(name)}%;*}}" for name in job.after if name in names]
            words = [word if "${job_" in word else shlex.quote(word) for word in self.command(job, after)]
            lines.append(f"{_variable(job.name)}=$({' '.join(words)})")
        return "\n".join(lines) + "\n"

    def submit(self, jobs: Sequence[StageJob], *, earlier: Mapping[str, Submitted]) -> list[Submitted]:
        if shutil.which("sbatch") is None:
            raise ConfigError(
                "sbatch: not on PATH: launch where Slurm's commands are, such as a login node; --dry-run writes what "
                "would be submitted, and --launcher local runs it on this machine"
            )
        ids = {name: submitted.id for name, submitted in earlier.items()}
        if absent := [job.script for job in jobs if not (self._root / job.script).is_file()]:
            raise ConfigError(f"{self._root} has no {absent[0]}: launch from the root of a checkout of r1mega")
        done: list[Submitted] = []
        for job in jobs:
            files.make_folder(
                self._root / job.logs
            )  # sbatch takes a folder that is not there, and the job then fails
            command = self.command(job, [ids[name] for name in job.after])
            said = self._run(command, self._root)
            number = said.stdout.strip().partition(";")[0]
            if said.returncode or not number.isdecimal():
                self.cancel(done)
                before = f"; {len(done)} job(s) before it are cancelled again" if done else ""
                raise ConfigError(
                    f"sbatch did not take job {job.name}{before}: {_error(said)}\n  {shlex.join(command)}\n  options "
                    "of your cluster are given as --sbatch --partition=NAME --sbatch --account=NAME"
                )
            ids[job.name] = number
            done.append(Submitted(job, self.name, number))
        return done

    def states(self, jobs: Sequence[Submitted]) -> list[JobState]:
        found, silent = _squeue([job.id for job in jobs], self._run)
        if missing := [job.id for job in jobs if job.id not in found]:
            found |= _sacct(missing, self._run)
        return [found.get(job.id) or self._left(job, silent) for job in jobs]

    def _left(self, job: Submitted, silent: str) -> JobState:
        """By the line that its script left at its end.

        Args:
            silent: why Slurm cannot be asked; "": it does not know the job any more.
        """
        file = self._root / job.job.logs / EXITS
        lines = _EXIT.findall(self._written(file))
        codes = [int(code) for id, _, code in lines if id == job.id]
        why = f"Slurm cannot be asked ({silent})" if silent else "Slurm does not know it any more"
        if not codes:
            told = f"{why}, and its script has left no exit code in {file}: it still waits or runs, or was killed"
            return JobState(Phase.UNCLEAR if silent else Phase.UNKNOWN, told)
        if silent and codes[-1] not in (0, 2):  # with any other one it may have been requeued
            return JobState(Phase.UNCLEAR, f"{why}; a start of it ended with exit code {codes[-1]}", codes[-1])
        return _ended("FAILED" if codes[-1] else "COMPLETED", codes[-1], "")

    def _written(self, file: Path) -> str:
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""

    def cancel(self, jobs: Sequence[Submitted]) -> None:
        if not jobs:
            return
        said = self._run(["scancel", "--quiet", *(job.id for job in jobs)], self._root)
        if said.returncode:
            raise ConfigError(f"scancel {' '.join(job.id for job in jobs)}: {_error(said)}")

    def logs(self, job: Submitted) -> list[Path]:
        output = self._root / job.job.logs / f"{job.job.name}-{job.id}.out"
        ranks = sorted((self._root / job.job.run_dir / "logs").glob("rank_*.log"))
        return [file for file in (output, *ranks) if file.exists()]


def _variable(name: str) -> str:
    return "job_" + re.sub(r"\W", "_", name)


def _squeue(ids: Sequence[str], run: Run) -> tuple[dict[str, JobState], str]:
    """States of the jobs that Slurm remembers, by their numbers; and why it cannot be asked, "" where it can."""
    said = run(["squeue", "--noheader", "--states=all", f"--jobs={','.join(ids)}", SQUEUE], None)
    if said.returncode and "Invalid job id" not in said.stderr:
        return {}, _error(said)
    rows = ([cell.strip() for cell in line.split("|")] for line in said.stdout.splitlines() if line.count("|") >= 4)
    found = {id: _state(state, reason, _code(code), restarts) for id, state, reason, code, restarts, *_ in rows}
    return found, ""


def _sacct(ids: Sequence[str], run: Run) -> dict[str, JobState]:
    """States of jobs by Slurm's accounting; none where there is no accounting."""
    fields = ["--noheader", "--parsable2", "--allocations", "--format=JobID,State,ExitCode"]
    said = run(["sacct", *fields, f"--jobs={','.join(ids)}"], None)
    if said.returncode:
        return {}
    rows = (line.split("|") for line in said.stdout.splitlines() if line.count("|") == 2)
    return {id: _state(state.partition(" ")[0], "", _code(code), "0") for id, state, code in rows}


def _state(state: str, reason: str, code: int, restarts: str) -> JobState:
    again = f"start {int(restarts) + 1}" if restarts.strip("0") else ""
    if state in WAITING and reason != NEVER:  # that one Slurm is about to cancel
        known = {"None": "", "Dependency": "for those before it"}
        return JobState(Phase.WAITING, ", ".join(filter(None, [known.get(reason, reason), again])))
    if state in RUNNING:
        return JobState(Phase.RUNNING, again)
    return _ended(state, code, reason)


def _ended(state: str, code: int, reason: str) -> JobState:
    if state == "COMPLETED":
        return JobState(Phase.DONE, "", 0)
    if state in CANCELLED or reason == NEVER:
        never = "what it needs did not end well" if reason == NEVER else ""
        told = {"PREEMPTED": "it was preempted and not requeued", "REVOKED": "another cluster has it"}.get(state)
        return JobState(Phase.CANCELLED, never or told or "it was cancelled", code or None)
    if state not in FAILED:
        return JobState(Phase.UNCLEAR, f"Slurm says {state}")
    return JobState(Phase.FAILED, ", ".join(filter(None, [FAILED[state], f"exit code {code}" if code else ""])), code)


def _code(text: str) -> int:
    """An exit code as a shell counts it, of squeue's wait status ("512") or of "CODE:SIGNAL" ("2:0")."""
    exited, colon, signal = text.partition(":")
    if colon:
        return int(exited) or (128 + int(signal) if int(signal) else 0)
    code = os.waitstatus_to_exitcode(int(text)) if text.isdecimal() else 0
    return code if code >= 0 else 128 - code


def run_here(command: Sequence[str], cwd: Path | None) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands; one that is not here fails as a shell would have it. A user's SQUEUE_PARTITION and
    the like would hide jobs."""
    around = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SACCT_"))}
    try:
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=around)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: {error.strerror}")


def _error(said: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (said.stderr or said.stdout).splitlines() if line.strip()]
    return "; ".join(lines) or f"exit code {said.returncode} without a word"
