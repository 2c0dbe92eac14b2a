"""vLLM's own models, loaders and kernels in this process: every rank of an engine, one by one, without a server.

    ranks = Ranks(folder, tp=2)              # two workers, each with its part of the folder's weights
    proof.check(Client({server: ranks}), ledger)

A rank's place is what vLLM's process groups say while its layers are made; nothing is ever computed together.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
               "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_HOST_IP": "127.0.0.1",
               "GLOO_SOCKET_IFNAME": "lo", "VLLM_LOGGING_LEVEL": "ERROR"}  # fmt: skip

import torch

from r1mega.families.spec import ModelSpec
from r1mega.weights.proof_worker import ProofWorker
from r1mega.weights.stream import Param, buckets
from r1mega.weights.worker import GlooWorkerEngine

torch.accelerator.empty_cache = lambda: None  # raises where there is no accelerator, and vLLM's server has it so too


def weights(spec: ModelSpec, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random ones of a model, by their Hugging Face names, in the order in which they are pushed."""
    draw = torch.Generator().manual_seed(seed)
    rows = [row for row in spec.tensors() if not row.mtp]
    shapes = {name: shape for row in rows for name, shape in zip(row.hf, row.hf_shapes, strict=True)}
    fp32 = {name for name in shapes if name.endswith("e_score_correction_bias")}
    return {
        name: torch.randn(shape, generator=draw).to(torch.float32 if name in fp32 else dtype)
        for name, shape in shapes.items()
    }


class Worker(ProofWorker):
    """One rank: its model, and what takes pushes into it."""

    def __init__(self, model: Any, config: Any, place: str) -> None:
        self.model, self.place, self.draft = model, place, None
        self.model_runner = SimpleNamespace(get_model=lambda: self.model, get_draft_model=lambda: self.draft)
        nothing: Any = SimpleNamespace()
        self.receiver: Any = GlooWorkerEngine(nothing, config, torch.device("cpu"), model)

    def _weight_checksum_prefix(self) -> str:
        return f"{self.place}:"

    def load(
        self, tensors: Sequence[tuple[str, torch.Tensor]], bucket_bytes: int, reused: torch.Tensor | None
    ) -> None:
        """As `GlooWorkerEngine` loads what it receives; reused: one buffer for all buckets, where there is one."""
        params = [Param(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors]
        values = iter(tensors)
        self.receiver.start_weight_update()
        for bucket in buckets(params, bucket_bytes):
            buffer = (
                torch.empty(bucket.num_bytes, dtype=torch.uint8) if reused is None else reused[: bucket.num_bytes]
            )
            for _, view in bucket.views(buffer):
                view.copy_(next(values)[1])
            self.model.load_weights(list(bucket.views(buffer)))
        self.receiver.finish_weight_update()


class Ranks:
    """All workers of one server."""

    def __init__(
        self, folder: Path, *, tp: int = 1, expert_parallel: bool = False, dtype: str = "float32", name: str = "s0"
    ) -> None:
        self.url, self.incarnation, self.world_size = f"http://{name}", 1, tp
        self.workers = [_worker(folder, tp, expert_parallel, dtype, rank) for rank in range(tp)]

    def load(
        self,
        tensors: Sequence[tuple[str, torch.Tensor]],
        bucket_bytes: int = 2**16,
        reused: torch.Tensor | None = None,
    ) -> None:
        for worker in self.workers:
            worker.load(tensors, bucket_bytes, reused)


class Client:
    """What a `Proof` asks of `weights.servers.ServerClient`."""

    def __init__(self, servers: Sequence[Ranks]) -> None:
        self.servers = servers

    def prove(self, action: str) -> dict[Ranks, dict[str, str]]:
        return {server: dict(_answers(server.workers, action)) for server in self.servers}


def _answers(workers: Sequence[Worker], action: str) -> Iterator[tuple[str, str]]:
    for worker in workers:
        worker.r1mega_prove(action)
        yield from worker.compute_weight_checksums().items()  # type: ignore[attr-defined]


def _worker(folder: Path, tp: int, expert_parallel: bool, dtype: Any, rank: int) -> Worker:
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model

    config = EngineArgs(
        model=str(folder), dtype=dtype, max_model_len=64, enforce_eager=True, kv_cache_memory_bytes=2**24,
        block_size=32, skip_tokenizer_init=True, enable_expert_parallel=expert_parallel,
    ).create_engine_config()  # fmt: skip
    config.parallel_config.tensor_parallel_size, config.parallel_config.rank = tp, rank
    with set_current_vllm_config(config), _place(tp, rank):
        model = get_model(vllm_config=config)
    return Worker(model, config, f"dp0:pp0:pcp0:tp{rank}")


@contextlib.contextmanager
def _place(size: int, rank: int) -> Iterator[None]:
    """vLLM's process groups say that this is one rank of more."""
    from vllm.distributed import parallel_state

    if parallel_state._WORLD is None:
        with tempfile.NamedTemporaryFile() as meeting:
            parallel_state.init_distributed_environment(1, 0, f"file://{meeting.name}", 0, backend="gloo")
            parallel_state.initialize_model_parallel(1, 1)
    before = {name: getattr(parallel_state, name) for name in ("_TP", "_EP")}
    for name, group in before.items():
        setattr(parallel_state, name, _Seen(group, size, rank))
    try:
        yield
    finally:
        for name, group in before.items():
            setattr(parallel_state, name, group)


class _Seen:
    """A process group as it looks from one place in it."""

    def __init__(self, group: Any, world_size: int, rank_in_group: int) -> None:
        self._group, self.world_size, self.rank_in_group = group, world_size, rank_in_group

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)
