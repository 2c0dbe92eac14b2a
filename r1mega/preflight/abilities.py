"""Whether model, layout, machine and engine can do what a config asks for: arithmetic, without torch."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from r1mega.config.cluster import Cluster
from r1mega.config.schema import GRPO, SFT, Evaluate, Stage
from r1mega.data.tasks import TASKS
from r1mega.errors import ConfigError
from r1mega.families.registry import check_layout, check_lengths
from r1mega.families.spec import ModelSpec
from r1mega.layout.memory import BYTES, GIB, RankMemory, num_parameters, rank_memory
from r1mega.rollout.kernels import kernel_faults
from r1mega.runtime.resources import machine_memory_gib

GPU_GIB = {"ampere": 80.0, "ada": 48.0, "hopper": 141.0, "blackwell": 288.0, "blackwell_rtx": 96.0}
"""Most memory of a GPU of that kind, where `gpu_memory_gib` does not say: A100, L40S, H200, B300, RTX PRO 6000."""


def ability_faults(stage: Stage, cluster: Cluster, spec: ModelSpec | None) -> list[str]:
    """What cannot be done, with the remedy.

    Args:
        spec: the model, where anything is known of it.
    """
    faults = [] if isinstance(stage, SFT) else [fault for task in stage.tasks for fault in _task_faults(task.name)]
    samples = isinstance(stage, GRPO | Evaluate)
    if samples and cluster.device == "cuda":
        faults.append(
            f"cluster.device = cuda: rollout servers are started on CPUs alone as yet, so a {stage.stage} stage does "
            "not run on GPUs; supervised stages and the trainer do"
        )
    if spec is None:
        return faults
    fits = True
    try:
        if not isinstance(stage, Evaluate):
            check_layout(spec, cluster.trainer, stage.batch)
    except ConfigError as error:
        faults.append(str(error))
        fits = False
    try:
        if isinstance(stage, SFT):
            check_lengths(stage.data.max_tokens, spec, stage.batch, "data.max_tokens")
        elif isinstance(stage, GRPO):
            check_lengths(stage.sampling.max_new_tokens + 1, spec, stage.batch)
    except ConfigError as error:
        faults.append(str(error))
    if samples and cluster.device == "cpu":
        faults += kernel_faults(spec, cluster.rollout.tp)
    return faults + (memory_faults(stage, cluster, spec) if fits else [])


def _task_faults(name: str) -> list[str]:
    if name in TASKS:
        return []
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return [f"tasks: unknown task {name!r}{hint}: the supported ones are {', '.join(TASKS)}"]


def memory_faults(stage: Stage, cluster: Cluster, spec: ModelSpec) -> list[str]:
    """Whether a rank's state alone, or the engine's weights, are more than a GPU has, or on cpu a whole machine."""
    if cluster.device == "cpu":
        parts, gib = _on_cpu(stage, cluster, spec)
        most = max((part for part in parts if part.size > gib * GIB), key=lambda part: part.size, default=None)
        return [f"memory: {_told([most], cluster, gib)}"] if most else []
    ranks = _ranks(stage, cluster, spec)
    gib = cluster.gpu_memory_gib or (GPU_GIB[cluster.gpu] if cluster.gpu else None)
    largest = max(ranks, key=lambda rank: rank.total, default=None)
    if gib is None or largest is None or largest.total <= gib * GIB:
        return []
    said = "cluster.gpu_memory_gib" if cluster.gpu_memory_gib else f"the most that cluster.gpu = {cluster.gpu!r} has"
    return [
        f"memory: on a GPU of pipeline rank {ranks.index(largest)} {largest}, and it has {gib:g} GiB ({said}). "
        "Divide the model further (cluster.trainer.tp, pp, ep; dp divides the optimiser's state alone), or take "
        "a cluster file that was made for its size"
    ]


def missing_memory(stage: Stage, cluster: Cluster, spec: ModelSpec) -> list[str]:
    """Whether all ranks and the engine together are more than this machine has; over several they may fit."""
    if cluster.device != "cpu":
        return []
    parts, gib = _on_cpu(stage, cluster, spec)
    if sum(part.size * part.times for part in parts) <= gib * GIB:
        return []
    return [f"memory: {_told(parts, cluster, gib)}; or start the ranks on several machines (slurm/rl_stage.sh)"]


@dataclass(frozen=True)
class _Part:
    """What processes of one kind hold in a machine's memory."""

    what: str
    size: float
    """Bytes of one."""
    times: int = 1


def _ranks(stage: Stage, cluster: Cluster, spec: ModelSpec) -> list[RankMemory]:
    mtp = stage.objective.mtp if isinstance(stage, GRPO) else stage.mtp if isinstance(stage, SFT) else "joint"
    if isinstance(stage, Evaluate):
        return []
    return rank_memory(spec.tensors(), spec, cluster.trainer, mtp_learns=mtp != "off")


def _on_cpu(stage: Stage, cluster: Cluster, spec: ModelSpec) -> tuple[list[_Part], float]:
    """What takes memory, and GiB of the machine."""
    layout = cluster.trainer
    copies = layout.tp * layout.cp * layout.dp
    keeps_reference = isinstance(stage, GRPO) and stage.objective.kl_coef > 0
    parts: list[_Part] = []
    for rank in _ranks(stage, cluster, spec):
        what = f"a rank's {rank.params / 1e9:,.3g}B parameters in fp32, 4 bytes each, gradients 4, Adam's moments 8"
        what += ", a reference 4" if keeps_reference else ""
        parts.append(_Part(what, rank.total + (rank.weights if keeps_reference else 0), copies))
    if isinstance(stage, GRPO | Evaluate) and not cluster.rollout.launch:
        number = num_parameters(spec.tensors(), mtp=False)
        what = f"the engine's {number / 1e9:,.3g}B parameters in {cluster.rollout.dtype} and its cache"
        parts.append(_Part(what, number * BYTES[cluster.rollout.dtype] + cluster.rollout.kv_cache_gib * GIB))
    return parts, cluster.memory_gib or machine_memory_gib() or math.inf


def _told(parts: Sequence[_Part], cluster: Cluster, gib: float) -> str:
    many = len(parts) > 1
    each = [(f"{part.times} times " if many and part.times > 1 else "", part) for part in parts]
    told = ", ".join(f"{times}{part.what}: {part.size / GIB:,.1f} GiB" for times, part in each)
    said = "cluster.memory_gib" if cluster.memory_gib else "this one; cluster.memory_gib says otherwise"
    return (
        f"{told}, before activations, and the machine has {gib:,.1f} GiB ({said}). Take a smaller model, or a "
        "cluster file with GPUs that hold it"
    )
