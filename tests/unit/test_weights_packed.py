"""The packed transport against vLLM's own consumer, with gloo in NCCL's place: what arrives, how ordered and cut."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_in_vllm import GlooMeeting, StandInVllm, packed_tensor

from r1mega.errors import RolloutError
from r1mega.families.registry import read_model
from r1mega.families.spec import Kind
from r1mega.weights.packed import PackedSender
from r1mega.weights.sender import Link
from r1mega.weights.stream import Param, SourceError, evened, packed

CONFIGS = Path(__file__).parents[2] / "configs/tiny"


def model_params(name: str) -> list[Param]:
    """What a bf16 policy of a tiny model streams: every tensor of its table, routers' biases in fp32."""
    dtypes = {Kind.BUFFER: torch.float32}
    return [
        Param(hf, dtypes.get(row.kind, torch.bfloat16), shape)
        for row in read_model(CONFIGS / f"{name}.json").tensors()
        for hf, shape in zip(row.hf, row.hf_shapes, strict=True)
    ]


class Drawn:
    """A source of random tensors, of which each is gone when the next is made."""

    def __init__(self, params: list[Param], breaks_at: int | None = None) -> None:
        self.params, self.breaks_at = params, breaks_at

    def metadata(self) -> list[Param]:
        return self.params

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        draw = torch.Generator().manual_seed(3)
        for param in self.params:
            yield param.name, torch.randn(param.shape, generator=draw).to(param.dtype)

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for i, (name, tensor) in enumerate(self.tensors()):
            if i == self.breaks_at:
                raise RuntimeError("gather failed")
            yield name, tensor
            tensor.zero_()


@pytest.fixture
def worker() -> StandInVllm:
    return StandInVllm()


def sender_to(worker: StandInVllm, bucket_bytes: int) -> PackedSender:
    return PackedSender(Link("127.0.0.1", "127.0.0.1", 1, 60.0, bucket_bytes), worker, GlooMeeting())  # type: ignore[arg-type]


@pytest.mark.parametrize("bucket_bytes", [1, 2**16, 2**30])
@pytest.mark.parametrize("model", ["deepseek_v3", "qwen2", "llama"])
def test_a_models_tensors_arrive_as_they_were_sent(worker: StandInVllm, model: str, bucket_bytes: int) -> None:
    source = Drawn(model_params(model))
    sender = sender_to(worker, bucket_bytes)
    sender.send(source)
    sender.close()
    assert [(n, t.dtype, tuple(t.shape)) for n, t in worker.received] == source.params
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(worker.received, source.tensors(), strict=True))
    assert worker.told == ["shutdown", "init", "start", "update", "finish"]
    assert (len(worker.buffers) == len(source.params)) if bucket_bytes == 1 else len(worker.buffers) >= 1
    assert sender.sent.num_tensors == len(source.params)
    assert sender.sent.num_bytes == sum(t.nbytes for _, t in worker.received)


@pytest.mark.filterwarnings("ignore:Tensor .* exceeds buffer_size_bytes")
@pytest.mark.parametrize("bucket_bytes", [1, 100, 4096, 2**16, 2**30])
def test_buffers_are_cut_where_vllms_own_producer_cuts(bucket_bytes: int) -> None:
    source = Drawn(model_params("qwen2"))
    stream, theirs = iter(source.tensors()), []
    while chunk := packed_tensor().pack_tensors(stream, lambda pair: pair[1], bucket_bytes):
        theirs.append((chunk.names, chunk.packed_tensor.numel()))
    assert [([p.name for p in b.params], b.num_bytes) for b in packed(source.params, bucket_bytes)] == theirs


ODD = [
    Param("a", torch.bfloat16, (3,)), Param("scale", torch.float32, (2,)), Param("codes", torch.int8, (5,)),
    Param("b", torch.bfloat16, (2, 2)), Param("bias", torch.float32, (1,)), Param("c", torch.bfloat16, (1,)),
]  # fmt: skip


def test_odd_tensors_come_last_and_the_wider_first(worker: StandInVllm) -> None:
    """vLLM views each tensor where it lies: a bf16 one of three elements would put an fp32 one at byte 6."""
    assert [p.name for p in evened(ODD)] == ["scale", "b", "bias", "a", "c", "codes"]
    source = Drawn(ODD)
    sender = sender_to(worker, 2**20)
    sender.send(source)
    sender.close()
    sent = dict(source.tensors())
    assert [name for name, _ in worker.received] == ["scale", "b", "bias", "a", "c", "codes"]
    assert all(torch.equal(tensor, sent[name]) for name, tensor in worker.received)
    assert evened(model_params("deepseek_v3")) == model_params("deepseek_v3")  # published models have none


def test_memory_is_bounded_by_two_buffers_and_a_tensor(worker: StandInVllm) -> None:
    """In the sender's thread; buffers are of a tensor more than the bound at most."""
    params = [Param(f"w{i}", torch.float32, (1024, 32 + i % 7)) for i in range(40)]
    largest, bound = 4 * 1024 * 38, 2**19
    sender = sender_to(worker, bound)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        sender.send(Drawn(params))
    sender.close()
    found: Any = profile.profiler
    events = [e for e in found.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert 2 * bound < peak <= 2 * (bound + largest) + largest + 1024
    assert sum(t.nbytes for _, t in worker.received) > 3 * peak


def test_a_sender_that_breaks_off_lets_the_worker_go(worker: StandInVllm) -> None:
    sender = sender_to(worker, 2**16)
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="gather failed"):
        sender.send(Drawn(model_params("qwen2"), breaks_at=20))
    assert time.monotonic() - begin < 9  # and not after the ten seconds in which a hanging worker may still answer
    assert worker.told[-1] == "update" and 0 < len(worker.received) < 20
    with pytest.raises(RuntimeError, match="a group that has ended"):
        sender.send(Drawn(ODD))


@pytest.mark.parametrize("buffer", [0, 2])
def test_a_worker_that_breaks_off_is_heard(worker: StandInVllm, buffer: int) -> None:
    worker.fails_at = buffer
    sender = sender_to(worker, 2**16)
    with pytest.raises(RuntimeError, match="the worker ran out of memory"):
        sender.send(Drawn(model_params("qwen2")))
    assert "finish" not in worker.told


def test_a_group_is_ended_from_outside_while_the_sender_waits_for_its_device(worker: StandInVllm) -> None:
    """A sender inside a call that waits for the device looks at nothing; the group's end is what lets it go."""
    sender = sender_to(worker, 2**16)
    ended = threading.Event()
    group: Any = sender._group
    abort = group.abort
    group.abort = lambda: (ended.set(), abort())
    group.begin = lambda buffer: ended.wait(60) or pytest.fail("nobody ended the group")
    group.wait = lambda begun, given_up: (_ for _ in ()).throw(RuntimeError("aborted"))
    worker.update_weights = lambda info: (_ for _ in ()).throw(RuntimeError("the worker died"))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the worker died"):
        sender.send(Drawn(model_params("qwen2")))
    assert ended.is_set()


def test_workers_that_cannot_be_in_the_group_are_told_nothing(worker: StandInVllm) -> None:
    meeting: Any = GlooMeeting()
    meeting.check = lambda client: (_ for _ in ()).throw(RolloutError("another NCCL"))
    with pytest.raises(RolloutError, match="another NCCL"):
        PackedSender(Link("127.0.0.1", "127.0.0.1", 1, 60.0, 1), worker, meeting)  # type: ignore[arg-type]
    assert worker.told == []


def test_a_source_unlike_its_metadata_is_its_own_fault(worker: StandInVllm) -> None:
    source = Drawn(ODD)
    source.metadata = lambda: [*ODD[:1], Param("scale", torch.float32, (3,)), *ODD[2:]]  # type: ignore[method-assign]
    with pytest.raises(SourceError, match="tensor 1 of the weight source"):
        sender_to(worker, 2**16).send(source)
