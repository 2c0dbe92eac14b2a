"""What a stage needs of Slurm, and how it is laid over the nodes that a job was granted: arithmetic alone.

A GPU carries one trainer rank. On GPUs rollout servers have nodes of their own, as many as their ranks fill: a server
is on one node or has several whole ones. Colocated, they are on the trainer's. On CPUs they take turns with the
trainer: one node is enough for both, and where there are more they have the last one for themselves.

Where fewer nodes are granted than a stage fills, as after the loss of one, it goes on with fewer data-parallel ranks,
if its cluster file allows that (`trainer.least_dp`) and the layout that is left is one. Servers stay as many as they
are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from r1mega.config.cluster import Cluster
from r1mega.errors import ConfigError


@dataclass(frozen=True)
class Needs:
    """Of a stage on a machine."""

    ranks: int
    """Of the trainer; where there is none, one process stands for it."""
    threads: int
    """CPUs that each rank needs."""
    trainer_gpus: int
    """GPUs of the ranks together: one each, or 0 on the CPU and in an evaluation."""
    server_gpus: int
    """GPUs of a rollout server beside the trainer's; 0 on the CPU, colocated, and where no server of ours runs."""
    serves: bool
    """Whether the stage has a rollout server."""
    gpus_per_node: int
    """GPUs that a node of the cluster file has; 0 on the CPU."""
    servers: int = 1
    """Rollout servers, all alike."""
    least_nodes: int | None = None
    """With which it can do as well, by fewer data-parallel ranks; None: with no fewer than `nodes`."""

    @property
    def trainer_nodes(self) -> int:
        """Nodes that the ranks fill; 0 where they are on the server's."""
        return math.ceil(self.trainer_gpus / self.gpus_per_node) if self.gpus_per_node else 1

    @property
    def server_nodes(self) -> int:
        """Nodes that the servers fill; 0 where they are on the trainer's, or there is none."""
        if not (self.gpus_per_node and self.server_gpus):
            return 0
        if self.server_gpus >= self.gpus_per_node:
            return self.servers * math.ceil(self.server_gpus / self.gpus_per_node)
        return math.ceil(self.servers / self.servers_per_node)

    @property
    def servers_per_node(self) -> int:
        """The most on one node, where each is smaller than a node; else 1."""
        return max(1, self.gpus_per_node // self.server_gpus) if self.server_gpus else 1

    @property
    def gpus_of_servers(self) -> int:
        """GPUs that servers have on each of their nodes."""
        return min(min(self.servers, self.servers_per_node) * self.server_gpus, self.gpus_per_node)

    @property
    def nodes(self) -> int:
        """The fewest; on GPUs no other number fits."""
        return self.trainer_nodes + self.server_nodes

    @property
    def ranks_per_node(self) -> int:
        """The most on one node, of `nodes`."""
        return min(self.ranks, self.gpus_per_node) if self.trainer_gpus else self.ranks

    @property
    def gpus_asked(self) -> int:
        """GPUs to ask for on every node."""
        return min(max(self.trainer_gpus, self.gpus_of_servers), self.gpus_per_node)

    @property
    def options(self) -> str:
        """Options of `sbatch` that grant it."""
        nodes = f"{self.nodes}" if self.least_nodes in (None, self.nodes) else f"{self.least_nodes}-{self.nodes}"
        words = [
            f"--nodes={nodes}", f"--ntasks-per-node={self.ranks_per_node}", f"--cpus-per-task={self.threads}",
            *([f"--gpus-per-node={self.gpus_asked}"] if self.gpus_asked else []),
        ]  # fmt: skip
        return " ".join(words)


@dataclass(frozen=True)
class GrantedNode:
    """What Slurm gave a job of one node."""

    name: str
    cpus: int
    gpus: int | None
    """None: Slurm does not know of any on this node, and so cannot say whether it has some."""

    def __str__(self) -> str:
        gpus = "no GPU that Slurm knows of" if self.gpus is None else f"{self.gpus} GPU(s)"
        return f"{self.name} ({self.cpus} CPU(s), {gpus})"


@dataclass(frozen=True)
class Placement:
    """Where trainer and server run, with srun's options for their steps."""

    ranks: int
    trainer: tuple[str, ...]
    trainer_options: tuple[str, ...]
    server: tuple[str, ...]
    """Nodes on each of which one task starts what servers have there, in the order in which servers fill them. Empty:
    on the trainer's first node, without a step of their own; or there are none."""
    server_options: tuple[str, ...]
    unused: tuple[str, ...]
    """Granted nodes that the stage has no use for."""
    gpus: int = 0
    """Of each granted node, for the check of nodes."""
    node_options: tuple[str, ...] = ()
    """Of a step that is to see them, on one node."""

    @property
    def lines(self) -> str:
        """NAME=VALUE, a line each, for slurm/rl_stage.sh."""
        values = {
            "ranks": str(self.ranks), "trainer": ",".join(self.trainer), "server": ",".join(self.server),
            "trainer_options": " ".join(self.trainer_options), "server_options": " ".join(self.server_options),
            "unused": ",".join(self.unused), "gpus": str(self.gpus), "node_options": " ".join(self.node_options),
        }  # fmt: skip
        return "\n".join(f"{name}={value}" for name, value in values.items())


def needs(machine: Cluster, *, trains: bool, serves: bool) -> Needs:
    """What a stage needs of Slurm on `machine`.

    Args:
        trains: whether it has a trainer.
        serves: whether a server of ours runs a model.

    Raises:
        ConfigError: the cluster file has GPUs and does not say how many a node has.
    """
    ranks = machine.trainer.ranks if trains else 1
    if machine.device == "cpu" or not (trains or serves):
        return Needs(ranks, machine.trainer.threads, 0, 0, serves, 0)
    if machine.gpus_per_node is None:
        raise ConfigError(
            "cluster.gpus_per_node: not set, so how many nodes to ask Slurm for is not known; set it to the GPUs of "
            "a node, in the cluster file or by --set cluster.gpus_per_node=8"
        )
    trainer_gpus = ranks if trains else 0
    layout = machine.rollout
    apart = serves and not (trains and machine.placed == "colocated")
    server_gpus = layout.tp * layout.dp if apart else 0
    return Needs(
        ranks, machine.trainer.threads, trainer_gpus, server_gpus, serves, machine.gpus_per_node, layout.servers
    )


def sizes(machine: Cluster, fits: Callable[[Cluster], bool]) -> tuple[Cluster, ...]:
    """`machine`, and the same with ever fewer data-parallel ranks down to its `least_dp`, where `fits` says that such
    a layout is one."""
    full = machine.trainer
    fewer = range(full.dp - 1, (full.least_dp or full.dp) - 1, -1)
    smaller = (machine.model_copy(update={"trainer": full.model_copy(update={"dp": dp})}) for dp in fewer)
    return (machine, *(one for one in smaller if fits(one)))


def needs_of(machines: Sequence[Cluster], *, trains: bool, serves: bool) -> tuple[Needs, ...]:
    """`needs` of a stage on each of its `sizes`, the full one first, which knows the fewest nodes of them all."""
    found = [needs(machine, trains=trains, serves=serves) for machine in (machines if trains else machines[:1])]
    return (replace(found[0], least_nodes=min(one.nodes for one in found)), *found[1:])


def place_largest(wanted: Sequence[Needs], granted: Sequence[GrantedNode]) -> tuple[int, Placement]:
    """The first of `wanted`, the largest first, that can be laid over the nodes of a job: which one, and how.

    Raises:
        ConfigError: none can; what is said is of the largest (`place`).
    """
    first: ConfigError | None = None
    for number, one in enumerate(wanted):
        try:
            return number, place(one, granted)
        except ConfigError as error:
            first = first or error
    assert first is not None, "of no size at all"
    raise first


def when_a_node_is_lost(machine: Cluster, wanted: Sequence[Needs], placed: Placement) -> str:
    """What then becomes of the job, in words; nothing where it has one node, in whose place it gets another."""
    used, full = len({*placed.trainer, *placed.server}), wanted[0]
    least = full.least_nodes or full.nodes
    if used == 1:
        return ""
    begins = "should a node be lost, the job is requeued and"
    if least < used:
        return f"{begins} goes on with as few as {least} node(s), where sbatch was given --nodes={least}-{used}"
    trainer = machine.trainer
    why = "cluster.trainer.least_dp is not set"
    if trainer.least_dp is not None:
        why = f"no layout of dp = {trainer.least_dp} to {trainer.dp} takes fewer"
    return f"{begins} waits until there are {used} nodes again ({why})"


def place(wanted: Needs, granted: Sequence[GrantedNode]) -> Placement:
    """Lay a stage over the nodes of a job, in their order; rank 0 is on the first one.

    Raises:
        ConfigError: it does not fit there; the message says what was granted, what is needed, and how to ask for it.
    """
    if wanted.gpus_per_node:
        trainer = granted[: max(wanted.trainer_nodes, 1)]
        server = granted[wanted.trainer_nodes : wanted.nodes] if wanted.serves and len(granted) > 1 else ()
        # Planes of a node's GPUs: each node is full before the next one gets a rank.
        spread = f"--distribution=plane={wanted.ranks_per_node}"
        full, rest = divmod(wanted.ranks, wanted.ranks_per_node)
        tasks = [wanted.ranks_per_node] * full + [rest] * bool(rest)
    else:
        apart = wanted.serves and len(granted) > 1
        trainer = granted[: min(len(granted) - apart, wanted.ranks)]
        server = granted[-1:] if apart else ()
        spread = "--distribution=block"
        tasks = [len(range(k, wanted.ranks, len(trainer))) for k in range(len(trainer))]
    server_gpus = wanted.gpus_of_servers
    trainer_gpus = min(wanted.trainer_gpus, wanted.gpus_per_node) or (0 if server else server_gpus)
    faults = [f"{len(granted)} node(s) instead of {wanted.nodes}"] if len(granted) < wanted.nodes else []
    faults += [
        f"{node.name}: {node.cpus} CPU(s) for {on_it} rank(s) of {wanted.threads} thread(s)"
        for node, on_it in zip(trainer, tasks, strict=False)
        if node.cpus < on_it * wanted.threads
    ]
    faults += [
        f"{node.name}: {node.gpus} GPU(s) instead of {gpus}"
        for nodes, gpus in ((trainer, trainer_gpus), (server, server_gpus))
        for node in nodes
        if node.gpus is not None and node.gpus < gpus
    ]
    if faults:
        raise ConfigError(_unfit(wanted, granted, faults))
    return Placement(
        ranks=wanted.ranks,
        trainer=tuple(node.name for node in trainer),
        trainer_options=(*_step(trainer, tasks, trainer_gpus), spread),
        server=tuple(node.name for node in server),
        server_options=_step(server, [1] * len(server), server_gpus) if server else (),
        unused=tuple(node.name for node in granted if node not in (*trainer, *server)),
        gpus=(seen := min([wanted.gpus_asked, *(node.gpus for node in granted if node.gpus is not None)])),
        node_options=_gpu_option(granted, seen),
    )


def _step(nodes: Sequence[GrantedNode], tasks: Sequence[int], gpus: int) -> tuple[str, ...]:
    """Options of a step with `tasks` on its nodes, one after the other: all CPUs are its own, shared out evenly.

    Args:
        gpus: of each node. A step gets none, unless it asks, where the job has them by --exclusive alone.
    """
    options = (
        f"--nodes={len(nodes)}", f"--ntasks={sum(tasks)}", f"--nodelist={','.join(node.name for node in nodes)}",
        f"--cpus-per-task={min(node.cpus // n for node, n in zip(nodes, tasks, strict=False))}",
    )  # fmt: skip
    return (*options, *_gpu_option(nodes, gpus))


def _gpu_option(nodes: Sequence[GrantedNode], gpus: int) -> tuple[str, ...]:
    return (f"--gpus-per-node={gpus}",) if gpus and all(node.gpus is not None for node in nodes) else ()


def _unfit(wanted: Needs, granted: Sequence[GrantedNode], faults: Sequence[str]) -> str:
    parts = [f"{wanted.ranks} trainer rank(s) of {wanted.threads} thread(s)"]
    if wanted.trainer_gpus:
        parts.append(f"a GPU each, {wanted.gpus_per_node} to a node (cluster.gpus_per_node)")
    if wanted.server_gpus:
        each = "the rollout server" if wanted.servers == 1 else f"each of {wanted.servers} rollout servers"
        parts.append(f"{wanted.server_gpus} GPU(s) for {each}")
    return (
        f"what Slurm granted does not fit: {'; '.join(faults)}\n"
        f"  granted: {', '.join(map(str, granted))}\n"
        f"  needed: {', '.join(parts)}\n"
        f"  submit again with {wanted.options}, as `r1mega check CONFIG --cluster CLUSTER --print slurm` prints them"
    )
