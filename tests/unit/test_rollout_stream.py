"""Sender and receiver cut the weight stream alike, and a stream that differs from its metadata is refused."""

import pytest
import torch

from r1mega.weights.stream import Param, Tally, buckets, checked

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
