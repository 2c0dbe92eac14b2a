"""Process groups of the trainer, and everything that must happen before megatron is imported."""

import datetime
import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from r1mega.config.cluster import TrainerLayout
from r1mega.config.pp_layout import expand
from r1mega.errors import ConfigError, RanksLostError
from r1mega.runtime import env, heartbeat, resources, shims
from r1mega.trainer.meeting import forming, meet

T = TypeVar("T")

_formed: tuple[Any, Any] | None = None
"""What Megatron's groups were formed for, and the group of all ranks, which is none of them."""


@dataclass(frozen=True)
class Mesh:
    """This process's place among the trainer's ranks."""

    layout: TrainerLayout
    device: torch.device
    rank: int
    world_size: int
    patient: Any
    """A group of all ranks whose waits last as long as rank 0's own work may."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that samples, judges, logs and writes what there is once."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which share of every mini-batch this rank takes."""
        return _state().get_data_parallel_rank()

    @property
    def leads_copy(self) -> bool:
        """Whether this is the first rank of its copy of the model."""
        return self.context_rank == 0 and dist.get_rank(_state().get_model_parallel_group()) == 0

    @property
    def context_rank(self) -> int:
        """Which part of every sequence this rank takes."""
        return _state().get_context_parallel_rank()

    @property
    def last_stage(self) -> bool:
        """Whether this rank holds the last pipeline stage, which alone sees log-probabilities."""
        return _state().is_pipeline_last_stage()

    def barrier(self) -> None:
        """Wait for every rank of the trainer, rank 0's writing to disk included."""
        with self.waiting("all ranks", "first_rank_timeout_s"):
            dist.barrier(group=self.patient)

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, given to every rank; the others wait for it as long as that may take."""
        if self.world_size == 1:
            return make()
        size = torch.zeros((), dtype=torch.int64)
        if not self.first:
            with self.waiting("the first rank", "first_rank_timeout_s"):
                dist.broadcast(size, 0, group=self.patient)
                data = torch.empty(int(size), dtype=torch.uint8)
                dist.broadcast(data, 0, group=self.patient)
            return pickle.loads(data.numpy().tobytes())
        made = make()
        data = torch.frombuffer(bytearray(pickle.dumps(made)), dtype=torch.uint8)
        size.fill_(len(data))
        with self.waiting("the other ranks to listen", "first_rank_timeout_s"):
            dist.broadcast(size, 0, group=self.patient)
            dist.broadcast(data, 0, group=self.patient)
        return made

    def any(self, mine: bool) -> bool:
        """Whether something is so on any rank; every rank is told the same."""
        if self.world_size == 1:
            return mine
        found = torch.tensor(int(mine))
        with self.waiting("all ranks", "first_rank_timeout_s"):
            dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.patient)
        return bool(found)

    @contextmanager
    def waiting(
        self, for_what: str, setting: Literal["collective_timeout_s", "first_rank_timeout_s"] = "collective_timeout_s"
    ) -> Iterator[None]:
        """Say what collectives inside wait for, also when they fail; every other error passes as it is.

        Raises:
            RanksLostError: another rank is gone, or did not answer within `layout`'s `setting`.
        """
        limit: float = getattr(self.layout, setting)
        try:
            with heartbeat.waiting(for_what, limit, setting):
                yield
        except RuntimeError as error:
            if not _is_of_a_collective(error):
                raise
            raise RanksLostError(
                f"rank {self.rank} waited for {for_what}: gone, or longer away than cluster.trainer.{setting} = "
                f"{limit:g} s ({str(error).splitlines()[0]})"
            ) from error

    def gather(self, mine: T) -> list[T]:
        """Every rank's object, in the order of ranks, on every rank. For small things."""
        if self.world_size == 1:
            return [mine]
        found: list[Any] = [None] * self.world_size
        with self.waiting("all ranks"):
            dist.all_gather_object(found, mine)
        return found

    def gather_over_data(self, mine: T) -> list[T]:
        """The object of each data-parallel rank, in their order, on every rank. For small things."""
        if self.layout.dp == 1:
            return [mine]
        group = _state().get_data_parallel_group()
        found: list[Any] = [None] * group.size()
        with self.waiting("the data-parallel ranks"):
            dist.all_gather_object(found, mine, group=group)
        return found

    def sum_over_data(self, values: Tensor) -> Tensor:
        """[any shape] of any dtype: the sum over the data-parallel ranks, in place."""
        if self.layout.dp > 1:
            with self.waiting("the data-parallel ranks"):
                dist.all_reduce(values, group=_state().get_data_parallel_group())
        return values

    def max_over_data(self, value: int) -> int:
        """The largest of a number over the data-parallel ranks."""
        if self.layout.dp == 1:
            return value
        largest = torch.tensor(value)
        with self.waiting("the data-parallel ranks"):
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=_state().get_data_parallel_group())
        return int(largest)

    def from_last_stage(self, value: T) -> T:
        """The last pipeline stage's object on every stage."""
        if self.layout.pp == 1:
            return value
        found = [value]
        state = _state()
        last, group = state.get_pipeline_model_parallel_last_rank(), state.get_pipeline_model_parallel_group()
        with self.waiting("the last pipeline stage"):
            dist.broadcast_object_list(found, last, group=group)
        return found[0]


def start(layout: TrainerLayout, *, device: str, seed: int) -> Mesh:
    """Join the trainer's ranks (torchrun's, or a world of one), form Megatron's groups, seed every generator.

    Called again with another layout of as many ranks, it forms new groups over the same processes, and the old ones
    end; with the same axes and limits it keeps them.

    Args:
        layout: axes of the mesh, threads and dtype.
        device: "cpu" (gloo), or "cuda": the device of this process's local rank (NCCL for tensors there, gloo for
            objects, counts, and waits for the first rank, which therefore run into no limit of NCCL's).
        seed: of torch, numpy, python and Megatron's tracker.

    Raises:
        ConfigError: a device or dtype that this machine does not run, or another number of processes than the layout
            asks for.
    """
    own_device = _device(layout, device)
    resources.open_all_files()
    torch.set_num_threads(layout.threads)
    # No apex, no Transformer Engine, its own deprecated arguments: nothing a user of this system can mend.
    warnings.filterwarnings("ignore", module=r"megatron\.")
    if own_device.type == "cpu":
        # Megatron compiles small functions with torch.compile; on the CPU that costs minutes and gains nothing.
        torch._dynamo.config.disable = True
        shims.install_megatron_cpu()
    else:
        if layout.deterministic:
            env.compute_the_same_twice()
            torch.use_deterministic_algorithms(True)  # an operation that has no such kernel raises, and is named
        env.let_nccl_speak_last(layout.collective_timeout_s + layout.spoken_first_s)
        torch.cuda.set_device(own_device)
        shims.install_megatron_cuda()
    from megatron.core import tensor_parallel

    _join(layout, "gloo" if own_device.type == "cpu" else "cpu:gloo,cuda:nccl")
    patient = _form(layout, own_device)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    return Mesh(layout, own_device, dist.get_rank(), dist.get_world_size(), patient)


def _device(layout: TrainerLayout, device: str) -> torch.device:
    """Where this process computes. Raises ConfigError where that is not to be had."""
    if device == "cpu":
        if layout.dtype != "fp32":
            raise ConfigError(f"trainer dtype {layout.dtype!r}: only fp32 is supported on cpu")
        return torch.device("cpu")
    if not torch.cuda.is_available():
        build = torch.version.cuda
        why = (
            f"it was built for CUDA {build}, and finds no driver or no GPU" if build else "it is a build for the CPU"
        )
        raise ConfigError(
            f"cluster.device = {device!r}, but PyTorch {torch.__version__} has no CUDA device here: {why}. Choose a "
            "cluster file with device = 'cpu', or run `make env-gpu` on a machine with an NVIDIA GPU"
        )
    launch = env.launch()
    local, there = (launch.local_rank if launch else 0), torch.cuda.device_count()
    if local >= there:
        raise ConfigError(
            f"local rank {local} has no GPU of its own: this host has {there}, and each of the layout's "
            f"{layout.ranks} ranks needs one; start no more ranks on a host than it has GPUs"
        )
    return torch.device("cuda", local)


def _join(layout: TrainerLayout, backend: str) -> None:
    """The default group, over which Megatron's are formed; once a process."""
    if not dist.is_initialized():
        meet(layout, backend)
    if dist.get_world_size() != layout.ranks:
        raise ConfigError(
            f"the trainer's layout has {layout.ranks} ranks (tp {layout.tp} x pp {layout.pp} x cp {layout.cp} x dp "
            f"{layout.dp}), but {dist.get_world_size()} processes were started"
        )


def _form(layout: TrainerLayout, own_device: torch.device) -> Any:
    """Megatron's groups for the layout, unless they are there; returns the group whose waits are the longest."""
    global _formed
    state = _state()
    axes = (layout.tp, layout.pp, layout.vpp, layout.cp, layout.ep, layout.expert_tp, layout.dp, layout.pipeline)
    wanted = (*axes, layout.collective_timeout_s, layout.first_rank_timeout_s, layout.spoken_first_s, own_device)
    if _formed is not None and _formed[0] == wanted and state.model_parallel_is_initialized():
        return _formed[1]
    _part()
    patient = dist.group.WORLD
    with forming(layout):
        state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tp,
            pipeline_model_parallel_size=layout.pp,
            virtual_pipeline_model_parallel_size=layout.vpp if layout.vpp > 1 else None,
            context_parallel_size=layout.cp,
            expert_model_parallel_size=layout.ep,
            expert_tensor_parallel_size=layout.expert_tp,
            get_embedding_ranks=_embedding_ranks(layout),  # type: ignore[arg-type] (called with the ranks alone)
            # Their one use is in optimizer checkpoints of Megatron's own; each costs a socket to every rank of it.
            create_gloo_process_groups=False,
            distributed_timeout_minutes=(layout.collective_timeout_s + layout.spoken_first_s) / 60,  # type: ignore[arg-type] (a timedelta's)
        )
        if dist.get_world_size() > 1 or own_device.type != "cpu":
            patience = datetime.timedelta(seconds=layout.first_rank_timeout_s + layout.spoken_first_s)
            patient = dist.new_group(timeout=patience, backend="gloo")
    _formed = (wanted, patient)
    return patient


def _part() -> None:
    """End the groups of the layout before. Megatron forgets them, and three threads of gloo's for each would stay."""
    global _formed
    _formed = None
    _state().destroy_model_parallel()
    groups = dist.distributed_c10d._world.pg_map
    for group in [group for group in groups if group is not dist.group.WORLD]:
        if group in groups:
            dist.destroy_process_group(group)


def _embedding_ranks(layout: TrainerLayout) -> Callable[[list[int]], list[int]] | None:
    """Which ranks of a pipeline keep copies of the embedding; None: the first and the last, as Megatron has it."""
    stages = expand(layout.pipeline) if layout.pipeline else []
    apart = [i % layout.pp for i, letters in enumerate(stages[:-1]) if "m" in letters]
    return (lambda ranks: [ranks[0], ranks[apart[0]]]) if apart else None


def _is_of_a_collective(error: RuntimeError) -> bool:
    """Whether another rank's silence is the cause: torch's own classes, or the transport named in gloo's texts."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "closed by peer" in str(error)


def _state() -> Any:
    from megatron.core import parallel_state

    return parallel_state


def stop() -> None:
    """Leave the process groups."""
    if dist.is_initialized():
        _part()
        dist.destroy_process_group()
