"""In what a stage's processes run: modules, a Python environment or a container, variables; and what nodes must have.

The `[environment]` table of a cluster file. Under Slurm the batch script enters all of it (slurm/environment.sh);
without Slurm variables are set, and the rest is what a process finds itself in (`runtime.environment`).
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from r1mega.config import variables
from r1mega.config.section import AnchoredPath, OnResume, Section, anchor_if_path


def _as_text(value: object) -> object:
    """A whole number as a text: what a variable holds is one."""
    if isinstance(value, bool | float):
        raise ValueError("should be a text: write it in quotes, as the library that reads it wants it")
    if isinstance(value, str) and "\0" in value:
        raise ValueError("holds a zero byte, which no variable can")
    return str(value) if isinstance(value, int) else value


def _may_be_set(name: str) -> str:
    if (fault := variables.fault_of(name)) is not None:
        raise ValueError(fault)
    return name


def _may_be_set_for_servers(name: str) -> str:
    if (fault := variables.fault_of(name, servers=True)) is not None:
        raise ValueError(fault)
    return name


Name = Annotated[str, AfterValidator(_may_be_set)]
NameForServers = Annotated[str, AfterValidator(_may_be_set_for_servers)]
Value = Annotated[str, BeforeValidator(_as_text)]
"""Of a variable: a text, or a whole number."""


class Container(Section):
    """An image in which the steps of a job run, the trainer's and the servers'; the batch script is outside."""

    kind: Literal["pyxis", "apptainer"]
    """pyxis: srun starts steps in it, by NVIDIA's plugin and enroot. apptainer: each task is `apptainer exec`."""
    image: Annotated[str, BeforeValidator(anchor_if_path)]
    """A file that all nodes see (.sqsh, .sif), or an address that enroot or Apptainer itself understands."""
    mounts: tuple[Annotated[str, Field(pattern=r"^/[^:,\s]*(:/[^:,\s]*(:(ro|rw))?)?$")], ...] = ()
    """FROM, FROM:TO or FROM:TO:ro, beside the checkout, which is there under its own path."""
    python: str = Field(default="/opt/r1mega/.venv-gpu-trainer/bin/python", pattern=r"^/\S+$")
    """The trainer's interpreter, as it is inside; the engine's is `rollout.python`."""
    gpus: Literal["nv", "nvccli", "none"] | None = None
    """Apptainer's way of bringing the host's driver in: --nv, or --nvccli by nvidia-container-cli. None: nv on cuda,
    none on cpu. Under pyxis enroot's own hook does it."""

    @model_validator(mode="after")
    def _one_way_to_gpus(self) -> "Container":
        if self.kind == "pyxis" and self.gpus is not None:
            raise ValueError("gpus is Apptainer's: under pyxis enroot's hook brings the driver in; leave it out")
        return self

    @field_validator("image")
    @classmethod
    def _is_a_word(cls, image: str) -> str:
        if image.startswith("-"):
            raise ValueError("begins as an option does: give a path or an address")
        return image


class Checks(Section):
    """What is looked at on every node of a job before a stage starts there (slurm/nodes.sh)."""

    enabled: bool = True
    """Off, nothing is looked at, and the job's output says so."""
    report_s: float = Field(default=60.0, gt=0)
    """Longest wait for what a node says of itself; one that has said nothing by then is bad."""
    run_dir_free_gib: float = Field(default=1.0, ge=0)
    """Least free disk where the run directory is. Checkpoints are the stage's to judge."""
    tmp_free_gib: float = Field(default=1.0, ge=0)
    """Least free disk of a node's TMPDIR, or /tmp."""
    clock_skew_s: float = Field(default=5.0, gt=0)
    """Most that a node's clock may be off from the first node's: records of a run are put in order by time."""
    gpu_used_gib: float = Field(default=2.0, ge=0)
    """Most memory of a GPU that is in use before the stage starts there: more is another process's."""
    all_reduce: bool = True
    """Whether processes on all nodes sum a tensor, over NCCL, one a GPU, or over gloo, one a node."""
    all_reduce_s: float = Field(default=120.0, gt=0)
    """Longest time of that, torch's import included; who has not come by then, or comes to no end, is bad."""
    all_reduce_mib: float = Field(default=32.0, gt=0)
    """Size of that tensor."""
    slow_link: float = Field(default=0.25, ge=0, lt=1)
    """A node whose every link is slower than this share of the others' median is bad, where there are at least four
    nodes; 0 looks for none."""


class Environment(Section):
    """What processes run in. Variables are set after everything else, and so hold."""

    modules: tuple[Annotated[str, Field(pattern=r"^[^\s-]\S*$")], ...] = ()
    """Names that the batch script gives to `module load`, in this order; under Slurm alone."""
    venv: AnchoredPath | None = None
    """Folder of a virtual environment that all nodes see, with the trainer's interpreter; None: the checkout's."""
    conda: Annotated[str, BeforeValidator(anchor_if_path)] | None = Field(default=None, pattern=r"^[^\s-]\S*$")
    """Name or folder of a conda environment with the trainer's interpreter, which the batch script activates."""
    container: Container | None = None
    variables: dict[Name, Value] = Field(default_factory=dict)
    """Of all processes: trainer ranks, rollout servers, and the batch script."""
    trainer: dict[Name, Value] = Field(default_factory=dict)
    """Of trainer ranks, before `variables`."""
    rollout: dict[NameForServers, Value] = Field(default_factory=dict)
    """Of rollout servers, before `variables`."""
    checks: Annotated[Checks, OnResume.FREE] = Checks()

    @model_validator(mode="after")
    def _one_interpreter(self) -> "Environment":
        named = [name for name in ("venv", "conda", "container") if getattr(self, name) is not None]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} would each bring the interpreter: keep one of them")
        return self

    @property
    def of_trainer(self) -> dict[str, str]:
        """Variables of a trainer rank."""
        return {**self.variables, **self.trainer}

    @property
    def of_rollout(self) -> dict[str, str]:
        """Variables of a rollout server."""
        return {**self.variables, **self.rollout}

    @property
    def image_file(self) -> Path | None:
        """The image, where it is a file."""
        if self.container is not None and self.container.image.startswith("/"):
            return Path(self.container.image)
        return None
