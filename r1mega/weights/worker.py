"""What runs inside vLLM's workers: the receiving end of the gloo transport, and methods that answer /collective_rpc.

vLLM imports this file by name (`worker_extension_cls`), in the engine's own environment; no trainer does. Importing
it registers the gloo backend of vLLM's weight-transfer API there, and mends there what must be mended before a model
is made.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import TCPStore
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.platforms import current_platform

from r1mega.runtime import network
from r1mega.runtime.shims import vllm_cpu_expert_map, vllm_cpu_uneven_collectives
from r1mega.runtime.shims.vllm_cpu_moe_reload import drop_moe_kernels
from r1mega.runtime.shims.vllm_cpu_rotary import rotary_kernel
from r1mega.runtime.shims.vllm_cpu_tied_head import repack_tied_heads
from r1mega.weights.proof_worker import ProofWorker
from r1mega.weights.stream import Bucket, Param, Tally, buckets
from r1mega.weights.wire import LARGEST_BUCKET_BYTES, Buffers, Wire

GLOO = "gloo"


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """Where and as whom a worker joins the sender's group."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float
    bucket_bytes: int


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """The stream's metadata, in the order of the stream."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]

    def params(self) -> list[Param]:
        rows = zip(self.names, self.dtype_names, self.shapes, strict=True)
        return [Param(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in rows]


class GlooWorkerEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Receives checkpoint-format weights and loads them through vLLM's layer-wise reload."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    supports_draft_weight_update = False
    repack_experts = repack_heads = True
    """Off only in the tests that show the shims are needed."""
    _wire: Wire | None = None
    _bucket_bytes = LARGEST_BUCKET_BYTES

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        self.shutdown()
        parallel = self.parallel_config
        rank = init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        timeout = timedelta(seconds=init_info.timeout_s)
        sender = init_info.master_address
        store = TCPStore(sender, init_info.master_port, is_master=False, timeout=timeout)
        address = network.local_address(sender)
        self._wire = Wire(store, rank, init_info.world_size, init_info.timeout_s, address)
        self._bucket_bytes = init_info.bucket_bytes

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        if self.repack_experts:
            drop_moe_kernels(self.model)
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # Not the base's: it ends in torch.accelerator.synchronize(), which raises where there is no accelerator.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        if self._wire is None:
            raise RuntimeError("weights sent before init_weight_transfer_engine")
        tally = Tally()
        try:
            for bucket, buffer in self._received(buckets(update_info.params(), self._bucket_bytes)):
                tally.add(bucket, buffer)
                self.model.load_weights(list(bucket.views(buffer)))  # pyright: ignore[reportCallIssue]
            self._wire.compare(tally)
        except BaseException:
            self.shutdown()  # the sender learns it at once
            raise

    def _received(self, cut: Sequence[Bucket]) -> Iterator[tuple[Bucket, torch.Tensor]]:
        """Each bucket with its buffer [num_bytes] uint8; the next one comes in meanwhile."""
        assert self._wire is not None
        coming = deque[tuple[torch.Tensor, Any]]()
        buffers = Buffers()
        for i, bucket in enumerate(cut):
            for following in cut[i + len(coming) : i + 2]:
                buffer = buffers.take(following.num_bytes)
                coming.append((buffer, self._wire.begin(buffer)))
            buffer, begun = coming.popleft()
            self._wire.wait(begun)
            yield bucket, buffer

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        if self.repack_heads:
            repack_tied_heads(self.model)

    def shutdown(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None


class WorkerExtension(ProofWorker):
    """Mixed into vLLM's worker; importing this module is its purpose. Methods answer /collective_rpc."""

    weight_transfer_engine: GlooWorkerEngine

    def r1mega_nccl(self) -> str:
        """The version of the NCCL that this worker loads, as NCCL counts: 22907 is 2.29.7."""
        from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary

        return str(NCCLLibrary().ncclGetRawVersion())

    def r1mega_shim(self, name: str, state: str) -> str:
        """Switch a shim "on" or "off" in a running worker: only tests that show it is needed do."""
        if name == "moe_reload":
            self.weight_transfer_engine.repack_experts = state == "on"
        elif name == "tied_head":
            self.weight_transfer_engine.repack_heads = state == "on"
        elif name == "rotary":
            return str(rotary_kernel(self.weight_transfer_engine.model, enabled=state == "off"))
        else:
            raise ValueError(f"no shim {name!r} to switch; there are moe_reload, tied_head and rotary")
        return state


if GLOO not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(GLOO, GlooWorkerEngine)
if current_platform.is_cpu():
    vllm_cpu_uneven_collectives.apply()
    vllm_cpu_expert_map.apply()
