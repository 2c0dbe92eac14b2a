"""What a process finds itself in, held against the `[environment]` table of its cluster file.

Variables are set where they are not. Modules, a Python environment and a container are entered by whoever starts the
process (slurm/environment.sh); where nobody has, that is said.
"""

import os
import sys
from pathlib import Path
from typing import Any

from r1mega.config import variables
from r1mega.config.environment import Environment


def enter(environment: Environment) -> None:
    """Replace this process by itself with a trainer's variables, unless they are set already.

    Libraries read many of them when they are loaded, and the loader some before that, so that it must be another
    process. A value that differs gives way to the cluster file's, which is said.
    """
    wanted = environment.of_trainer
    missing = {name: value for name, value in wanted.items() if os.environ.get(name) != value}
    if not missing:
        return
    for name in sorted(missing.keys() & os.environ.keys()):
        said = f"{os.environ[name]!r} in the environment and {wanted[name]!r} by the cluster file, which holds"
        print(f"note: {name} is {said}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "r1mega.cli", *sys.argv[1:]], {**os.environ, **missing})


def not_entered(environment: Environment) -> list[str]:
    """What the cluster file names and this process is not in, a line each."""
    loaded = os.environ.get("LOADEDMODULES", "").split(":")
    found = [
        f"cluster.environment.modules: {name} is not loaded here: without Slurm load it before you start the run"
        for name in environment.modules
        if not any(one == name or one.startswith(f"{name}/") for one in loaded)
    ]
    prefix = Path(sys.prefix)
    if environment.venv is not None and prefix.resolve() != environment.venv.resolve():
        found.append(_other_python("venv", str(environment.venv)))
    if (conda := environment.conda) is not None:
        wanted = Path(conda).resolve() == prefix.resolve() if conda.startswith("/") else prefix.name == conda
        if not wanted and os.environ.get("CONDA_DEFAULT_ENV") != conda:
            found.append(_other_python("conda", conda))
    if (container := environment.container) is not None and sys.executable != container.python:
        said = f"not inside {container.image}, whose interpreter is {container.python}"
        found.append(f"cluster.environment.container: {said}: without Slurm start the run in it")
    return found


def _other_python(setting: str, wanted: str) -> str:
    said = f"{wanted} is not the environment of {sys.executable}: start the run with its own interpreter"
    return f"cluster.environment.{setting}: {said}"


def in_force(environment: Environment) -> dict[str, Any]:
    """What run.json says of where a start ran: interpreter, modules, container, and variables as this process has
    them, those that the cluster file sets and those of the same families that it has found. No secrets."""
    names = {name for name in os.environ if variables.recorded(name)} | environment.of_trainer.keys()
    container = environment.container
    return {
        "python": sys.executable,
        "modules": [name for name in os.environ.get("LOADEDMODULES", "").split(":") if name],
        "conda": os.environ.get("CONDA_PREFIX", "") if environment.conda else "",
        "container": container.image if container is not None else "",
        "variables": {name: os.environ[name] for name in sorted(names) if name in os.environ},
        "servers": environment.of_rollout,
    }
