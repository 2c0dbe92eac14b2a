"""How a batch script enters the environment of a cluster file: lines of shell that slurm/environment.sh reads.

Each is an assignment, of a text or of an array, in which every word is quoted: whatever a value holds, bash takes it
for text. Sources: the manuals of pyxis 0.21 (srun's --container-* options) and Apptainer 1.4 (`apptainer exec`).
"""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from r1mega.config.cluster import Cluster
from r1mega.config.environment import Container
from r1mega.errors import ConfigError


def shell_lines(machine: Cluster, checkout: Path) -> str:
    """What a batch script does to enter an environment, a line each.

    environment_modules    given to `module load`        environment_venv, environment_conda    what is activated
    environment_image      a file that must be there     environment_python    the interpreter inside a container
    environment_srun       options of each step's srun   environment_within    what each step's command is put behind
    environment_variables, environment_trainer, environment_rollout    NAME=VALUE of the script, of ranks, of servers
    environment_checks     "on" or "off"

    Raises:
        ConfigError: the checkout has a name that cannot be mounted.
    """
    environment = machine.environment
    container, image = environment.container, environment.image_file
    arrays = {
        "modules": environment.modules,
        "srun": _of_srun(container, checkout) if container else (),
        "within": _within(container, checkout, machine.device == "cuda") if container else (),
        "variables": _pairs(environment.variables),
        "trainer": _pairs(environment.of_trainer),
        "rollout": _pairs(environment.of_rollout),
    }
    texts = {
        "venv": str(environment.venv or ""),
        "conda": environment.conda or "",
        "image": str(image or ""),
        "python": container.python if container else "",
        "checks": "on" if environment.checks.enabled else "off",
    }
    lines = [f"environment_{name}=({' '.join(map(shlex.quote, words))})" for name, words in arrays.items()]
    return "\n".join([*lines, *(f"environment_{name}={shlex.quote(text)}" for name, text in texts.items())])


def _pairs(variables: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in variables.items()]


def _of_srun(container: Container, checkout: Path) -> tuple[str, ...]:
    """Pyxis' options."""
    if container.kind != "pyxis":
        return ()
    return (
        f"--container-image={container.image}", f"--container-workdir={checkout}", "--no-container-mount-home",
        f"--container-mounts={','.join(_mounts(container, checkout))}",
    )  # fmt: skip


def _within(container: Container, checkout: Path, cuda: bool) -> tuple[str, ...]:
    """Apptainer's command line, up to the image. A home that others have filled brings no packages in."""
    if container.kind != "apptainer":
        return ()
    gpus = container.gpus or ("nv" if cuda else "none")
    return (
        "apptainer", "exec", *(() if gpus == "none" else (f"--{gpus}",)), "--no-home", "--writable-tmpfs",
        "--bind", ",".join(_mounts(container, checkout)), "--pwd", str(checkout), container.image,
    )  # fmt: skip


def _mounts(container: Container, checkout: Path) -> Iterable[str]:
    if any(mark in str(checkout) for mark in ",: \t\n"):
        raise ConfigError(
            f"environment.container: the checkout {checkout} has a comma, a colon or a space in its path, which no "
            "mount can have; move it"
        )
    own = str(checkout)
    return (f"{own}:{own}", *(mount if ":" in mount else f"{mount}:{mount}" for mount in container.mounts))
