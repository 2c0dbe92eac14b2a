"""Whether model, layout, machine and engine can do what a config asks for: arithmetic, without torch."""

import difflib

from r1mega.config.cluster import Cluster
from r1mega.config.schema import GRPO, SFT, Evaluate, Stage
from r1mega.data.tasks import TASKS
from r1mega.errors import ConfigError
from r1mega.families.registry import check_layout, check_lengths
from r1mega.families.spec import ModelSpec
from r1mega.layout.memory import BYTES, GIB, num_parameters, rank_memory
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
    """Whether the model's state alone is more than a GPU has, or on cpu the machine that all ranks share."""
    mtp = getattr(stage, "mtp", None) or (stage.objective.mtp if isinstance(stage, GRPO) else "joint")
    table, layout = spec.tensors(), cluster.trainer
    ranks = [] if isinstance(stage, Evaluate) else rank_memory(table, spec, layout, mtp_learns=mtp != "off")
    if cluster.device == "cuda":
        gib = cluster.gpu_memory_gib or (GPU_GIB[cluster.gpu] if cluster.gpu else None)
        largest = max(ranks, key=lambda rank: rank.total, default=None)
        if gib is None or largest is None or largest.total <= gib * GIB:
            return []
        said = (
            "cluster.gpu_memory_gib" if cluster.gpu_memory_gib else f"the most that cluster.gpu = {cluster.gpu!r} has"
        )
        return [
            f"memory: on a GPU of pipeline rank {ranks.index(largest)} {largest}, and it has {gib:g} GiB ({said}). "
            "Divide the model further (cluster.trainer.tp, pp, ep; dp divides the optimiser's state alone), or take "
            "a cluster file that was made for its size"
        ]
    gib = cluster.memory_gib or machine_memory_gib()
    copies = layout.tp * layout.cp * layout.dp
    parts = [(f"the trainer's {layout.ranks} rank(s)", copies * sum(rank.total for rank in ranks))]
    if isinstance(stage, GRPO) and stage.objective.kl_coef > 0:
        parts.append(("the reference", copies * sum(rank.weights for rank in ranks)))
    if isinstance(stage, GRPO | Evaluate) and not cluster.rollout.launch:
        engine = num_parameters(table, mtp=False) * BYTES[cluster.rollout.dtype]
        parts.append(("the engine", engine + cluster.rollout.kv_cache_gib * GIB))
    total = sum(size for _, size in parts)
    if gib is None or total <= gib * GIB:
        return []
    told = ", ".join(f"{what} {size / GIB:,.1f} GiB" for what, size in parts if size)
    said = "cluster.memory_gib" if cluster.memory_gib else "this machine; cluster.memory_gib says otherwise"
    return [
        f"memory: {num_parameters(table) / 1e9:,.3g}B parameters take at least {total / GIB:,.1f} GiB ({told}) "
        f"before activations, and the machine has {gib:,.1f} GiB ({said}). A weight of the trainer takes 4 bytes, "
        "its gradient 4 and Adam's moments 8, in fp32. Take a smaller model, or a cluster file with GPUs that hold it"
    ]
