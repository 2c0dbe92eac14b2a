"""What runs in NeMo-Run's own environment: it makes an experiment of tasks, and hands it to NeMo-Run.

    PYTHON -P nemo_driver.py ASKED ANSWER

ASKED is a file of JSON that r1mega.launchers.nemo_run writes; ANSWER is written when all is done: {"jobs":
{task: id}}, {"files": [name]}, {"said": [exit code, output, errors]} or {"error": text}. Nothing of r1mega is
imported: it is not installed there. -P, since this file's folder has a nemo_run.py of its own.
"""

import contextlib
import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

run: Any = importlib.import_module("nemo_run")
invoke: Any = importlib.import_module("invoke")
Asked = dict[str, Any]


def main() -> None:
    """Do what ASKED's `verb` says."""
    asked: Asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    verbs = {"render": render, "submit": submit, "run": run_here, "ask": ask}
    try:
        answer = verbs[asked["verb"]](asked)
    except invoke.exceptions.UnexpectedExit as refused:
        answer = {"error": f"{refused.result.command}: {(refused.result.stderr or refused.result.stdout).strip()}"}
    except SystemExit:  # so NeMo-Run ends where an SSH server lets nobody in
        answer = {"error": f"{asked['tunnel']['user']}@{asked['tunnel']['host']} did not let us in by this key"}
    except Exception as fault:
        answer = {"error": f"{type(fault).__name__}: {fault}"}
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


def tunnel(asked: Asked) -> Any:
    """How Slurm's commands are reached: on this machine, or by SSH."""
    return run.SSHTunnel(**asked["tunnel"]) if asked["tunnel"] else run.LocalTunnel(job_dir="")


@contextlib.contextmanager
def experiment(asked: Asked, **settings: Any) -> Iterator[Any]:
    """The tasks of ASKED as an experiment, dependencies included."""
    # Its status is asked of sacct, which not every cluster has; r1mega asks for states itself.
    with run.Experiment(asked["title"], skip_status_at_exit=True, **settings) as made:
        for task in asked["tasks"]:
            script = run.Script(**task["script"])
            made.add(script, executor=executor(asked, task), name=task["name"], dependencies=task["after"])
            # NeMo-Run's dependencies are of one experiment.
            own = made.jobs[-1].executor
            if task["earlier"]:
                own.parse_deps = lambda own=own, ids=task["earlier"]: [*type(own).parse_deps(own), *ids]
        yield made


def executor(asked: Asked, task: Asked) -> Any:
    """Where a task runs, and with what."""
    if asked["verb"] == "run":
        return run.LocalExecutor()
    return run.SlurmExecutor(tunnel=tunnel(asked), packager=run.Packager(), **task["executor"])


def render(asked: Asked) -> Asked:
    """Write what NeMo-Run would hand to sbatch into `folder`."""
    folder = Path(asked["folder"])
    files = []
    with experiment(asked, base_dir=str(folder), id=f"{asked['title']}_dry-run") as made:
        made.dryrun(log=False, delete_exp_dir=False)
        for task in asked["tasks"]:
            written = folder / f"{task['name']}.sh"
            shutil.copyfile(Path(made._exp_dir) / f"{task['name']}_sbatch.sh", written)
            files.append(written.name)
    shutil.rmtree(folder / "experiments")
    return {"files": files}


def submit(asked: Asked) -> Asked:
    """Hand the experiment to Slurm, and leave it to it. Where one job is refused the others are cancelled again."""
    with experiment(asked) as made:
        try:
            made.run(detach=True)
        except Exception:
            made.detach = True  # do not wait for those that were submitted
            if ids := [job_id(job.handle) for job in made.jobs if job.handle]:
                made.jobs[0].executor.tunnel.run(f"scancel --full {' '.join(ids)}")
            raise
        return {"jobs": {job.id: job_id(job.handle) for job in made.jobs}, "experiment": made._id}


def job_id(handle: str) -> str:
    """Of a handle such as slurm://nemo_run/123/dev1/0."""
    return handle.partition("://")[2].split("/")[1]


def run_here(asked: Asked) -> Asked:
    """Run all tasks on this machine, one after the other; returns when they have ended."""
    with experiment(asked) as made:
        made.run(sequential=True)
    return {"experiment": made._id}


def ask(asked: Asked) -> Asked:
    """What a command does on the machine of the tunnel: exit code, standard output, standard error."""
    said = tunnel(asked).run(asked["command"], warn=True)
    return {"said": [said.exited, said.stdout, said.stderr]}


if __name__ == "__main__":
    main()
