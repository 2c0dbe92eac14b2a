"""Boxes of a flattened range: contiguous, in order, each element once."""

import dataclasses
import math
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainer_data import nll

from r1mega.config.cluster import TrainerLayout
from r1mega.errors import CheckpointError

if TYPE_CHECKING:
    from r1mega.formats.reader import Box, CheckpointReader
    from r1mega.trainer.checkpoint.checkpointer import Checkpointer
    from r1mega.trainer.checkpoint.slices import boxes, find_slices


@pytest.fixture(autouse=True, scope="module")
def megatron(mesh):
    """Megatron as these tests see it: imported after the mesh, and not while other tests are collected."""
    global Box, Checkpointer, CheckpointReader, boxes, find_slices
    from r1mega.formats.reader import Box, CheckpointReader
    from r1mega.trainer.checkpoint.checkpointer import Checkpointer
    from r1mega.trainer.checkpoint.slices import boxes, find_slices


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
    held = find_slices(policy)
    saved = held.live
    moments = sum(b.values.numel() for b in saved if b.key.startswith("optimizer."))
    assert moments == 2 * sum(p.numel() for p in policy.network.parameters() if p.requires_grad)
    assert sum(b.values.numel() for b in saved) == moments + sum(t.numel() for t in policy.state().values())
    live = {t.untyped_storage().data_ptr() for t in policy.state().values()}
    assert {b.values.untyped_storage().data_ptr() for b in saved if not b.key.startswith("optimizer.")} <= live


def test_an_optimizer_that_no_ranks_divide_updates_and_saves_the_same(mesh, make_policy, documents):
    # With an eps near 0, Adam's first step makes the learning rate of what is left of a gradient by rounding.
    settings = {"mtp": "joint", "optimizer": {"eps": 1e-3}}
    undivided = make_policy(
        **settings, mesh=dataclasses.replace(mesh, layout=TrainerLayout(distributed_optimizer=False))
    )
    found = []
    for policy in (make_policy(**settings), undivided):
        policy.forward_backward(documents, nll)
        policy.optim_step(1e-3)
        found.append({(box.key, box.offset): box.values for box in find_slices(policy).live})
    divided, whole = found
    assert divided.keys() == whole.keys()
    for place, values in divided.items():
        torch.testing.assert_close(whole[place], values, atol=1e-6, rtol=1e-5)


def test_rows_of_padding_may_differ_between_layouts_and_nothing_else(make_policy, tmp_path):
    policy = make_policy()
    Checkpointer(policy).save(tmp_path / "step_1", {})
    reader = CheckpointReader(tmp_path / "step_1")
    key = "embedding.word_embeddings.weight"
    (embedding,) = (h for h in find_slices(policy).parts if h.key == key)
    assert embedding.padded and not any(h.padded for h in find_slices(policy).parts if "layers" in h.key)
    rows, columns = embedding.shape
    stored = policy.network.state_dict()[key]
    for more in (64, -64):
        values = torch.full((rows + more, columns), -1.0)
        box = Box(key, (rows + more, columns), (0, 0), values, padded=True)
        reader.fill([box])
        both = min(rows, rows + more)
        assert torch.equal(values[:both], stored[:both]) and (values[both:] == -1).all()
        with pytest.raises(CheckpointError, match=rf"{key}: has shape \[{rows}, {columns}\]"):
            reader.fill([dataclasses.replace(box, padded=False)])
    with pytest.raises(CheckpointError, match=r"no_such\.weight: missing, the model's is"):
        reader.fill([dataclasses.replace(box, key="no_such.weight")])
