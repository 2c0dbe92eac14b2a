"""What Slurm granted the job that this process belongs to, as `scontrol` tells."""

import re
import subprocess

from r1mega.config.slurm import GrantedNode
from r1mega.errors import ConfigError, SlurmSilentError
from r1mega.runtime import env

_NODES = re.compile(r"\bNodes=(\S+) CPU_IDs=(\S+) Mem=\S+ GRES=(\S*)")
_GPUS = re.compile(r"\bgpu(?::[^:,()]+)?:(\d+)")


def granted() -> tuple[GrantedNode, ...]:
    """The job's nodes in Slurm's order, with its CPUs and GPUs on each.

    Raises:
        ConfigError: this is no Slurm job, or it has not its commands.
        SlurmSilentError: Slurm does not answer.
    """
    job = env.slurm_job()
    if job is None:
        raise ConfigError("not a Slurm job (no SLURM_JOB_ID): nothing was granted that a stage could be placed on")
    said, found = _ask("show", "--details", "--oneliner", "job", job), dict[str, GrantedNode]()
    for names, cpu_ids, gres in _NODES.findall(said):
        for name in _ask("show", "hostnames", names).split():
            gpus = sum(map(int, _GPUS.findall(gres)))
            found[name] = GrantedNode(name, _count(cpu_ids), gpus if gpus or _has_gpus(name) else None)
    nodes = re.search(r"\sNodeList=(\S+)", said)
    if nodes is None or not found:
        raise ConfigError(f"`scontrol show --details job {job}` names no nodes; is the job running?")
    return tuple(found[name] for name in _ask("show", "hostnames", nodes[1]).split())


def _has_gpus(node: str) -> bool:
    shown = re.search(r"\bGres=(\S+)", _ask("show", "--oneliner", "node", node))
    return shown is not None and _GPUS.search(shown[1]) is not None


def _count(ids: str) -> int:
    """CPUs in a list such as "0-3,8"."""
    ranges = [(part.partition("-")[0], part.partition("-")[2]) for part in ids.split(",")]
    return sum(int(last or first) - int(first) + 1 for first, last in ranges)


def _ask(*arguments: str) -> str:
    try:
        done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True)
    except OSError as error:
        raise ConfigError(f"scontrol: {error.strerror}: Slurm's commands are not on PATH of the job") from None
    if done.returncode:
        raise SlurmSilentError(f"scontrol {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
