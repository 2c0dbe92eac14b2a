"""vLLM's own unpacking of packed broadcasts in a thread, on the CPU: its file, with gloo for NCCL and no streams."""

import contextlib
import importlib.util
import sys
import threading
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from stand_in_worker import params_of
from torch.distributed import TCPStore

from r1mega.weights.wire import Wire


@cache
def packed_tensor() -> ModuleType:
    """vllm/distributed/weight_transfer/packed_tensor.py by itself, which needs torch alone."""
    found = importlib.util.find_spec("vllm")
    assert found is not None and found.submodule_search_locations
    file = Path(found.submodule_search_locations[0], "distributed/weight_transfer/packed_tensor.py")
    spec = importlib.util.spec_from_file_location("vllms_packed_tensor", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    stream = SimpleNamespace(synchronize=lambda: None)
    # `torch` as this file sees it, but for devices and streams, of which there are none.
    module.torch = SimpleNamespace(  # type: ignore[attr-defined]
        empty=torch.empty, uint8=torch.uint8, cat=torch.cat, Tensor=torch.Tensor, dtype=torch.dtype,
        device=torch.device, accelerator=SimpleNamespace(current_device_index=lambda: 0),
        cuda=SimpleNamespace(stream=lambda stream: contextlib.nullcontext()),
    )  # fmt: skip
    module._get_streams = lambda device, count: (stream,) * count  # type: ignore[attr-defined]
    return module


class GlooGroup(Wire):
    """`weights.packed.Abortable` over gloo, and to vLLM's consumer a communicator."""

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        assert src == 0
        self.wait(self.begin(tensor))

    def abort(self) -> None:
        self.close()


class GlooMeeting:
    """`weights.packed.Meeting` at an address and a port, which vLLM's init info knows as well."""

    def __init__(self, timeout_s: float = 60.0) -> None:
        self._timeout_s = timeout_s
        limit = timedelta(seconds=timeout_s)
        self._store = TCPStore("127.0.0.1", 0, is_master=True, timeout=limit, wait_for_workers=False)
        self.told: dict[str, Any] = {"master_address": "127.0.0.1", "master_port": self._store.port}

    def check(self, client: Any) -> None: ...

    def join(self, world_size: int, given_up: Any) -> GlooGroup:
        return GlooGroup(self._store, 0, world_size, self._timeout_s, "127.0.0.1")


def joined(info: dict[str, Any], rank: int, timeout_s: float = 60.0) -> GlooGroup:
    """A worker's end."""
    limit = timedelta(seconds=timeout_s)
    store = TCPStore(info["master_address"], info["master_port"], is_master=False, timeout=limit)
    return GlooGroup(store, rank, info["world_size"], timeout_s, "127.0.0.1")


class StandInVllm:
    """`weights.servers.ServerClient` of one worker, rank 1, that unpacks as vLLM's nccl engine does."""

    def __init__(self) -> None:
        self.received, self.buffers = list[tuple[str, torch.Tensor]](), list[list[str]]()
        self.told = list[str]()
        self.group: GlooGroup
        self.fails_at: int | None = None
        """The buffer at whose loading the worker breaks off."""

    def shutdown_weight_transfer_engine(self) -> None:
        self.told.append("shutdown")

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.told.append("init")
        self.info = init_info
        thread = threading.Thread(target=self._join)
        thread.start()
        thread.join()

    def _join(self) -> None:
        self.group = joined(self.info, self.info["rank_offset"])

    def start_weight_update(self) -> None:
        self.told.append("start")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.told.append("update")
        described = ((p.name, (list(p.shape), p.dtype)) for p in params_of(update_info))
        try:
            packed_tensor().packed_nccl_broadcast_consumer(
                described, self.group, 0, self._load, self.info["packed_buffer_size_bytes"],
                self.info["packed_num_buffers"], "cpu",
            )  # fmt: skip
        except BaseException:
            self.group.close()
            raise

    def _load(self, pairs: list[tuple[str, torch.Tensor]]) -> None:
        if len(self.buffers) == self.fails_at:
            raise RuntimeError("the worker ran out of memory")
        self.buffers.append([name for name, _ in pairs])
        self.received += pairs

    def finish_weight_update(self) -> None:
        self.told.append("finish")
