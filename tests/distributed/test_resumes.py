"""Training that is saved at one layout and continued at another equals the training that was not interrupted.

What is on disk is equal in every bit when it is loaded at the other layout and saved again.
"""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from rank_pool import Pool

from r1mega.formats.reader import Box, CheckpointReader

EP2 = "dp=2,ep=2"
CHANGES = (("dp=2", "one"), ("tp=2", "pp=2"), (EP2, "one"), ("one", EP2), ("pp=2", "dp=2"), ("dp=2", "dp=2"))


@pytest.fixture(scope="module")
def folder(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resumes")
    run = partial(ranks.run, function="resumes.act", folder=folder)
    run(1, arguments=["save="])
    run(2, arguments=[
        "save=dp=2", "save=tp=2", f"save={EP2}", "save=pp=2", "load=tp=2/pp=2", f"load=one/{EP2}", "load=pp=2/dp=2",
        "load=dp=2/dp=2", "fail=dp=2",
    ])  # fmt: skip
    run(1, arguments=["load=dp=2/", f"load={EP2}/"])
    return folder


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    reader = CheckpointReader(checkpoint)
    whole = {
        key: Box(key, shape, (0,) * len(shape), torch.full(shape, math.nan)) for key, shape in reader.shapes().items()
    }
    reader.fill(whole.values())
    return {key: box.values for key, box in whole.items()}


def same_training(folder: Path, before: str, after: str) -> None:
    saved, again = tensors(folder / before), tensors(folder / f"{before}-{after}")
    assert saved.keys() == again.keys()
    assert all(torch.equal(saved[key], again[key]) for key in saved)
    assert all(t.any() for key, t in saved.items() if key.startswith("optimizer.") and "expert_bias" not in key)
    whole, resumed = (torch.load(folder / f"{name}.pt", weights_only=False) for name in (before, f"{before}-{after}"))
    for step in range(2):
        assert resumed["loss"][step] == pytest.approx(whole["loss"][step], abs=2e-6)
        assert resumed["norm"][step] == pytest.approx(whole["norm"][step], rel=1e-6)
    for name, weight in whole["weights"].items():
        torch.testing.assert_close(resumed["weights"][name], weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_another_layout_continues_the_training(folder: Path, before: str, after: str):
    same_training(folder, before, after)


def equal_training(folder: Path, layout: str) -> None:
    whole, resumed = (torch.load(folder / f"{x}.pt", weights_only=False) for x in (layout, f"{layout}-{layout}"))
    assert (whole["loss"], whole["norm"]) == (resumed["loss"], resumed["norm"])
    assert all(torch.equal(whole["weights"][name], t) for name, t in resumed["weights"].items())


def test_the_same_layout_continues_bit_for_bit(folder: Path):
    equal_training(folder, "dp=2")


def test_what_another_rank_could_not_write_is_one_message_and_no_checkpoint(folder: Path):
    message = (folder / "failed.txt").read_text()
    assert "step_1: could not be saved (rank 1: [Errno 28] No space left on device)" in message
    assert not list((folder / "failed").iterdir())


@pytest.mark.slow
def test_a_virtual_pipeline_and_an_undivided_optimizer_are_left_and_entered(ranks: Pool, tmp_path: Path):
    """The optimiser's state comes along, whether the data-parallel ranks divide it or each have all of it."""
    virtual, whole = "pp=2,vpp=2", "dp=2,distributed_optimizer=false"
    changes = ((virtual, "tp=2"), (virtual, whole), (whole, virtual), (whole, "dp=2"), ("dp=2", whole))
    saves = [f"save={virtual}", f"save={whole}", "save=dp=2", f"load={virtual}/{virtual}"]
    loads = [f"load={before}/{after}" for before, after in changes]
    ranks.run(2, "resumes.act", tmp_path, [*saves, *loads])
    for before, after in changes:
        same_training(tmp_path, before, after)
    same, again = (
        torch.load(tmp_path / f"{name}.pt", weights_only=False) for name in (virtual, f"{virtual}-{virtual}")
    )
    assert (same["loss"], same["norm"]) == (again["loss"], again["norm"])
    assert all(torch.equal(same["weights"][name], t) for name, t in again["weights"].items())


@pytest.mark.slow
def test_four_ranks_to_two(ranks: Pool, tmp_path: Path):
    saved = ("pp=2,dp=2,ep=2", "tp=2,dp=2,ep=2,etp=2", "pp=4,pipeline=Et|ttt|m|L")
    ranks.run(4, "resumes.act", tmp_path, [f"save={layout}" for layout in saved])
    ranks.run(2, "resumes.act", tmp_path, [f"load={layout}/tp=2" for layout in saved])
    for layout in saved:
        same_training(tmp_path, layout, "tp=2")
