"""Stages on this machine, started again after a crash: in the foreground, or in the background as jobs.

In the background one process runs the jobs of a submission one after the other, and outlives whoever has started it:

LOGS/local-ID.json         what was submitted               LOGS/NAME-ID.out   what job NAME writes
LOGS/local-ID.state.json   its process, and a state a job   LOGS/local-ID.NAME.cancel   job NAME is to end

A run that is done, that was given something wrong (exit code 2), or that was asked to leave is not started again.
"""

import argparse
import dataclasses
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from r1mega.errors import ConfigError
from r1mega.launchers.job import JobState, LaunchOptions, Phase, StageJob, Submitted
from r1mega.runtime import files, process
from r1mega.runtime.process import Identity
from r1mega.runtime.ranks import POLL_S, collected_signals, exit_code, hand_on

ASKED_TO_LEAVE = frozenset(128 + signum for signum in process.STOP_SIGNALS)
MAX_RESTARTS = 10
START_S = 60.0
"""How long the process in the background may take to say that it runs."""
CANCELLED = JobState(Phase.CANCELLED, "it was cancelled")

# ---- a command that is started again ----------------------------------------------------------------------------


@dataclass
class Restarted:
    """A command of `r1mega` that is started again after a crash."""

    arguments: Sequence[str]
    max_restarts: int
    log_file: Path | None = None
    """Where it writes; None: where this process writes."""

    def run(self, received: list[int], cancelled: Callable[[], bool] = lambda: False) -> tuple[int, bool]:
        """Run it to its end.

        Args:
            received: signals that this process got, which are handed on to it.
            cancelled: asked now and then: whether it is to save and leave.

        Returns:
            The exit code of its last start, and whether it was asked to leave.
        """
        restarts = 0
        while True:
            code, asked = self._once(received, cancelled)
            if asked or code in {0, 2} | ASKED_TO_LEAVE:
                return code, asked
            if restarts == self.max_restarts:
                self._say(f"exit code {code} after {restarts} restarts: given up")
                return code, False
            restarts += 1
            self._say(f"exit code {code}; restart {restarts} of at most {self.max_restarts}")

    def _once(self, received: list[int], cancelled: Callable[[], bool]) -> tuple[int, bool]:
        command = [sys.executable, "-m", "r1mega.cli", *self.arguments]
        environment = process.child_environment()
        run = process.spawn(command, environment=environment, log_file=self.log_file, pass_signals=True)
        sent: set[int] = set()
        told = False
        while run.poll() is None:
            sent |= hand_on(received, [run])
            if not told and cancelled():
                told = True
                run.send_signal(signal.SIGTERM)
            time.sleep(POLL_S)
        return exit_code(run), bool(sent or received or told)

    def _say(self, text: str) -> None:
        if self.log_file is None:
            print(f"local: {text}", file=sys.stderr)
            return
        with self.log_file.open("a", encoding="utf-8") as log:
            print(f"local: {text}", file=log)


def main(description: str | None = None) -> int:
    """`launchers/local.py CONFIG [--max-restarts N] [arguments of `r1mega run`]`: the last start's exit code."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-restarts", type=int, default=MAX_RESTARTS, help="after a crash; default: %(default)s")
    options, arguments = parser.parse_known_args()
    if "--resume" not in arguments:
        arguments.append("--resume")
    process.settle_signals()
    with collected_signals() as received:
        return Restarted(["run", *arguments], options.max_restarts).run(received)[0]


# ---- the launcher -----------------------------------------------------------------------------------------------


def make(options: LaunchOptions) -> "LocalLauncher":
    """`LaunchOptions.more`: "max_restarts=N", of each job after a crash; 10 unless said.

    Raises:
        ConfigError: there is another setting, or that one is no number.
    """
    max_restarts = MAX_RESTARTS
    for setting in options.more:
        name, _, value = setting.partition("=")
        if name != "max_restarts" or not value.isdecimal():
            raise ConfigError(f"--with {setting}: the local launcher has one setting, max_restarts=N")
        max_restarts = int(value)
    return LocalLauncher(options.root, max_restarts)


class LocalLauncher:
    """Jobs in the background of this machine, those of a submission one after the other.

    A job's id is that of its submission, whose files lie in its folder of logs.
    """

    name = "local"
    elsewhere = False

    def __init__(self, root: Path, max_restarts: int = MAX_RESTARTS) -> None:
        self._root, self._max_restarts = root, max_restarts

    def render(self, jobs: Sequence[StageJob], folder: Path) -> list[Path]:
        """commands.sh, which runs the same in the foreground."""
        files.make_folder(folder)
        lines = [f"{shlex.join(['r1mega', *job.here])} # {job.name}" for job in jobs]
        head = ["#!/usr/bin/env bash", "# One after the other, in the repository's root.", "set -euo pipefail"]
        files.write_text(file := folder / "commands.sh", "\n".join([*head, *lines]) + "\n")
        return [file]

    def submit(self, jobs: Sequence[StageJob], *, earlier: Mapping[str, Submitted]) -> list[Submitted]:
        logs = (self._root / jobs[0].logs).resolve()
        id = new_id()
        self._write_plan(logs, id, jobs, earlier)
        with (logs / f"local-{id}.log").open("ab") as log:
            started = subprocess.Popen(
                [sys.executable, "-m", "r1mega.launchers.local", str(logs), id],
                cwd=self._root, env=process.child_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # neither a Ctrl-C nor the end of a terminal is meant for it
            )  # fmt: skip
        deadline = time.monotonic() + START_S
        while not state_file(logs, id).exists():
            if started.poll() is not None or time.monotonic() > deadline:
                raise ConfigError(f"the process in the background did not start; {log.name} says why")
            time.sleep(0.02)
        return [Submitted(job, self.name, id) for job in jobs]

    def _write_plan(self, logs: Path, id: str, jobs: Sequence[StageJob], earlier: Mapping[str, Submitted]) -> None:
        """What `python -m r1mega.launchers.local LOGS ID` is to run."""
        files.make_folder(logs)
        files.write_json(
            _plan(logs, id),
            {
                "root": str(self._root),
                "max_restarts": self._max_restarts,
                "jobs": [dataclasses.asdict(job) for job in jobs],
                "earlier": [{"name": name, "logs": str(self._logs(e)), "id": e.id} for name, e in earlier.items()],
            },
        )

    def states(self, jobs: Sequence[Submitted]) -> list[JobState]:
        read = {key: _read_states(*key) for key in {(self._logs(job), job.id) for job in jobs}}
        lost = JobState(Phase.UNKNOWN, "what was written of it is not there any more")
        return [read[self._logs(job), job.id].get(job.job.name, lost) for job in jobs]

    def cancel(self, jobs: Sequence[Submitted]) -> None:
        for job, state in zip(jobs, self.states(jobs), strict=True):
            if not state.phase.is_over:
                _cancel_file(self._logs(job), job.id, job.job.name).touch()

    def logs(self, job: Submitted) -> list[Path]:
        ranks = sorted((self._root / job.job.run_dir / "logs").glob("rank_*.log"))
        return [file for file in (_output(self._logs(job), job.id, job.job.name), *ranks) if file.exists()]

    def _logs(self, job: Submitted) -> Path:
        return (self._root / job.job.logs).resolve()


def new_id() -> str:
    """Of a submission; no two of one process are alike, however quickly they follow each other."""
    return f"{datetime.now():%Y%m%d-%H%M%S-%f}-{os.getpid()}"


def write_states(logs: Path, id: str, states: Mapping[str, JobState]) -> None:
    """Write down the states of a submission's jobs; they are true as long as this process runs."""
    jobs = {name: dataclasses.asdict(state) for name, state in states.items()}
    told = {"host": socket.gethostname(), "process": Identity.of(os.getpid()), "jobs": jobs}
    files.write_json(state_file(logs, id), told)


def _plan(logs: Path, id: str) -> Path:
    return logs / f"local-{id}.json"


def state_file(logs: Path, id: str) -> Path:
    return logs / f"local-{id}.state.json"


def _cancel_file(logs: Path, id: str, name: str) -> Path:
    return logs / f"local-{id}.{name}.cancel"


def _output(logs: Path, id: str, name: str) -> Path:
    return logs / f"{name}-{id}.out"


def _read_states(logs: Path, id: str) -> dict[str, JobState]:
    """Of every job of a submission; jobs that cannot run any more, as their process is gone, have failed."""
    try:
        found: dict[str, Any] = json.loads(state_file(logs, id).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    states = {name: JobState(Phase(s["phase"]), s["reason"], s["exit_code"]) for name, s in found["jobs"].items()}
    if found["host"] != socket.gethostname():
        return {
            name: s if s.phase.is_over else dataclasses.replace(s, reason=f"on {found['host']}")
            for name, s in states.items()
        }
    if Identity(*found["process"]).runs():
        return states
    gone = JobState(Phase.FAILED, "the process that ran it has ended without a word: launch again to go on")
    return {name: s if s.phase.is_over else gone for name, s in states.items()}


# ---- the process in the background ------------------------------------------------------------------------------


class JobsInTurn:
    """Runs the jobs of a submission, one after the other, and writes down what becomes of each."""

    def __init__(self, logs: Path, id: str) -> None:
        plan = json.loads(_plan(logs, id).read_text(encoding="utf-8"))
        self._logs, self._id, self._max_restarts = logs, id, plan["max_restarts"]
        self._jobs: list[dict[str, Any]] = plan["jobs"]
        self._earlier: list[dict[str, str]] = plan["earlier"]
        self._states = {job["name"]: JobState(Phase.WAITING) for job in self._jobs}

    def run(self) -> bool:
        """Returns whether all of them ended well."""
        self._write()
        with collected_signals() as received:
            before, stopped = self._wait_for_earlier(received), False
            for job in self._jobs:
                name = job["name"]
                failed = [other for other in job["after"] if {**before, **self._states}[other].phase != Phase.DONE]
                if received or stopped or self._is_cancelled(name):
                    self._put(name, CANCELLED)
                elif failed:
                    self._put(
                        name, JobState(Phase.CANCELLED, f"{' and '.join(failed)}, which it needs, did not end well")
                    )
                else:
                    self._put(name, JobState(Phase.RUNNING))
                    self._put(name, self._ended(job, received))
                    # A signal that came meanwhile was handed on to it, and is meant for those after it as well.
                    stopped = self._states[name].phase is Phase.CANCELLED and not self._is_cancelled(name)
        return all(state.phase is Phase.DONE for state in self._states.values())

    def _ended(self, job: Mapping[str, Any], received: list[int]) -> JobState:
        name = job["name"]
        run = Restarted(job["here"], self._max_restarts, _output(self._logs, self._id, name))
        code, asked = run.run(received, lambda: self._is_cancelled(name))
        if code == 0:
            return JobState(Phase.DONE, "", 0)
        if asked or code in ASKED_TO_LEAVE:
            return dataclasses.replace(CANCELLED, exit_code=code)
        return JobState(Phase.FAILED, f"exit code {code}", code)

    def _is_cancelled(self, name: str) -> bool:
        return _cancel_file(self._logs, self._id, name).exists()

    def _wait_for_earlier(self, received: list[int]) -> dict[str, JobState]:
        """States of jobs of earlier submissions, all of which have ended: two would be in each other's way here."""
        while not received:
            found = {e["name"]: _read_states(Path(e["logs"]), e["id"])[e["name"]] for e in self._earlier}
            if all(state.phase.is_over for state in found.values()):
                return found
            time.sleep(1.0)
        return {e["name"]: CANCELLED for e in self._earlier}

    def _put(self, name: str, state: JobState) -> None:
        self._states[name] = state
        self._write()

    def _write(self) -> None:
        write_states(self._logs, self._id, self._states)


if __name__ == "__main__":
    process.settle_signals()
    sys.exit(0 if JobsInTurn(Path(sys.argv[1]), sys.argv[2]).run() else 1)
