"""What vLLM's workers run in the push matrix: the product's own extension, and vLLM's nccl engine over gloo.

A server listens to one transport for good; here the sender's first words say which is meant, so that both are tried
on the same servers. vLLM imports this file by name, with tests/unit on its path.
"""

from typing import Any

from stand_in_vllm import GlooGroup, joined, packed_tensor  # pyright: ignore[reportMissingImports]
from vllm.distributed.weight_transfer import WeightTransferEngineFactory, nccl_engine

from r1mega.runtime.shims.vllm_cpu_moe_reload import drop_moe_kernels
from r1mega.runtime.shims.vllm_cpu_tied_head import repack_tied_heads
from r1mega.weights import worker

nccl_engine.packed_nccl_broadcast_consumer = packed_tensor().packed_nccl_broadcast_consumer


class NcclOverGloo(nccl_engine.NCCLWeightTransferEngine):
    """vLLM's engine, with gloo in NCCL's place and our mends of its models on a CPU."""

    model_update_group: Any

    def init_transfer_engine(self, init_info: Any) -> None:
        self.packed, self.packed_num_buffers = init_info.packed, init_info.packed_num_buffers
        self.packed_buffer_size_bytes = init_info.packed_buffer_size_bytes
        parallel = self.parallel_config
        rank = init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        info = {name: getattr(init_info, name) for name in ("master_address", "master_port", "world_size")}
        self.model_update_group = joined(info, rank)

    def start_weight_update(self) -> None:
        drop_moe_kernels(self.model)
        super().start_weight_update()

    def finish_weight_update(self) -> None:
        super().finish_weight_update()
        repack_tied_heads(self.model)

    def shutdown(self) -> None:
        group: GlooGroup | None = self.model_update_group
        if group is not None:
            group.close()
            self.model_update_group = None


class Either(worker.GlooWorkerEngine):
    """Our gloo engine until a sender speaks of packed buffers, and vLLM's from then on, and so on."""

    _other: NcclOverGloo | None = None
    _turned = False

    def parse_init_info(self, init_dict: dict[str, Any]) -> Any:
        self._turned = "packed" in init_dict
        if self._turned and self._other is None:
            self._other = NcclOverGloo(self.config, self.vllm_config, self.device, self.model)
        return (
            self._other.parse_init_info(init_dict)
            if self._turned and self._other
            else super().parse_init_info(init_dict)
        )

    def _now(self) -> Any:
        return self._other if self._turned else super()

    def init_transfer_engine(self, init_info: Any) -> None:
        self._now().init_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        self._now().start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        if self._turned and self._other is not None:  # its own ends in a wait for an accelerator
            self._other.receive_weights(self._other.parse_update_info(update_info))
        else:
            super().update_weights(update_info)

    def finish_weight_update(self) -> None:
        self._now().finish_weight_update()

    def shutdown(self) -> None:
        super().shutdown()
        if self._other is not None:
            self._other.shutdown()


class WorkerExtension(worker.WorkerExtension):
    """The product's; importing this module has put the other engine in its backend's place."""


del WeightTransferEngineFactory._registry[worker.GLOO]
WeightTransferEngineFactory.register_engine(worker.GLOO, Either)
