"""Jobs as an experiment of NeMo-Run: on Slurm, from here or through SSH to a login node, or on this machine.

NeMo-Run's pins and vLLM's exclude each other, so it has an environment of its own (`make env-launch`), in which
`nemo_driver.py` runs, a process a question. What is submitted needs no NeMo-Run (`nemo_task`).

With the local executor a process in the background waits for NeMo-Run, which runs `r1mega.launchers.local` for one
job after the other: NeMo-Run itself would start a job whatever became of those that it needs.
"""

import dataclasses
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from r1mega.config.load import apply_overrides, validate
from r1mega.config.section import Section
from r1mega.errors import ConfigError
from r1mega.launchers import local, slurm
from r1mega.launchers.job import JobState, Launcher, LaunchOptions, Phase, StageJob, Submitted
from r1mega.launchers.nemo_task import slurm_task
from r1mega.runtime import files, process

DRIVER = Path(__file__).with_name("nemo_driver.py")
ENVIRONMENT = Path(".venv-launch/bin/python")
TAIL_BYTES = 1 << 20
"""Of a log that lies on another host."""


class NemoRunSettings(Section):
    """`--with NAME=VALUE` of `r1mega launch --launcher nemo_run`."""

    executor: Literal["slurm", "local"] = "slurm"
    """run.SlurmExecutor; or run.LocalExecutor: the jobs of a chain one after the other, on this machine."""
    host: str | None = None
    """A login node to submit on through run.SSHTunnel; without it Slurm's commands are those of this machine."""
    user: str | None = None
    """Of that host."""
    port: int = Field(default=22, ge=1, le=65535)
    """Of its SSH server."""
    identity: str | None = None
    """The private key's file."""
    root: str | None = None
    """Where the repository lies on that host, with its .venv."""
    job_dir: str | None = None
    """On that host, for NeMo-Run's own files; ROOT/runs/.nemo-run unless said."""
    python: Path | None = None
    """The interpreter of the environment that has NeMo-Run; .venv-launch/bin/python unless said."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        others = {"user": self.user, "root": self.root}
        if self.host is not None:
            if self.executor == "local":
                raise ValueError("host is for executor=slurm: the local executor runs jobs on this machine")
            if missing := [name for name, value in others.items() if value is None]:
                raise ValueError(
                    f"host needs {' and '.join(missing)} as well: who logs in there, and where r1mega lies"
                )
        elif given := [n for n, v in {**others, "identity": self.identity, "job_dir": self.job_dir}.items() if v]:
            raise ValueError(f"{' and '.join(given)}: of a login node, and no host is given")
        return self


def make(options: LaunchOptions) -> Launcher:
    """The launcher, with `NemoRunSettings`.

    Raises:
        ConfigError: a setting is unknown or does not go with another, the folder is no checkout, or NeMo-Run's
            environment is not there.
    """
    table: dict[str, Any] = {}
    apply_overrides(table, options.more)
    settings = validate(NemoRunSettings, table, Path("--with"))
    python = settings.python or options.root / ENVIRONMENT
    if not python.exists():
        raise ConfigError(f"{python} is not there: NeMo-Run has an environment of its own; run `make env-launch`")
    slurm.make(LaunchOptions(options.root))  # refuses a folder that is no checkout
    driver = NemoDriver(python, options.root, settings)
    if settings.executor == "local":
        return NemoRunHere(driver, options.root)
    return NemoRun(driver, options.root)


# ---- its environment --------------------------------------------------------------------------------------------


class NemoDriver:
    """Asks NeMo-Run, in a process of its environment."""

    def __init__(self, python: Path, root: Path, settings: NemoRunSettings) -> None:
        self.python, self._root, self._settings = python, root, settings

    @property
    def root(self) -> str:
        """The repository's, where jobs run."""
        return self._settings.root or str(self._root.resolve())

    @property
    def is_remote(self) -> bool:
        return self._settings.host is not None

    def there(self, path: Path) -> Path:
        """A path of this checkout's as one of the checkout where jobs run."""
        inside = self.is_remote and path.is_absolute() and path.is_relative_to(self._root.resolve())
        return path.relative_to(self._root.resolve()) if inside else path

    def tunnel(self, folders: Iterable[str] = ()) -> dict[str, Any] | None:
        """Arguments of run.SSHTunnel; None: Slurm's commands are those of this machine.

        Args:
            folders: made before every command.
        """
        if self._settings.host is None:
            return None
        made = [f"mkdir -p {shlex.join(folders)}"] if folders else []
        return {
            "host": self._settings.host, "user": self._settings.user, "port": self._settings.port,
            "identity": self._settings.identity,
            "job_dir": self._settings.job_dir or f"{self.root}/runs/.nemo-run",
            "pre_command": " && ".join([f"cd {shlex.quote(self.root)}", *made]),
        }  # fmt: skip

    def ask(self, verb: str, *, heard: bool = False, **asked: Any) -> dict[str, Any]:
        """What `nemo_driver` answers.

        Args:
            heard: whether what NeMo-Run says is written where this process writes.

        Raises:
            ConfigError: it has no answer, or the answer is an error, such as sbatch's.
        """
        with tempfile.TemporaryDirectory() as folder:
            question, answer = Path(folder) / "asked.json", Path(folder) / "answer.json"
            files.write_json(question, {"verb": verb, **asked})
            said = subprocess.run(
                [str(self.python), "-P", str(DRIVER), str(question), str(answer)], cwd=self._root,
                env=process.child_environment(), stdin=subprocess.DEVNULL, capture_output=not heard, text=True,
            )  # fmt: skip
            found = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {}
        if "error" in found:
            raise ConfigError(f"NeMo-Run did not {verb}: {found['error']}")
        if said.returncode or not found:
            told = "\n  ".join(f"{said.stdout or ''}{said.stderr or ''}".strip().splitlines()[-8:])
            raise ConfigError(f"{self.python} {DRIVER.name} ended with exit code {said.returncode}:\n  {told}")
        return found

    def run(self, command: Sequence[str], cwd: Path | None) -> subprocess.CompletedProcess[str]:
        """One of Slurm's commands, where Slurm is."""
        if not self.is_remote:
            return slurm.run_here(command, cwd)
        code, out, err = self.ask("ask", tunnel=self.tunnel(), command=shlex.join(command))["said"]
        return subprocess.CompletedProcess(command, code, out, err)


# ---- the launchers ----------------------------------------------------------------------------------------------


class NemoRun(slurm.SlurmLauncher):
    """On Slurm. States, ends and logs are those of the slurm launcher: NeMo-Run's own need accounting (sacct)."""

    name = "nemo_run"
    elsewhere = True

    def __init__(self, driver: NemoDriver, root: Path) -> None:
        super().__init__(root, driver.run)
        self._driver = driver

    def _experiment(self, jobs: Sequence[StageJob], earlier: Mapping[str, Submitted]) -> dict[str, Any]:
        jobs = [dataclasses.replace(job, logs=self._driver.there(job.logs)) for job in jobs]
        names = {job.name for job in jobs}
        heads = {job.script: (self._root / job.script).read_text(encoding="utf-8") for job in jobs}
        tasks = [slurm_task(job, heads[job.script], self._driver.root, names, earlier) for job in jobs]
        folders = sorted({str(job.logs) for job in jobs})
        return {"title": _title(jobs), "tunnel": self._driver.tunnel(folders), "tasks": tasks}

    def render(self, jobs: Sequence[StageJob], folder: Path) -> list[Path]:
        """NAME.sh: the batch scripts that NeMo-Run would hand to sbatch."""
        files.make_folder(folder)
        made = self._driver.ask("render", folder=str(folder.resolve()), **self._experiment(jobs, {}))["files"]
        return [folder / name for name in made]

    def submit(self, jobs: Sequence[StageJob], *, earlier: Mapping[str, Submitted]) -> list[Submitted]:
        asked = self._experiment(jobs, earlier)
        if not self._driver.is_remote:
            for job in jobs:
                files.make_folder(self._root / job.logs)
        ids = self._driver.ask("submit", **asked)["jobs"]
        return [Submitted(job, self.name, ids[job.name]) for job in jobs]

    def _written(self, file: Path) -> str:
        if not self._driver.is_remote:
            return super()._written(file)
        return self._run(["cat", str(self._driver.there(file))], None).stdout

    def logs(self, job: Submitted) -> list[Path]:
        """On another host the job's own output alone, of which the end is copied here."""
        if not self._driver.is_remote:
            return super().logs(job)
        output = job.job.logs / f"{job.job.name}-{job.id}.out"
        said = self._run(["tail", f"--bytes={TAIL_BYTES}", str(self._driver.there(output))], None)
        if said.returncode:
            return []
        files.make_folder(self._root / job.job.logs)
        files.write_text(self._root / output, said.stdout)
        return [self._root / output]


class NemoRunHere(local.LocalLauncher):
    """On this machine, one job after the other. A job's id is its own: its files are those of a submission of
    `local` that is this job alone, and LOGS/nemo_run-ID.json says what is run together."""

    name = "nemo_run"
    elsewhere = False

    def __init__(self, driver: NemoDriver, root: Path) -> None:
        super().__init__(root)
        self._driver = driver

    def submit(self, jobs: Sequence[StageJob], *, earlier: Mapping[str, Submitted]) -> list[Submitted]:
        logs, id = (self._root / jobs[0].logs).resolve(), local.new_id()
        done: dict[str, Submitted] = {}
        for job in jobs:
            done[job.name] = Submitted(job, self.name, f"{id}-{job.name}")
            before = {**earlier, **{name: done[name] for name in job.after if name in done}}
            self._write_plan(self._logs(done[job.name]), done[job.name].id, [job], before)
        tasks = [_local_task(submitted, self._logs(submitted)) for submitted in done.values()]
        plan = {"python": self._driver.python, "root": self._root, "title": _title(jobs), "tasks": tasks}
        files.write_json(logs / f"nemo_run-{id}.json", plan)
        with (logs / f"nemo_run-{id}.log").open("ab") as log:
            started = subprocess.Popen(
                [sys.executable, "-m", "r1mega.launchers.nemo_run", str(logs / f"nemo_run-{id}.json")],
                cwd=self._root, env=process.child_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + local.START_S
        while not all(local.state_file(self._logs(job), job.id).exists() for job in done.values()):
            if started.poll() is not None or time.monotonic() > deadline:
                raise ConfigError(f"the process in the background did not start; {log.name} says why")
            time.sleep(0.02)
        return list(done.values())


def _local_task(submitted: Submitted, logs: Path) -> dict[str, Any]:
    return {
        "name": submitted.job.name, "after": [], "earlier": [],
        "script": {
            "entrypoint": sys.executable, "m": True, "path": "r1mega.launchers.local",
            "args": [str(logs), submitted.id],
        },
    }  # fmt: skip


def _title(jobs: Sequence[StageJob]) -> str:
    """Of the experiment: a chain's or a run's folder, by its name."""
    return jobs[0].logs.resolve().parent.name


def run_here(plan_file: Path) -> None:
    """The process in the background: until each job's own process answers for it, this one does."""
    plan = json.loads(plan_file.read_text(encoding="utf-8"))
    for task in plan["tasks"]:
        logs, id = task["script"]["args"]
        local.write_states(Path(logs), id, {task["name"]: JobState(Phase.WAITING)})
    driver = NemoDriver(Path(plan["python"]), Path(plan["root"]), NemoRunSettings(executor="local"))
    driver.ask("run", heard=True, title=plan["title"], tunnel=None, tasks=plan["tasks"])


if __name__ == "__main__":
    process.settle_signals()
    run_here(Path(sys.argv[1]))
