"""The ipc transport up to handles of GPU memory, in whose place names of host buffers stand, and vLLM's consumer."""

import base64
import contextlib
import pickle
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stand_in_vllm import packed_tensor

from r1mega.errors import RolloutError
from r1mega.weights import ipc
from r1mega.weights.push import BACKENDS
from r1mega.weights.sender import Link, Sent
from r1mega.weights.stream import SourceError

TENSORS = {f"w{i}": torch.randn(16, 8 + i, generator=torch.Generator().manual_seed(i)) for i in range(6)}
TENSORS |= {"odd": torch.arange(3, dtype=torch.bfloat16), "bias": torch.ones(2), "large": torch.randn(40, 40)}
ORDER = [name for name in TENSORS if name != "odd"] + ["odd"]
BOUND = 2048
"""Of a buffer, of which `large` has three."""
LINK = Link("127.0.0.1", "127.0.0.1", 2, 60.0, BOUND)


class Ranks:
    """Two ranks of the trainer, each in a thread, on GPUs of their own."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.meeting, self.given = threading.Barrier(2, timeout=60), dict[int, Any]()
        self.buffers = dict[str, torch.Tensor]()

    def at(self, rank: int) -> Any:
        def gather(mine: Any) -> list[Any]:
            self.given[rank] = mine
            self.meeting.wait()
            found = [self.given[0], self.given[1]]
            self.meeting.wait()
            return found

        return SimpleNamespace(device=self.device, gather=gather)

    def share(self, rank: int) -> Any:
        def share(buffer: torch.Tensor) -> ipc.Handles:
            self.buffers[f"gpu{rank}"] = buffer
            return {f"gpu{rank}": (0, 1, 2, 3, 4, 5, "trainer's device", f"gpu{rank}")}

        return share


class Source:
    """Of a rank whose tensors are all `scale` times TENSORS."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale, self.passes = scale, list[int]()
        self.ranks: Any = None

    def metadata(self) -> list[Any]:
        return [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()]

    def __iter__(self) -> Iterator[Any]:
        self.passes.append(0)
        for name, tensor in TENSORS.items():
            self.passes[-1] += 1
            yield name, tensor * self.scale


class Worker:
    """A server of two workers, each of which looks for the handle of its own GPU, as vLLM's ipc engine does."""

    servers = (SimpleNamespace(url="http://127.0.0.1:1", host="127.0.0.1"),)

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.told = ranks, list[str]()
        self.received: dict[str, list[tuple[str, torch.Tensor]]] = {"gpu0": [], "gpu1": []}
        self.fails_at: int | None = None

    def init_weight_transfer_engine(self, info: dict[str, Any]) -> None:
        assert info == {"packed": True}  # `IPCWeightTransferInitInfo`
        self.told.append("init")

    def start_weight_update(self) -> None:
        self.told.append("start")

    def update_weights(self, info: dict[str, Any]) -> None:
        self.told.append("update")
        if self.told.count("update") - 1 == self.fails_at:
            raise RuntimeError("the worker ran out of memory")
        assert info.keys() == {"names", "dtype_names", "shapes", "tensor_sizes", "ipc_handles_pickled"}
        handles = pickle.loads(base64.b64decode(info["ipc_handles_pickled"]))
        for index, gpu in enumerate(self.received):
            module = packed_tensor()
            uuid = SimpleNamespace(uuid=gpu)
            module.torch.cuda.get_device_properties = lambda device, uuid=uuid: uuid
            module.torch.bfloat16, module.torch.float32 = torch.bfloat16, torch.float32
            importer = SimpleNamespace(rebuild=lambda args, index=index: self._rebuild(args, index))
            self.received[gpu] += module.packed_ipc_consumer(
                handles, info["names"], info["shapes"], info["dtype_names"], info["tensor_sizes"], index, importer
            )

    def _rebuild(self, arguments: list[Any], device: int) -> torch.Tensor:
        assert arguments[6] == device  # the worker's own count of its GPU
        return self.ranks.buffers[arguments[7]]

    def finish_weight_update(self) -> None:
        self.told.append("finish")
        if self.fails_at == -1:
            raise RuntimeError("the worker ran out of memory")

    def shutdown_weight_transfer_engine(self) -> None:
        self.told.append("shutdown")


class Rig:
    """The first rank's sender, and the second's part in a thread."""

    def __init__(self) -> None:
        self.ranks = Ranks()
        self.worker: Any = Worker(self.ranks)
        self.sources = Source(), Source(-2.0)
        self.sources[1].ranks = self.ranks.at(1)
        self.sender = ipc.IpcSender(LINK, self.worker, self.ranks.at(0), self.ranks.share(0))

    def push(self) -> None:
        def follow() -> None:
            with contextlib.suppress(SourceError):  # the first rank's as well, and it says so
                ipc.follow(self.sources[1], BOUND, self.ranks.share(1))  # type: ignore[arg-type]

        thread = threading.Thread(target=follow)
        thread.start()
        try:
            self.sender.send(self.sources[0])
        finally:
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_each_worker_gets_what_the_rank_on_its_gpu_packed(rig: Rig) -> None:
    for _ in range(2):
        rig.push()
    for gpu, scale in (("gpu0", 1.0), ("gpu1", -2.0)):
        assert [name for name, _ in rig.worker.received[gpu]] == ORDER * 2
        assert all(torch.equal(got, TENSORS[name] * scale) for name, got in rig.worker.received[gpu])
    num_bytes = sum(tensor.nbytes for tensor in TENSORS.values())
    assert rig.sender.sent == Sent(len(TENSORS), num_bytes)
    assert rig.ranks.buffers["gpu0"].nbytes == TENSORS["large"].nbytes  # one buffer, of the largest tensor
    updates = rig.worker.told.count("update") // 2
    of_push = ["start", *["update"] * updates, "finish", "shutdown"]
    assert updates > 2 and rig.worker.told == ["init", *of_push * 2]


def test_memory_is_given_back_when_workers_have_let_go_of_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's keep the last buffer mapped until they are told; on every rank, what is mapped elsewhere stays taken."""
    monkeypatch.setattr(ipc, "_release", lambda device: rig.worker.told.append("released"))
    rig.push()
    assert rig.worker.told[-4:] == ["finish", "shutdown", "released", "released"]


def test_what_fails_at_the_end_keeps_no_rank_waiting(rig: Rig) -> None:
    rig.worker.fails_at = -1
    with pytest.raises(RuntimeError, match="the worker ran out of memory"):
        rig.push()
    assert rig.worker.told[-1] == "finish"


@pytest.mark.parametrize("chunk", [0, 1])
def test_where_a_worker_fails_every_rank_still_reads_to_the_end(rig: Rig, chunk: int) -> None:
    rig.worker.fails_at = chunk
    with pytest.raises(RuntimeError, match="the worker ran out of memory"):
        rig.push()
    assert [source.passes for source in rig.sources] == [[len(TENSORS)]] * 2
    assert rig.worker.told == ["init", "start", *["update"] * (chunk + 1)]


def test_a_source_unlike_its_metadata_is_its_own_fault(rig: Rig) -> None:
    said = Source().metadata()
    said[0] = ("w0", torch.float32, (16, 9))
    for source in rig.sources:
        source.metadata = lambda: said  # type: ignore[method-assign]
    with pytest.raises(SourceError, match="tensor 0 of the weight source"):
        rig.push()


def test_pickles_go_to_this_host_alone() -> None:
    away: Any = SimpleNamespace(servers=(SimpleNamespace(url="http://10.0.0.2:1", host="10.0.0.2"),))
    with pytest.raises(RolloutError, match=r"pickles .* http://10\.0\.0\.2:1 is reached over a network"):
        ipc.IpcSender(LINK, away, Ranks().at(0))


def test_the_transport_has_every_tensor_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    done = list[Any]()
    monkeypatch.setattr(ipc, "chunks", lambda *given: done.append(given) or iter(()))
    source = SimpleNamespace(ranks=SimpleNamespace(device=Ranks.device, gather=done.append))
    backend = BACKENDS["ipc"]
    backend.follow(source, 77)
    assert backend.everywhere and done == [(source, 77, source.ranks, ipc.share_on_gpu), None]
    assert not BACKENDS["gloo"].everywhere and not BACKENDS["nccl"].everywhere
    sender = backend.connect(LINK, Worker(Ranks()), source)  # type: ignore[arg-type]
    assert isinstance(sender, ipc.IpcSender)
