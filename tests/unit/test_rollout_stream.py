"""Sender and receiver cut the weight stream alike, and a stream that differs from its metadata is refused."""

import pytest
import torch

from r1mega.weights.stream import Param, Tally, buckets, checked
from r1mega.weights.wire import Buffers

PARAMS = [
    Param("a", torch.float32, (3, 5)),
    Param("b", torch.bfloat16, (7,)),
    Param("scalar", torch.float32, ()),
    Param("empty", torch.float32, (0, 4)),
    Param("big", torch.float32, (100,)),
    Param("c", torch.int64, (2, 2)),
]


def tensors() -> list[tuple[str, torch.Tensor]]:
    return [(p.name, (torch.rand(p.shape) * 10).to(p.dtype)) for p in PARAMS]


@pytest.mark.parametrize("bound_bytes", [1, 96, 128, 10**6])
def test_every_tensor_travels_once_and_whole(bound_bytes: int) -> None:
    source = tensors()
    stream = iter(source)
    cut = buckets(PARAMS, bound_bytes)
    received = []
    for bucket in cut:
        assert bucket.num_bytes <= bound_bytes or len(bucket.params) == 1
        buffer = torch.empty(bucket.num_bytes, dtype=torch.uint8)
        for _, view in bucket.views(buffer):
            view.copy_(next(stream)[1])
        received += [(name, view.clone()) for name, view in bucket.views(buffer.clone())]
    assert [name for name, _ in received] == [p.name for p in PARAMS]
    assert all(torch.equal(a, b) and a.dtype == b.dtype for (_, a), (_, b) in zip(source, received, strict=True))
    if bound_bytes == 10**6:
        assert len(cut) == 1


def test_tally_counts_and_notices_one_changed_byte() -> None:
    (bucket,) = buckets(PARAMS, 10**6)
    buffer = torch.zeros(bucket.num_bytes, dtype=torch.uint8)
    one, other = Tally(), Tally()
    one.add(bucket, buffer)
    buffer[17] = 1
    other.add(bucket, buffer)
    assert one.as_tensor()[:2].tolist() == [len(PARAMS), bucket.num_bytes]
    assert one.as_tensor()[2] != other.as_tensor()[2]


def test_tally_notices_what_is_lost_repeated_or_in_another_place() -> None:
    """Two buckets of 5 rows of 1024 words and some; a row is 8 KiB."""
    params = [Param("a", torch.int64, (5 * 1024 + 3,)), Param("b", torch.int64, (5 * 1024 + 3,))]
    cut = buckets(params, 1)
    sent = torch.randint(-(2**62), 2**62, (2, 5 * 1024 + 3), generator=torch.Generator().manual_seed(1))

    def of(*words: torch.Tensor) -> int:
        tally = Tally()
        for bucket, row in zip(cut, words, strict=True):
            tally.add(bucket, row.clone().view(torch.uint8))
        return tally.checksum

    first, second = sent
    right = of(first, second)
    assert right == of(first, second)
    swapped = first.clone()
    swapped[:1024], swapped[1024:2048] = first[1024:2048], first[:1024]
    later = first.clone()
    later[1:] = first[:-1]
    end = first.clone()
    end[-1], end[-2] = first[-2], first[-1]  # behind the last whole row
    for wrong in ((second, first), (first, first), (swapped, second), (later, second), (end, second)):
        assert of(*wrong) != right


def test_memory_is_received_in_again_once_no_view_of_it_is_left() -> None:
    buffers = Buffers()
    first = buffers.take(100)
    place, kept = first.data_ptr(), first[12:16].view(torch.float32)
    del first
    second = buffers.take(100)
    assert second.data_ptr() != place  # a view of the first is left
    del kept
    third = buffers.take(60)
    assert (third.data_ptr(), third.numel()) == (place, 60)
    assert buffers.take(200).numel() == 200
    del second, third
    again = {buffers.take(100).data_ptr() for _ in range(3)}
    assert len(again) == 1  # what is let go at once is given again at once


def test_gaps_are_what_no_tensor_fills() -> None:
    """b is 14 bytes from 64 on, and the next begins at 80; scalar is 4, and empty, and then big at 96 and 112."""
    (bucket,) = buckets(PARAMS, 10**6)
    assert bucket.offsets == (0, 64, 80, 96, 96, 496)
    assert [(gap.start, gap.stop) for gap in bucket.gaps] == [(60, 64), (78, 80), (84, 96)]


def test_checked_refuses_disagreement() -> None:
    source = tensors()
    assert [name for name, _ in checked(iter(source), PARAMS)] == [p.name for p in PARAMS]
    with pytest.raises(RuntimeError, match="ended after 5 of 6 tensors; next is c"):
        list(checked(iter(source[:-1]), PARAMS))
    with pytest.raises(RuntimeError, match="more than its 5 tensors: next is c"):
        list(checked(iter(source), PARAMS[:-1]))
    with pytest.raises(RuntimeError, match="tensor 0 of the weight source"):
        list(checked(iter(source[1:]), PARAMS))
    with pytest.raises(RuntimeError, match="float64"):
        list(checked(iter([("a", source[0][1].double())]), PARAMS[:1]))
