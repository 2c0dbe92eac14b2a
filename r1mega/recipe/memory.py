"""Whether what a stage holds of a model fits the machine: plain arithmetic, without activations."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from r1mega.config.cluster import Cluster
from r1mega.families.spec import ModelSpec
from r1mega.layout.engine_memory import EngineMemory, engine_memory
from r1mega.layout.memory import BYTES, GIB, RankMemory, num_parameters, rank_memory
from r1mega.layout.placement import layout_for
from r1mega.layout.turns import STATES, SharedMemory, State, shared_memory, told
from r1mega.runtime.resources import machine_memory_gib

GPU_GIB = {"ampere": 80.0, "ada": 48.0, "hopper": 141.0, "blackwell": 288.0, "blackwell_rtx": 96.0}
"""Most memory of a GPU of that kind, where `gpu_memory_gib` does not say: A100, L40S, H200, B300, RTX PRO 6000."""


@dataclass(frozen=True)
class Holds:
    """What of a model a stage keeps in memory."""

    trainer: bool = True
    """Weights, gradients and optimiser."""
    mtp_learns: bool = True
    """Off: multi-token-prediction layers are frozen, weights alone."""
    reference: bool = False
    """A second set of weights, which does not learn."""
    engine: bool = False
    """Weights and a cache in the engine's processes."""
    reward_models: tuple[ModelSpec, ...] = ()
    """Weights alone of other models, which lie on the host but while they score."""


def memory_faults(holds: Holds, machine: Cluster, spec: ModelSpec) -> list[str]:
    """Whether a rank's state alone, or the engine's weights, are more than a GPU has, or on cpu a whole machine."""
    if machine.device == "cpu":
        parts, gib = _on_cpu(holds, machine, spec)
        most = max((part for part in parts if part.size > gib * GIB), key=lambda part: part.size, default=None)
        return [f"memory: {_told([most], machine, gib)}"] if most else []
    gib = machine.gpu_memory_gib or (GPU_GIB[machine.gpu] if machine.gpu else None)
    if gib is None:
        return []
    has = f"and it has {gib:g} GiB ({_stated(machine)})"
    table = spec.tensors()
    ranks = rank_memory(table, spec, machine.trainer, mtp_learns=holds.mtp_learns) if holds.trainer else []
    engine = engine_memory(table, spec, machine) if holds.engine else None
    shared = _shared(machine, ranks, engine)
    faults = list(_trainer_faults(holds, machine, ranks, gib, has))
    if engine is not None and not shared and engine.total > gib * GIB:
        faults.append(f"memory: on a GPU of the engine {engine}, {has}. {_smaller_engine(machine)}")
    over = [line for held, line in zip(shared.values(), told(shared), strict=True) if held.total > gib * GIB]
    if over and not faults:
        faults.append(f"memory: on a GPU that trainer and engine share, {over[0]}, {has}. {_SMALLER}")
    return faults


def _stated(machine: Cluster) -> str:
    if machine.gpu_memory_gib:
        return "cluster.gpu_memory_gib"
    return f"the most that cluster.gpu = {machine.gpu!r} has"


def _trainer_faults(
    holds: Holds, machine: Cluster, ranks: Sequence[RankMemory], gib: float, has: str
) -> Iterator[str]:
    remedy = (
        f"{has}. Divide the model further (cluster.trainer.tp, pp, ep; dp divides the optimiser's state alone), or "
        "take a cluster file that was made for its size"
    )
    largest = max(ranks, key=lambda rank: rank.total, default=None)
    if largest is not None and largest.total > gib * GIB:
        yield f"memory: on a GPU of pipeline rank {ranks.index(largest)} {largest}, {remedy}"
    # While a reward model scores, it has the device to itself.
    for other in holds.reward_models:
        of_each = rank_memory(other.tensors(), other, layout_for(other, machine.trainer))
        most = max(of_each, key=lambda rank: rank.weights)
        if most.weights > gib * GIB:
            size = f"{most.params / 1e9:,.3g}B parameters of a reward model take {most.weights / GIB:,.1f} GiB"
            place = f"on a GPU of pipeline rank {of_each.index(most)}"
            yield f"memory: {place} {size} before activations, {remedy}"


def _smaller_engine(machine: Cluster) -> str:
    fp8 = "" if machine.weights.fp8 else ", FP8 in the engine and on the way to it (cluster.weights.fp8)"
    return (
        f"Take more GPUs to a server (cluster.rollout.tp, for mixtures dp with expert_parallel){fp8}, or less for "
        "keys and values (cluster.rollout.kv_cache_gib)"
    )


_SMALLER = (
    "Divide the model further (cluster.trainer, cluster.rollout.tp), take less for keys and values "
    "(cluster.rollout.kv_cache_gib), or GPUs of their own (cluster.placement)"
)


def memory_by_state(holds: Holds, machine: Cluster, spec: ModelSpec) -> list[str]:
    """Where trainer and engine share their GPUs: what the fullest of them holds in each state, a line each."""
    if machine.placed != "colocated" or not (holds.trainer and holds.engine):
        return []
    return told(_shared(machine, _ranks(holds, machine, spec), engine_memory(spec.tensors(), spec, machine)))


def _shared(machine: Cluster, ranks: Sequence[RankMemory], engine: EngineMemory | None) -> dict[State, SharedMemory]:
    """Of the GPU whose trainer's rank is the largest in that state; nothing where none is shared."""
    largest: dict[State, SharedMemory] = {}
    if machine.placed == "colocated" and ranks and engine is not None:
        found = [shared_memory(rank, engine) for rank in ranks]
        for state in STATES:
            largest[state] = max((one[state] for one in found), key=lambda held: held.total)
    return largest


def missing_memory(holds: Holds, machine: Cluster, spec: ModelSpec) -> list[str]:
    """Whether all ranks and the engine together are more than this machine has; over several they may fit."""
    if machine.device != "cpu":
        return []
    parts, gib = _on_cpu(holds, machine, spec)
    if sum(part.size * part.times for part in parts) <= gib * GIB:
        return []
    return [f"memory: {_told(parts, machine, gib)}; or start the ranks on several machines (slurm/rl_stage.sh)"]


@dataclass(frozen=True)
class _Part:
    """What processes of one kind hold in a machine's memory."""

    what: str
    size: float
    """Bytes of one."""
    times: int = 1


def _ranks(holds: Holds, machine: Cluster, spec: ModelSpec) -> list[RankMemory]:
    if not holds.trainer:
        return []
    return rank_memory(spec.tensors(), spec, machine.trainer, mtp_learns=holds.mtp_learns)


def _on_cpu(holds: Holds, machine: Cluster, spec: ModelSpec) -> tuple[list[_Part], float]:
    """What takes memory, and GiB of the machine."""
    layout = machine.trainer
    copies = layout.tp * layout.cp * layout.dp
    parts: list[_Part] = []
    for rank in _ranks(holds, machine, spec):
        what = f"a rank's {rank.params / 1e9:,.3g}B parameters in fp32, 4 bytes each, gradients 4, Adam's moments 8"
        what += ", a reference 4" if holds.reference else ""
        parts.append(_Part(what, rank.total + (rank.weights if holds.reference else 0), copies))
    for other in holds.reward_models:
        for rank in rank_memory(other.tensors(), other, layout_for(other, layout)):
            what = f"a rank's {rank.params / 1e9:,.3g}B parameters of a reward model in fp32, 4 bytes each"
            parts.append(_Part(what, rank.weights, copies))
    if holds.engine and not (machine.rollout.launch or machine.rollout.attendants):
        engine, number = machine.rollout, num_parameters(spec.tensors(), mtp=False)
        what = f"the engine's {number / 1e9:,.3g}B parameters in {engine.dtype} and its cache"
        size = number * BYTES[engine.dtype] + engine.tp * engine.dp * engine.kv_cache_gib * GIB
        parts.append(_Part(what, size, engine.servers))
    return parts, machine.memory_gib or machine_memory_gib() or math.inf


def _told(parts: Sequence[_Part], machine: Cluster, gib: float) -> str:
    many = len(parts) > 1
    each = [(f"{part.times} times " if many and part.times > 1 else "", part) for part in parts]
    told = ", ".join(f"{times}{part.what}: {part.size / GIB:,.1f} GiB" for times, part in each)
    stated = "cluster.memory_gib" if machine.memory_gib else "this one; cluster.memory_gib says otherwise"
    return (
        f"{told}, before activations, and the machine has {gib:,.1f} GiB ({stated}). Take a smaller model, or a "
        "cluster file with GPUs that hold it"
    )
