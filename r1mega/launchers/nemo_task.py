"""A job of Slurm's as arguments of NeMo-Run's: run.Script, and run.SlurmExecutor. Imports nothing of NeMo-Run.

NeMo-Run would start a script as a step of srun, once for each task, below a shell that heeds no signal: the notice of
--signal=B:USR1 would end that shell, and the job with it, in place of a save and a requeue. So its batch script
becomes the job's (`become`). sbatch then sees no option at the head of that one, since it looks at NeMo-Run's alone:
they are read here.
"""

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from r1mega.errors import ConfigError
from r1mega.launchers.job import StageJob, Submitted

FIELDS = frozenset({
    "account", "partition", "time", "nodes", "ntasks_per_node", "cpus_per_task", "cpus_per_gpu", "gpus_per_node",
    "gpus_per_task", "qos", "mem", "mem_per_gpu", "mem_per_cpu", "comment", "constraint", "exclude", "gres", "signal",
    "exclusive", "array", "open_mode", "segment", "network",
})  # fmt: skip
"""Options of sbatch that run.SlurmExecutor has an argument for; the others are its additional_parameters."""
NUMBERS = frozenset({"nodes", "ntasks_per_node", "cpus_per_task", "cpus_per_gpu", "gpus_per_node", "gpus_per_task"})
REPLACED = "/nemo_run"
"""NeMo-Run 0.11.1 replaces this text by a folder of its own wherever it stands in a batch script."""


def head_options(script: str) -> list[str]:
    """Options in the lines `#SBATCH OPTION...` of a batch script's text that sbatch heeds: those before its first
    command."""
    found: list[str] = []
    for line in script.splitlines():
        if line.strip() and not line.startswith("#"):
            break
        if line.startswith("#SBATCH "):
            found += shlex.split(line.removeprefix("#SBATCH "), comments=True)
    return found


def executor_arguments(options: Sequence[str]) -> dict[str, Any]:
    """Options of sbatch as arguments of run.SlurmExecutor; a later one has precedence over an earlier.

    Args:
        options: "--name=value" or "--name", as `slurm.refuse_options` lets them pass.

    Raises:
        ConfigError: NeMo-Run does not pass one on as it is.
    """
    # Without an account NeMo-Run has to be told what names of jobs begin with.
    made: dict[str, Any] = {"account": None, "job_name_prefix": "r1mega.", "poll_estimated_start_time": False}
    more: dict[str, Any] = {}
    for option in options:
        if option == "--no-requeue":
            raise ConfigError(f"--sbatch {option}: NeMo-Run submits with --requeue, always; use --launcher slurm")
        if REPLACED in option:
            raise ConfigError(
                f"{option}: NeMo-Run replaces {REPLACED} by a folder of its own; name that path otherwise"
            )
        flag, equals, text = option.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        value: Any = True if not equals else int(text) if name in NUMBERS and text.isdecimal() else text
        (made if name in FIELDS else more)[name] = value
    return {**made, "additional_parameters": more}


def become(root: str, script: str, arguments: Sequence[str]) -> str:
    """Shell that turns a batch script of NeMo-Run's into one of slurm/: the same process, so that it gets the signals
    that Slurm sends a batch script, its exit code is the job's, and a requeue starts the same again.

    NeMo-Run has no other place for it than `setup_lines`, which stand before its own srun: that is never reached.
    """
    line = f"cd {shlex.quote(root)} && export SLURM_SUBMIT_DIR=$PWD && exec bash {shlex.join([script, *arguments])}"
    # Two quotes change nothing for the shell, and hide the text from NeMo-Run: see REPLACED.
    return line.replace(REPLACED, f"{REPLACED[0]}''{REPLACED[1:]}")


def slurm_task(
    job: StageJob, head: str, root: str, names: Collection[str], earlier: Mapping[str, Submitted]
) -> dict[str, Any]:
    """A job as `nemo_driver` takes it.

    Args:
        head: the text of its script.
        root: the repository's, where it runs.
        names: of all jobs of this submission.
        earlier: jobs of earlier ones that it may wait for as well.
    """
    of_head = [option for option in head_options(head) if not option.startswith("--job-name")]
    output = f"--output={job.logs}/{job.name}-%j.out"
    made = executor_arguments([*of_head, "--kill-on-invalid-dep=yes", output, *job.options])
    before = [earlier[name].id for name in job.after if name not in names and name in earlier]
    if before:  # NeMo-Run's own go to the command line, which has precedence; the driver adds these there
        made["additional_parameters"]["dependency"] = f"afterok:{':'.join(before)}"
    return {
        "name": job.name,
        "script": {"path": job.script, "args": [shlex.quote(word) for word in job.arguments]},
        "after": [name for name in job.after if name in names],
        "earlier": before,
        "executor": {**made, "setup_lines": become(root, job.script, job.arguments)},
    }
