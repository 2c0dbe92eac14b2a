"""How a vLLM server is started: command lines and environments, as pure functions of what they follow from.

Sources (vLLM 0.32, below vllm/): engine/arg_utils.py and entrypoints/launchers/cli_args.py (the flags), envs.py (the
variables), config/model.py and models/deepseek_v2.py (head_dtype, moe_router_dtype), engine/arg_utils.py and
config/parallel.py (several hosts). What holds on a CPU stands in the files of runtime/shims/vllm_cpu_*.
"""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import r1mega
from r1mega.config.cluster import Cluster, RolloutLayout
from r1mega.families.quantization import FP8
from r1mega.rollout import kernels
from r1mega.runtime import network
from r1mega.runtime.shims import vllm_cpu_rotary, vllm_cpu_seeded_prefill

WORKER_EXTENSION = "r1mega.weights.worker.WorkerExtension"
"""Imported by name in each vLLM worker: it registers our weight-transfer backend there, and answers our calls."""
ONLINE_FP8 = "fp8_per_block"
"""vLLM's name for FP8 codes with a scale for 128 x 128 values, which it computes as it loads 16-bit weights."""
COLOCATED_SHARE = 0.05
"""Of a GPU's memory, that must be free when a colocated server starts: what vLLM then takes follows from
kv_cache_gib, and the law of memory has judged it."""
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class ServedFolder:
    """What of a Hugging Face folder the command line follows from."""

    path: Path
    mla: bool
    """Whether its latent attention has the one shape for which there is a kernel on CPUs."""
    mixture: bool
    """Whether it is one of DeepSeek's mixtures of experts, the only models whose router's dtype can be set."""
    quantized: bool
    """Whether its weights are FP8 codes."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Of its config.json."""
        return cls.of(path, json.loads((path / "config.json").read_text()))

    @classmethod
    def of(cls, path: Path, config: Mapping[str, Any]) -> Self:
        """Of what its config.json says."""
        return cls(
            path,
            mla=all(config.get(key) == value for key, value in kernels.MLA.items()),
            mixture=bool(config.get("n_routed_experts")),
            quantized=config.get("quantization_config") is not None,
        )


@dataclass(frozen=True)
class ServerPlace:
    """Where a server runs, and how its weights come to it."""

    device: Literal["cpu", "cuda"] = "cpu"
    transport: Literal["gloo", "nccl", "ipc"] = "gloo"
    """Of pushed weights."""
    sleeps: bool = False
    """Whether it gives its memory to the trainer between rollouts."""
    fp8: bool = False
    """Whether matrices are FP8 codes in it, and on their way to it."""
    pushed: bool = False
    """Whether weights are pushed before anything is asked: what it starts with is then of no consequence."""
    gpus: tuple[int, ...] = ()
    """Its GPUs on this host, counted as the trainer's ranks count them; empty: all that it finds where it starts."""
    hosts: int = 1
    """Over which its ranks are spread evenly."""
    number: int = 0
    """Which of the servers it is."""
    nodes: tuple[int, ...] = ()
    """Of those where attendants start servers, the ones that it is on; empty: the first rank starts it."""
    variables: tuple[tuple[str, str | None], ...] = ()
    """Names and values that the cluster file sets for servers; None: for the trainer alone, who starts them."""

    @classmethod
    def of(cls, machine: Cluster, number: int = 0, *, trains: bool) -> Self:
        """That of the `number`-th server of a cluster file.

        Args:
            trains: whether the stage has a trainer, whose weights are pushed before anything is asked, and which has
                GPUs as well.
        """
        layout = machine.rollout
        ranks = layout.tp * layout.dp
        attended = bool(layout.attendants)
        variables = tuple({**dict.fromkeys(machine.environment.trainer), **machine.environment.of_rollout}.items())
        if machine.device == "cpu":
            return cls(number=number, nodes=(0,) if attended else (), variables=variables)
        of_node = machine.gpus_per_node or ranks
        hosts, on_node = math.ceil(ranks / of_node), max(1, of_node // ranks)
        nodes: tuple[int, ...] = ()
        if not attended:
            gpus = gpus_of(machine, trains=trains)[number * ranks : (number + 1) * ranks]
            hosts = 1 if gpus else hosts
        elif hosts > 1:
            nodes, gpus = tuple(range(number * hosts, (number + 1) * hosts)), ()
        else:
            nodes, first = (number // on_node,), number % on_node * ranks
            gpus = tuple(range(first, first + ranks))
        return cls(
            device="cuda", transport=machine.transport, sleeps=trains and machine.placed == "colocated",
            fp8=machine.weights.fp8, pushed=trains, gpus=gpus, hosts=hosts, number=number, nodes=nodes,
            variables=variables,
        )  # fmt: skip


def places_of(machine: Cluster, *, trains: bool) -> tuple[ServerPlace, ...]:
    """Those of all servers of a cluster file."""
    return tuple(ServerPlace.of(machine, number, trains=trains) for number in range(machine.rollout.servers))


def gpus_of(machine: Cluster, *, trains: bool) -> tuple[int, ...]:
    """GPUs of this host on which the stage's first rank starts servers, in their order; empty: they are elsewhere.

    Those of `rollout.gpus`; else where colocated the trainer's own, and otherwise those behind the trainer's, if the
    node has so many. Without a trainer the first ones.
    """
    layout = machine.rollout
    if machine.device == "cpu" or layout.launch or layout.attendants:
        return ()
    if layout.gpus:
        return layout.gpus
    wanted = layout.servers * layout.tp * layout.dp
    first = machine.trainer.ranks if trains and machine.placed != "colocated" else 0
    fits = first + wanted <= (machine.gpus_per_node or math.inf)
    return tuple(range(first, first + wanted)) if fits else ()


@dataclass(frozen=True)
class Start:
    """What a start is of, beside folder, layout and place."""

    host: str
    """As the trainer reaches the server."""
    port: int
    max_model_len: int
    seed: int
    node: int = 0
    """Which of the server's hosts starts this part of it."""
    address: str = "127.0.0.1"
    """Of the server's first host, as the others reach it."""


def command(folder: ServedFolder, layout: RolloutLayout, place: ServerPlace, start: Start) -> list[str]:
    """Command line of a server, or of its part on one of several hosts."""
    if place.device == "cpu":
        return cpu_command(folder, layout, start)
    return cuda_command(folder, layout, place, start)


def environment(
    folder: ServedFolder,
    layout: RolloutLayout,
    place: ServerPlace,
    *,
    visible: str | None = None,
    own_address: str = "",
) -> dict[str, str]:
    """Variables of a server, beside those that it inherits.

    Args:
        visible: CUDA_VISIBLE_DEVICES of this process, where it is set: `ServerPlace.gpus` count within it.
        own_address: of a host among several, as the others reach it.
    """
    said = {name: value for name, value in place.variables if value is not None}
    if place.device == "cpu":
        return {**said, **cpu_environment(folder, layout)}
    return {**said, **cuda_environment(layout, place, visible=visible, own_address=own_address)}


def cpu_command(folder: ServedFolder, layout: RolloutLayout, start: Start) -> list[str]:
    """Command line of a server that computes on a CPU."""
    values = {
        **_common(folder, start),
        # The model in the engine's own process: one vLLM import less, and no busy-waiting between the two.
        "distributed-executor-backend": "uni" if layout.tp == 1 else "mp",
        "dtype": _DTYPES[layout.dtype],
        **_ranks(layout),
        "max-model-len": start.max_model_len,
        "max-num-seqs": layout.max_num_seqs,
        "max-num-batched-tokens": vllm_cpu_seeded_prefill.step_tokens(start.max_model_len, layout.max_num_seqs),
        "kv-cache-memory-bytes": int(layout.kv_cache_gib * 2**30),
        "block-size": 16 if folder.mla else 32,  # the kernels accept no other
        "logprobs-mode": "processed_logprobs",  # of logits / T, which is what old and reference logprobs are of
        "compilation-config": json.dumps({"custom_ops": vllm_cpu_rotary.CUSTOM_OPS}),
        "weight-transfer-config": json.dumps({"backend": "gloo"}),
        "worker-extension-cls": WORKER_EXTENSION,
        "uvicorn-log-level": "warning",
    }
    flags = (
        "enforce-eager",
        "enable-prefix-caching",
        "disable-uvicorn-access-log",
        "no-enable-log-requests",
        vllm_cpu_seeded_prefill.FLAG,
        *(["enable-expert-parallel"] if layout.expert_parallel else []),
    )
    # `vllm serve` looks for a distribution named vllm, which the CPU package is not.
    program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    return [*program, *_arguments(values, flags)]


def cpu_environment(folder: ServedFolder, layout: RolloutLayout) -> dict[str, str]:
    """Variables of a server that computes on a CPU; `openmp.preload` adds to them."""
    return {
        "OMP_NUM_THREADS": str(layout.threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # or vLLM keeps a core to itself, whatever OMP_NUM_THREADS says
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # or the CPU platform overrides "uni", for threads that we set here
        **_ANYWHERE,
        **_ON_ONE_HOST,
        **({} if folder.mla else {"VLLM_MLA_DISABLE": "1"}),
    }


def cuda_command(folder: ServedFolder, layout: RolloutLayout, place: ServerPlace, start: Start) -> list[str]:
    """Command line of a server on GPUs, or of its part on one of several hosts.

    Left to vLLM: block size, executor, CUDA graphs, chunked prefill, asynchronous scheduling, attention kernels.
    """
    overrides, how = _stored(folder, place)
    values = {
        **_common(folder, start),
        "dtype": _DTYPES[layout.dtype],
        **_ranks(layout),
        **_hosts(layout, place, start),
        "max-model-len": start.max_model_len,
        "max-num-seqs": layout.max_num_seqs,
        **({"max-num-batched-tokens": tokens} if (tokens := layout.max_num_batched_tokens) else {}),
        "kv-cache-memory-bytes": int(layout.kv_cache_gib * 2**30),
        **({"gpu-memory-utilization": COLOCATED_SHARE} if place.sleeps else {}),
        "generation-config": "vllm",  # requests say all; a folder's own file would bound the length of answers
        "logprobs-mode": "processed_logprobs",  # of logits / T, which is what old and reference logprobs are of
        # As the trainer computes both: rounded to bf16, near ties of tokens and of experts are decided otherwise.
        "hf-overrides": json.dumps(
            {"head_dtype": "float32", **({"moe_router_dtype": "float32"} if folder.mixture else {}), **overrides}
        ),
        **how,
        **({"moe-backend": layout.moe_backend} if folder.mixture else {}),
        "weight-transfer-config": json.dumps({"backend": place.transport}),
        "worker-extension-cls": WORKER_EXTENSION,
        # One front for all copies: pauses and versions of weights are told to one process.
        **({} if start.node else {"api-server-count": 1}),
        "uvicorn-log-level": "warning",
    }
    flags = [
        "enable-prefix-caching",
        "disable-uvicorn-access-log",
        "no-enable-log-requests",
        *([] if layout.cuda_graphs else ["enforce-eager"]),
        *(["enable-expert-parallel", "enable-ep-weight-filter"] if layout.expert_parallel else []),
        *(["enable-sleep-mode"] if place.sleeps else []),
        *(["headless"] if start.node else []),
    ]
    program = [layout.python or sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]
    return [*program, *_arguments(values, flags)]


def cuda_environment(
    layout: RolloutLayout, place: ServerPlace, *, visible: str | None = None, own_address: str = ""
) -> dict[str, str]:
    """Variables of a server on GPUs. Arguments: see `environment`."""
    found = {**_ANYWHERE, **({"VLLM_HOST_IP": own_address} if place.hosts > 1 else _ON_ONE_HOST)}
    if place.gpus:
        devices = visible.split(",") if visible else [str(gpu) for gpu in range(max(place.gpus) + 1)]
        # One that is not there is named all the same: CUDA then finds it missing, and says so.
        found["CUDA_VISIBLE_DEVICES"] = ",".join(
            devices[gpu] if gpu < len(devices) else str(gpu) for gpu in place.gpus
        )
    if layout.compile_cache:
        found["VLLM_CACHE_ROOT"] = layout.compile_cache
    if layout.python:  # its environment is vLLM's own; the worker extension is found here
        found["PYTHONPATH"] = str(Path(r1mega.__file__).parents[1])
    if place.transport == "ipc":
        # Handles of GPU memory come as a pickle, to a server on loopback alone (`layout.engine_laws`).
        found["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    return found


_ANYWHERE = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_MAX_STOP_STRINGS": str(2**31 - 1),  # as many as the settings say; vLLM refuses more than 4 by itself
    # An idle connection is ended by us: at its own 5 s the server could close one just as a request goes out on it.
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",
    "VLLM_SERVER_DEV_MODE": "1",  # opens the weight-sync and cache routes
}
_ON_ONE_HOST = {
    "VLLM_HOST_IP": "127.0.0.1",  # for its processes among themselves, whatever the host's name
    "GLOO_SOCKET_IFNAME": "lo",
}


def _common(folder: ServedFolder, start: Start) -> dict[str, object]:
    return {
        "model": folder.path,
        "served-model-name": "policy",
        # A host's name may mean its loopback address on that host itself.
        "host": start.host if network.is_loopback(start.host) else "::" if ":" in start.host else "0.0.0.0",
        "port": start.port,
        "seed": start.seed,
    }


def _ranks(layout: RolloutLayout) -> dict[str, object]:
    return {"tensor-parallel-size": layout.tp, **({"data-parallel-size": layout.dp} if layout.dp > 1 else {})}


def _hosts(layout: RolloutLayout, place: ServerPlace, start: Start) -> dict[str, object]:
    """Ports are those behind the server's own, which nobody else has on hosts that are the server's alone."""
    if place.hosts == 1:
        return {}
    return {
        "nnodes": place.hosts,
        "node-rank": start.node,
        "master-addr": start.address,
        "master-port": start.port + 1,
        **({"data-parallel-rpc-port": start.port + 2} if layout.dp > 1 else {}),
    }


def _stored(folder: ServedFolder, place: ServerPlace) -> tuple[dict[str, object], dict[str, object]]:
    """In which form weights are kept, where that is not the folder's: overrides of its config.json, and arguments.

    Weights that are pushed have the form that the cluster file says. A 16-bit folder that nothing is pushed over is
    made FP8 as it is loaded; an FP8 one is served as it is.
    """
    if folder.quantized == place.fp8 or (folder.quantized and not place.pushed):
        return {}, {}
    if not place.pushed:
        return {}, {"quantization": ONLINE_FP8}
    return {"quantization_config": dict(FP8) if place.fp8 else None}, {"load-format": "dummy"}


def _arguments(values: Mapping[str, object], flags: tuple[str, ...] | list[str]) -> list[str]:
    pairs = [text for name, value in values.items() for text in (f"--{name}", str(value))]
    return [*pairs, *(f"--{flag}" for flag in flags)]
