"""Boxes of a flattened range: contiguous, in order, each element once."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r1mega.trainer.holdings import boxes, holdings

shapes = st.lists(st.integers(1, 5), min_size=0, max_size=4).map(tuple)


@given(shapes, st.data())
def test_boxes_are_the_range_in_order(shape: tuple[int, ...], data: st.DataObject):
    size = math.prod(shape)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    whole = torch.arange(size).view(shape)
    found = list(boxes(shape, start, stop))
    values = [
        whole[tuple(slice(o, o + n) for o, n in zip(offset, sizes, strict=True))].reshape(-1)
        for offset, sizes in found
    ]
    assert torch.equal(torch.cat(values) if values else torch.empty(0), torch.arange(start, stop))
    assert len(found) <= max(1, 2 * len(shape) - 1)


@pytest.mark.parametrize("mtp", ["off", "joint"])
def test_a_policy_holds_every_weight_and_two_moments_of_every_trained_one(make_policy, mtp: str):
    policy = make_policy(mtp=mtp)
    held = holdings(policy)
    saved = list(held.saved(policy))
    moments = sum(b.values.numel() for b in saved if b.key.startswith("optimizer."))
    assert moments == 2 * sum(p.numel() for p in policy.network.parameters() if p.requires_grad)
    assert sum(b.values.numel() for b in saved) == moments + sum(t.numel() for t in policy.state().values())
    live = {t.untyped_storage().data_ptr() for t in policy.state().values()}
    assert {b.values.untyped_storage().data_ptr() for b in saved if not b.key.startswith("optimizer.")} <= live
