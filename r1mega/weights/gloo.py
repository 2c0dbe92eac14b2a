"""The gloo backend of vLLM's weight-transfer API, both ends: weights travel as a few packed broadcasts.

Sender (trainer, rank 0 of the group) and receivers (vLLM workers, ranks 1..N) cut the stream into the same
buckets, computed from the metadata alone. After the last bucket all ranks exchange what they saw (tensors, bytes,
CRC-32); any difference fails the push on both sides. Importing this module imports vLLM and registers the
backend; vLLM's workers import it through `worker_extension_cls`.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, ClassVar, Self

import torch
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore
from vllm.distributed.weight_transfer import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from r1mega.errors import RolloutError
from r1mega.runtime import network
from r1mega.runtime.shims.vllm_cpu_moe_reload import drop_moe_kernels
from r1mega.runtime.shims.vllm_cpu_rotary import rotary_kernel
from r1mega.runtime.shims.vllm_cpu_tied_head import repack_tied_heads
from r1mega.weights.stream import Param, SourceError, Tally, buckets, checked

BACKEND = "gloo"
BUCKET_BYTES = 64 * 2**20


# ---- the group ----------------------------------------------------------------------------------------------


class Wire:
    """A gloo group of one sender (rank 0) and the workers, apart from any default group of either side."""

    def __init__(self, store: TCPStore, rank: int, world_size: int, timeout_s: float, address: str) -> None:
        """address: of this host, as the others reach it."""
        options = ProcessGroupGloo._Options()  # pyright: ignore[reportAttributeAccessIssue]
        options._timeout = timedelta(seconds=timeout_s)
        # The default device listens on whatever this host's name resolves to, which may be nothing at all.
        options._devices = [ProcessGroupGloo.create_device(hostname=address)]
        self._pg: Any = ProcessGroupGloo(PrefixStore("r1mega_weights", store), rank, world_size, options)
        self._store = store  # the sender's store must live as long as the group
        self.rank, self.world_size, self.timeout_s = rank, world_size, timeout_s

    def broadcast(self, buffer: torch.Tensor, given_up: Callable[[], bool] = lambda: False) -> None:
        """Send rank 0's buffer, [num_bytes] uint8, to all."""
        options = BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        self._wait(self._pg.broadcast([buffer], options), given_up, "a chunk of weights")

    def compare(self, tally: Tally, given_up: Callable[[], bool] = lambda: False) -> None:
        """Exchange tallies; every rank must have seen what the sender sent.

        Raises:
            RuntimeError: naming each rank that saw something else.
        """
        mine = tally.as_tensor()
        seen = [torch.empty_like(mine) for _ in range(self.world_size)]
        self._wait(self._pg.allgather([seen], [mine]), given_up, "the checksums")
        sent, *received = [tuple(t.tolist()) for t in seen]
        wrong = [f"worker {i} received {r}" for i, r in enumerate(received) if r != sent]
        if wrong:
            raise RuntimeError(f"(tensors, bytes, CRC-32) of this push: sent {sent}, but {'; '.join(wrong)}")

    def _wait(self, work: Any, given_up: Callable[[], bool], what: str) -> None:
        # Polled rather than waited for: gloo's wait cannot be ended from outside when the other side gives up.
        deadline = time.monotonic() + self.timeout_s
        while not work.is_completed():
            if given_up():
                raise RuntimeError(f"the other side gave up while rank {self.rank} waited for {what}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank {self.rank} waited {self.timeout_s:g} s for {what}")
            time.sleep(0.0005)
        work.wait()

    def close(self) -> None:
        """Leave the group; who still waits for this rank gets an error at once."""
        if self._pg is None:
            return
        group, self._pg = [self._pg], None
        group[0].abort()  # alone it leaves gloo's sockets open, and the other side waiting: the group must go as well
        # With a frozen rank in the group that takes until this rank's wait for it times out or the frozen one is
        # killed, which is what comes next; so it is not waited for.
        leaving = threading.Thread(target=group.clear)
        leaving.start()
        leaving.join(1.0)


# ---- in each vLLM worker ------------------------------------------------------------------------------------


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

    @classmethod
    def of(cls, params: Sequence[Param]) -> Self:
        dtypes = [str(p.dtype).removeprefix("torch.") for p in params]
        return cls([p.name for p in params], dtypes, [list(p.shape) for p in params])

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
    _bucket_bytes = BUCKET_BYTES

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
            for bucket in buckets(update_info.params(), self._bucket_bytes):
                # A new buffer each time: the layer-wise reload keeps views until a layer is complete.
                buffer = torch.empty(bucket.num_bytes, dtype=torch.uint8)
                self._wire.broadcast(buffer)
                tally.add(bucket, buffer)
                self.model.load_weights(list(bucket.views(buffer)))  # pyright: ignore[reportCallIssue]
            self._wire.compare(tally)
        except BaseException:
            self.shutdown()  # the sender learns it at once
            raise

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        if self.repack_heads:
            repack_tied_heads(self.model)

    def shutdown(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None


class WorkerExtension:
    """Mixed into vLLM's worker; importing this module is its purpose. Methods answer /collective_rpc."""

    weight_transfer_engine: GlooWorkerEngine

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


# ---- in the trainer -----------------------------------------------------------------------------------------


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """The sender's group: itself and `num_workers` receivers."""

    backend: ClassVar[str] = BACKEND

    address: str
    """This host's, as the workers reach it, for gloo."""
    name: str
    """The address, or a name of this host, which the workers are told."""
    num_workers: int
    timeout_s: float
    bucket_bytes: int = BUCKET_BYTES


class GlooTrainerEngine(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """Sends what the source yields. `tally` holds what the last push sent."""

    init_info_cls = GlooTrainerInitInfo
    tally: Tally
    _wire: Wire
    _bucket_bytes: int

    @classmethod
    def trainer_init(
        cls, init_info: GlooTrainerInitInfo, *, client: VLLMWeightSyncClient, source: Any = None
    ) -> Self:
        engine = cls(client=client, source=source, is_sender=init_info.is_sender)
        info, timeout = init_info, timedelta(seconds=init_info.timeout_s)
        world_size = 1 + info.num_workers
        # Port 0: the store takes a free one, and no other process can take it in between.
        store = TCPStore(info.address, 0, is_master=True, timeout=timeout, wait_for_workers=False)
        worker = GlooInitInfo(info.name, store.port, 1, world_size, info.timeout_s, info.bucket_bytes)
        with ThreadPoolExecutor(1) as executor:
            rpc = executor.submit(client.init_weight_transfer_engine, asdict(worker))
            try:
                engine._wire = Wire(store, 0, world_size, info.timeout_s, info.address)
            except Exception as error:
                raise _also(error, rpc) from error
            rpc.result()
        engine._bucket_bytes = info.bucket_bytes
        return engine

    def send_weights(self) -> None:
        """Push every tensor of the source.

        Raises:
            SourceError: the source fails or disagrees with its metadata.
            RolloutError: a server refuses what it is asked.
            RuntimeError: a worker that failed, a time-out, or a difference between what was sent and received.
                The group is closed then, as for the others.
        """
        params = [Param(p.name, p.dtype, tuple(p.shape)) for p in self.source.metadata()]  # type: ignore[union-attr]
        self.tally = Tally()
        self.client.start_weight_update()
        executor = ThreadPoolExecutor(1)
        rpc = executor.submit(self.client.update_weights, asdict(GlooUpdateInfo.of(params)))

        def refused() -> bool:
            return rpc.done() and rpc.exception() is not None

        try:
            stream = checked(iter(self.source), params)  # type: ignore[arg-type]
            for bucket in buckets(params, self._bucket_bytes):
                buffer = torch.empty(bucket.num_bytes, dtype=torch.uint8)
                for _, view in bucket.views(buffer):
                    view.copy_(next(stream)[1])
                self._wire.broadcast(buffer, refused)
                self.tally.add(bucket, buffer)
            for _ in stream:  # runs its check for what is left over
                pass
            self._wire.compare(self.tally, refused)
            rpc.result(self._wire.timeout_s)
        except Exception as error:
            self.shutdown()
            raise _also(error, rpc) from error
        finally:
            executor.shutdown(wait=False)
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        self._wire.close()


def _also(error: Exception, rpc: Future[None]) -> Exception:
    """The error, and what the server answered if it did: often that is the cause."""
    try:
        answer = rpc.exception(timeout=10)
    except TimeoutError:
        answer = None
    text = f"{error}; the server said: {answer}" if answer else str(error)
    if isinstance(error, SourceError):
        return SourceError(text)
    return RolloutError(text) if isinstance(answer, RolloutError) else RuntimeError(text)


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, GlooWorkerEngine)
if BACKEND not in WeightTransferTrainerFactory._registry:
    WeightTransferTrainerFactory.register_engine(BACKEND, GlooTrainerEngine)
