"""Where a stage runs: ranks, precision, memory, the engine's processes, as a cluster file states them.

Layout only, never science: no setting here changes what is learnt, beyond rounding and what corrects for it
(`objective.importance`, where that is left to the machine).
"""

from typing import Annotated, Literal

from pydantic import Field

from r1mega.config.environment import Environment
from r1mega.config.section import OnResume, Section
from r1mega.config.watchdog import Watchdog


class Recompute(Section):
    """Activations that are computed again on the way back instead of kept: less memory, more time, equal results."""

    granularity: Literal["none", "selective", "full"] = "none"
    """selective: the parts in `modules`. full: whole layers, of which only the input is kept."""
    modules: tuple[Literal["core_attn", "layernorm", "mlp", "moe", "moe_act", "shared_experts"], ...] = ()
    """What selective computes again: attention's scores and products, the norms, dense layers, mixture-of-experts
    layers, the activation within experts, shared experts."""
    method: Literal["uniform", "block"] = "uniform"
    """full, uniform: all layers, in groups of `num_layers` whose input is kept, and the MTP layers. full, block: the
    first `num_layers` layers of each stage; of dense models alone."""
    num_layers: int = Field(default=1, gt=0)


class Precision(Section):
    """Numbers below the trainer's dtype, and beside its weights. Defaults are exact; the V3 report's are in the docs.

    Main parameters, which the optimiser updates, are always fp32 (V3 report 3.3.3).
    """

    fp8: Literal["none", "blockwise", "tensorwise", "mxfp8"] = "none"
    """Format of the matrix products in attention's projections, dense layers and experts, forwards and backwards;
    needs dtype bf16 and Transformer Engine. blockwise: 1x128 tiles of activations and 128x128 blocks of weights, E4M3
    alone (V3 report 3.3.2; Hopper and later); tensorwise: a scale for each tensor as it is at that moment (Ada and
    later), E5M2 for gradients; mxfp8: a scale for every 32 values (Blackwell). Embedding, head, norms, router and
    attention's own products stay as they are."""
    bf16_layers_at_start: int = Field(default=0, ge=0)
    """First layers that stay in bf16 under fp8 (V3: none)."""
    bf16_layers_at_end: int = Field(default=0, ge=0)
    """Last layers that stay in bf16 under fp8; the MTP layers follow fp8."""
    gradients: Literal["fp32", "bf16"] = "fp32"
    """In which gradients are added up and summed over ranks."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """Of Adam (V3: bf16)."""


class TrainerLayout(Section):
    """How the trainer's ranks are spread over one model. Ranks = tp x pp x dp; experts share tp x dp of them."""

    tp: Annotated[int, OnResume.ROUNDING] = Field(default=1, gt=0)
    """Tensor parallel: ranks that share each matrix. Above 1 with sequence parallelism, always."""
    sp: Annotated[bool, OnResume.ROUNDING] = True
    """Sequence parallelism where tp > 1. Off is refused: without it Megatron reduces some of latent attention's
    gradients twice and trains mixtures of experts not at all."""
    pp: Annotated[int, OnResume.ROUNDING] = Field(default=1, gt=0)
    """Pipeline parallel: ranks that hold consecutive layers."""
    vpp: Annotated[int, OnResume.ROUNDING] = Field(default=1, gt=0)
    """Virtual pipeline: chunks of layers that each pipeline rank holds, interleaved with the other ranks' (shorter
    waits, more messages). Stage i is chunk i // pp of rank i % pp."""
    pipeline: Annotated[str, OnResume.ROUNDING] = ""
    """What each of the pp x vpp stages holds, in megatron-core's letters: E embedding, t layer, m MTP layer, L head,
    | between stages, *n for repeats, such as "Ettt|(tt|)*29m|L". Empty: layers in equal parts, the first stages with
    one more where they do not divide, and the MTP layers with the head."""
    ep: Annotated[int, OnResume.ROUNDING] = Field(default=1, gt=0)
    """Expert parallel: ranks over which a layer's experts are spread; divides tp x dp."""
    etp: Annotated[int | None, OnResume.ROUNDING] = Field(default=None, gt=0)
    """Expert tensor parallel: ranks that share each expert's matrices; tp where ep is 1, otherwise 1."""
    cp: Annotated[int, OnResume.ROUNDING] = Field(default=1, gt=0)
    """Context parallel: ranks that share each sequence. Needs Transformer Engine."""
    dp: Annotated[int, OnResume.ROUNDING] = Field(default=1, gt=0)
    """Data parallel: copies of the model."""
    least_dp: Annotated[int | None, OnResume.FREE] = Field(default=None, gt=0)
    """The fewest copies with which a job under Slurm goes on where it gets fewer nodes than `dp` fills, as after a
    node was lost: the same training, up to rounding. None: none fewer, and it waits for its nodes."""
    distributed_optimizer: Annotated[bool, OnResume.ROUNDING] = True
    """Whether data-parallel ranks divide the optimiser's state (ZeRO-1); otherwise each has all of it."""
    dispatcher: Annotated[Literal["allgather", "alltoall", "flex"] | None, OnResume.ROUNDING] = None
    """How tokens reach their experts: every rank gets all of them, or each those that are its own, or by DeepEP's
    kernels (CUDA). Left out: alltoall where experts are spread over ranks, otherwise allgather."""
    recompute: Annotated[Recompute, OnResume.ROUNDING] = Recompute()
    threads: Annotated[int, OnResume.ROUNDING] = Field(default=1, gt=0)
    """Threads of each rank's CPU kernels."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of weights and activations."""
    precision: Precision = Precision()
    offload_optimizer: Annotated[bool, OnResume.ROUNDING] = False
    """Whether the optimiser's state waits in host memory while no update is made (CUDA)."""
    transformer_engine: Annotated[Literal["auto", "off"], OnResume.ROUNDING] = "auto"
    """auto: on CUDA layers are made of Transformer Engine's, which must be installed. off: of megatron-core's local
    ones and ours, on any device, to compare: no fp8, no context parallelism, and slow."""
    deterministic: Annotated[bool, OnResume.ROUNDING] = False
    """On CUDA, whether every step computes the same bits again, as the CPU always does: slower kernels that add in a
    fixed order, and an error where there is none. Off, a resumed run goes on up to rounding."""
    interface: Annotated[str, OnResume.FREE] = ""
    """Network interface over which ranks speak, where GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME in the environment do
    not say; the same on every host. Empty: on each host the one that leads to rank 0's (MASTER_ADDR)."""
    collective_timeout_s: Annotated[float, OnResume.FREE] = Field(default=600.0, gt=0)
    """Longest wait of a rank for the others, at the start and in a step, and of the first for a rank of whose part of
    a checkpoint nothing more comes to the disk."""
    first_rank_timeout_s: Annotated[float, OnResume.FREE] = Field(default=7200.0, gt=0)
    """Longest wait of the other ranks for the first one, which samples, judges and evaluates."""
    watchdog: Watchdog = Watchdog()

    @property
    def spoken_first_s(self) -> float:
        """By how much longer than `collective_timeout_s` and `first_rank_timeout_s` say a collective itself waits, so
        that the watchdog, which knows who is missing, speaks first."""
        return 6 * self.watchdog.beat_s

    @property
    def ranks(self) -> int:
        return self.tp * self.pp * self.cp * self.dp

    @property
    def expert_tp(self) -> int:
        """`etp`, resolved. With ep 1 Megatron sums no gradient of experts that tensor-parallel ranks hold whole."""
        return self.etp or (self.tp if self.ep == 1 else 1)

    @property
    def token_dispatcher(self) -> str:
        """`dispatcher`, resolved."""
        return self.dispatcher or ("alltoall" if self.ep > 1 else "allgather")


class RolloutLayout(Section):
    """The engine's processes: `servers` servers alike, each of tp x dp ranks that hold one model."""

    servers: int = Field(default=1, gt=0)
    """Independent servers, each with the whole model; requests go to whichever is free."""
    tp: int = Field(default=1, gt=0)
    """Tensor parallel: ranks of a server that share each matrix."""
    dp: int = Field(default=1, gt=0)
    """Data parallel within a server: copies of attention, between which its requests are divided; for mixtures of
    experts, whose experts the copies share with `expert_parallel`. Dense models take more `servers`."""
    expert_parallel: bool = False
    """Whether whole experts are spread over a server's tp x dp ranks; otherwise each expert is cut over them."""
    threads: int = Field(default=1, gt=0)
    """Threads of each rank's CPU kernels."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of weights and activations; the head and the router compute in fp32 on CUDA, as the trainer's do."""
    kv_cache_gib: float = Field(default=0.5, gt=0)
    """Memory of each rank for keys and values."""
    max_num_seqs: int = Field(default=256, gt=0)
    """Answers that a data-parallel copy computes at once."""
    max_num_batched_tokens: int | None = Field(default=None, gt=0)
    """Tokens of one step on CUDA, prompts in chunks included; None: vLLM's choice. On the CPU it follows from the
    longest request."""
    cuda_graphs: bool = True
    """Whether steps are captured as CUDA graphs and compiled; off starts sooner and samples slower."""
    moe_backend: str = Field(default="triton", pattern=r"^[a-z_]+$")
    """Kernels of experts on CUDA, by vLLM's name. triton keeps weights as they are pushed, so that pushes need no
    repacking."""
    gpus: tuple[int, ...] = ()
    """GPUs of this node that servers take, where the trainer's first rank starts them: none of the trainer's unless
    colocated. Empty: those behind the trainer's."""
    python: str = ""
    """Interpreter of the engine's own environment on CUDA (requirements/gpu-engine.lock); empty: the trainer's."""
    compile_cache: str = ""
    """Folder on a node's own disk in which compiled kernels and graphs outlast the server; empty: vLLM's own."""
    host: str = Field(default="127.0.0.1", pattern=r"^[A-Za-z0-9._:%-]+$")
    """Name or address where the server listens, as the trainer reaches it."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port of the server on its host; 0 takes a free one, and with `launch` a random one from 20000 to 29999."""
    attendants: str = ""
    """Folder in which a process on each of the servers' own nodes waits for what to start; slurm/rl_stage.sh sets it,
    and starts those processes. Empty: the trainer's first rank starts servers itself."""
    launch: tuple[str, ...] = ()
    """Command put before the server's own, such as ["srun", "--overlap", "-w", "node2", "-N1", "-n1"]; it must hand
    its environment on and end its command at SIGTERM. Empty starts the server on this host."""
    start_timeout_s: float = Field(default=600.0, gt=0)
    request_timeout_s: float = Field(default=300.0, gt=0)
    """Longest silence of a server that was asked for answers, which come in parts of some 256 tokens."""
    health_timeout_s: float = Field(default=30.0, gt=0)
    """A server whose /health stays silent for so long is taken for dead, and restarted."""
    max_restarts: int = Field(default=3, ge=0)
    """Restarts of a server in a row, without one answered request, before the run gives up."""


GLOO_BUCKET_MIB = 8
"""Most of one message over gloo, in MiB (`weights.wire`)."""


class WeightsLayout(Section):
    """How weights reach the engine."""

    transport: Literal["gloo", "nccl", "ipc"] | None = None
    """gloo: through host memory; nccl: broadcast from GPU to GPU; ipc: handed over within a GPU, where trainer and
    engine share them. None: gloo on cpu, ipc where colocated, otherwise nccl."""
    bucket_mib: int = Field(default=1024, gt=0)
    """Most of one message, but where a single tensor is larger; on gloo never more than 8,
    whatever stands here."""
    verify: int = Field(default=20, ge=0)
    """The first push and each so-manieth is proven: what the engine holds against what was sent, by checksums. 0:
    none is."""
    fp8: bool = False
    """Whether matrices travel as 8-bit codes with a scale for 128 x 128 values, and so stay in the engine (CUDA)."""


class Cluster(Section):
    """A machine: layout only, never science."""

    device: Literal["cpu", "cuda"]
    """What the trainer computes on; ranks speak gloo on cpu, NCCL on cuda."""
    gpu: Literal["ampere", "ada", "hopper", "blackwell", "blackwell_rtx"] | None = None
    """Which GPUs these are, so that `r1mega check` refuses what they cannot do; None: found out when ranks start.
    ampere: A100; ada: L40S; hopper: H100, H800, H200; blackwell: B200, B300; blackwell_rtx: those of workstations."""
    gpu_memory_gib: float | None = Field(default=None, gt=0)
    """Memory of a GPU, which the state of the model must fit; None: the most that one of `gpu` has."""
    memory_gib: float | None = Field(default=None, gt=0)
    """Memory of a machine, which ranks and engine share on cpu; None: of the one that `r1mega check` runs on."""
    gpus_per_node: int | None = Field(default=None, gt=0)
    """GPUs of a node, for Slurm: how many nodes to ask for, and which of them is whose (config/slurm.py)."""
    address: str = ""
    """The host of trainer rank 0 as rollout servers reach it. Empty: its address on the route to `rollout.host`."""
    placement: Literal["cpu", "disaggregated", "colocated"] | None = None
    """Who computes where. cpu: trainer and engine take turns on the same cores. disaggregated: GPUs of their own.
    colocated: the same GPUs, in turns, the other's memory put aside. None: cpu on cpu, otherwise disaggregated."""
    trainer: TrainerLayout = TrainerLayout()
    rollout: RolloutLayout = RolloutLayout()
    weights: WeightsLayout = WeightsLayout()
    environment: Environment = Environment()
    """What processes run in: modules, a Python environment or a container, variables; and checks of nodes."""

    @property
    def placed(self) -> Literal["cpu", "disaggregated", "colocated"]:
        """`placement`, resolved."""
        return self.placement or ("cpu" if self.device == "cpu" else "disaggregated")

    @property
    def roundings(self) -> tuple[str, ...]:
        """The settings, with their values, by which trainer or engine compute in less than fp32. None of them: both
        give a token the same log-probability up to fp32's rounding."""
        found = {
            "trainer.dtype": (self.trainer.dtype, "fp32"),
            "trainer.precision.fp8": (self.trainer.precision.fp8, "none"),
            "rollout.dtype": (self.rollout.dtype, "fp32"),
            "weights.fp8": (self.weights.fp8, False),
        }
        return tuple(f"cluster.{name} = {value}" for name, (value, exact) in found.items() if value != exact)

    @property
    def transport(self) -> Literal["gloo", "nccl", "ipc"]:
        """`weights.transport`, resolved."""
        of: dict[str, Literal["gloo", "nccl", "ipc"]] = {"cpu": "gloo", "colocated": "ipc", "disaggregated": "nccl"}
        return self.weights.transport or of[self.placed]
