"""The gloo transport from end to end, its worker in a thread: what arrives, and what is said where it does not."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from stand_in_worker import StandInWorker

from r1mega.weights.gloo import GlooSender
from r1mega.weights.sender import Link
from r1mega.weights.stream import SourceError

TENSORS = {f"w{i}": torch.randn(64, 16, generator=torch.Generator().manual_seed(i)) for i in range(7)}
TENSORS["bias"] = torch.arange(5, dtype=torch.bfloat16)
NUM_BYTES = 7 * 64 * 16 * 4 + 5 * 2


class Tensors:
    """A source of TENSORS, spoilt as a test wants it."""

    def __init__(self) -> None:
        self.said = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()]

    def metadata(self) -> list[Any]:
        return self.said

    def __iter__(self) -> Iterator[Any]:
        return iter(TENSORS.items())


@pytest.fixture
def worker() -> StandInWorker:
    return StandInWorker()


@pytest.fixture
def sender(worker: StandInWorker) -> Iterator[GlooSender]:
    """Of buckets of two tensors."""
    sender = GlooSender(Link("127.0.0.1", "localhost", 1, 60.0, 2 * 4096), worker)  # type: ignore[arg-type]
    yield sender
    sender.close()


def test_every_tensor_arrives_bit_for_bit(sender: GlooSender, worker: StandInWorker) -> None:
    for _ in range(2):
        worker.received.clear()
        sender.send(Tensors())
        assert [name for name, _ in worker.received] == list(TENSORS)
        assert all(torch.equal(got, TENSORS[name]) for name, got in worker.received)
    assert (sender.sent.num_tensors, sender.sent.num_bytes) == (8, NUM_BYTES)
    assert worker.told == ["init", *["start", "update", "finish"] * 2]
    assert worker.info["bucket_bytes"] == 2 * 4096 and worker.info["master_address"] == "localhost"


def test_buckets_are_no_larger_than_gloo_is_fast_with(worker: StandInWorker) -> None:
    GlooSender(Link("127.0.0.1", "127.0.0.1", 1, 60.0, 2**30), worker).close()  # type: ignore[arg-type]
    assert worker.info["bucket_bytes"] == 8 * 2**20


def test_a_byte_that_arrives_as_another_fails_the_push(sender: GlooSender, worker: StandInWorker) -> None:
    worker.spoils = True
    with pytest.raises(RuntimeError, match=r"\(tensors, bytes, checksum\) .* sent \(8, .*worker 0 received"):
        sender.send(Tensors())
    assert worker.told[-1] != "finish"


@pytest.mark.parametrize("bucket", [0, 2])
def test_a_worker_that_breaks_off_is_heard(sender: GlooSender, worker: StandInWorker, bucket: int) -> None:
    worker.fails_at = bucket
    with pytest.raises(RuntimeError, match="the worker ran out of memory"):
        sender.send(Tensors())


def test_a_source_unlike_its_metadata_is_its_own_fault(sender: GlooSender, worker: StandInWorker) -> None:
    source = Tensors()
    source.said[3] = ("w3", torch.float32, (63, 16))
    with pytest.raises(SourceError, match=r"tensor 3 of the weight source .*63"):
        sender.send(source)
