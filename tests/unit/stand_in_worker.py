"""The receiving end of the gloo transport in a thread of the test's own process, and the servers' client in one."""

import threading
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import TCPStore

from r1mega.weights.stream import Param, Tally, buckets
from r1mega.weights.wire import Wire


def params_of(info: dict[str, Any]) -> list[Param]:
    """What vLLM's routes say of a stream, as the receiver reads it."""
    rows = zip(info["names"], info["dtype_names"], info["shapes"], strict=True)
    return [Param(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in rows]


class StandInWorker:
    """`weights.servers.ServerClient` of one worker, rank 1, which keeps what it receives as (name, tensor)."""

    def __init__(self) -> None:
        self.received = list[tuple[str, torch.Tensor]]()
        self.told = list[str]()
        self.fails_at: int | None = None
        """The bucket before which the worker breaks off."""
        self.spoils = False
        """Whether the worker takes one byte for another."""
        self._wire: Wire | None = None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.told.append("init")
        self.info = init_info
        joined = threading.Thread(target=self._join)
        joined.start()
        joined.join()

    def _join(self) -> None:
        info, timeout = self.info, timedelta(seconds=self.info["timeout_s"])
        store = TCPStore(info["master_address"], info["master_port"], is_master=False, timeout=timeout)
        self._wire = Wire(store, info["rank_offset"], info["world_size"], info["timeout_s"], "127.0.0.1")

    def start_weight_update(self) -> None:
        self.told.append("start")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.told.append("update")
        assert self._wire is not None
        tally = Tally()
        try:
            for i, bucket in enumerate(buckets(params_of(update_info), self.info["bucket_bytes"])):
                if i == self.fails_at:
                    raise RuntimeError("the worker ran out of memory")
                buffer = torch.empty(bucket.num_bytes, dtype=torch.uint8)
                self._wire.wait(self._wire.begin(buffer))
                if self.spoils:
                    buffer[0] ^= 1
                tally.add(bucket, buffer)
                self.received += bucket.views(buffer)
            self._wire.compare(tally)
        except BaseException:
            self._wire.close()
            raise

    def finish_weight_update(self) -> None:
        self.told.append("finish")
