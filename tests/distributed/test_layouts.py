"""Any layout of the trainer's ranks trains the same model: loss, grad norm, loads of experts, gradients and weights.

Three GRPO updates (with MTP training and expert-bias updates) on the same samples, in fp32, against one process.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import rotation
import torch
from layouts import FULL, PARTS, TWO_RANKS, train, trained
from rank_pool import Pool

from r1mega.samples import ExpertLoad

MORE_OF_TWO = (
    "pp=2,vpp=2,pipeline=Et|tt|t|mL",
    f"pp=2,vpp=2,{FULL}",
    f"tp=2,{FULL},recompute.num_layers=2",
    f"tp=2,{PARTS}",
    f"dp=2,ep=2,{PARTS}",
)
FOUR_RANKS = rotation.rows(
    "layouts of four ranks",
    always=("tp=2,dp=2,ep=2,etp=2", "pp=4,pipeline=Et|ttt|m|L"),
    rotating=(
        "tp=2,pp=2",
        "tp=2,dp=2,ep=2",
        "tp=2,dp=2,ep=2,etp=2,dispatcher=allgather",
        "pp=2,dp=2,ep=2",
        "pp=2,dp=2,ep=2,distributed_optimizer=false",
        "pp=2,vpp=2,dp=2,ep=2",
        "dp=4,ep=2",
    ),
    take=3,
)
ROUNDINGS = 20
"""How far the gradients of two layouts may be from each other, in what rounding alone makes of one rank's on the same
machine: several ranks round in more places, and where a gradient is small an update makes much of that."""


@pytest.fixture(scope="module")
def more_of_two(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    return train(ranks, 2, tmp_path_factory.mktemp("more"), MORE_OF_TWO)


@pytest.fixture(scope="module")
def four_ranks(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    return train(ranks, 4, tmp_path_factory.mktemp("four"), FOUR_RANKS)


def gaps(one: dict, other: dict, step: int) -> dict[str, float]:
    """max |difference| / max |gradient| of each tensor."""
    gradients, others = one["gradients"][step], other["gradients"][step]
    assert others.keys() == gradients.keys()
    return {
        name: float((t - others[name]).abs().max() / t.abs().max().clamp(min=1e-30)) for name, t in gradients.items()
    }


def same_gradients(one: dict, many: dict, rounded: dict, step: int) -> None:
    bound = ROUNDINGS * max(gaps(one, rounded, step).values())
    assert 1e-7 < bound < 3e-4  # weights move by 1e-3 of their size in a step
    found = gaps(one, many, step)
    assert max(found.values()) < bound, max(found.items(), key=lambda item: item[1])


def same_weights(one: dict, many: dict, rounded: dict) -> None:
    """After three updates; where a gradient is of rounding's size, they may go either way."""
    assert many["weights"].keys() == one["weights"].keys()
    apart, by_rounding = (
        max(float((weight - other["weights"][name]).abs().max()) for name, weight in one["weights"].items())
        for other in (many, rounded)
    )
    assert apart < max(1e-5, ROUNDINGS * by_rounding) < 2e-4  # a step is of 1e-4


def same_experts(one: ExpertLoad, two: ExpertLoad) -> None:
    """Every layer's choices to the last one, all of the step's tokens, and what is averaged over them."""
    assert list(two.layers) == list(one.layers) == ["1", "2", "3", "mtp 0"]
    for name, ours in one.layers.items():
        theirs = two.layers[name]
        assert theirs.tokens == ours.tokens > 0
        assert sum(theirs.load) == sum(ours.load) == ours.tokens * one.top_k
        assert theirs.load == ours.load
        assert (theirs.bias, theirs.bias_change) == (ours.bias, ours.bias_change)
        assert (theirs.entropy, theirs.aux_loss) == pytest.approx((ours.entropy, ours.aux_loss), rel=1e-6)


def assert_same_training(ranks_one: dict[str, dict], many: dict) -> None:
    one, rounded = ranks_one["one"], ranks_one["rounded"]
    assert (
        many["loss"][0].keys() == one["loss"][0].keys() >= {"loss", "mtp_loss", "kl/mean", "clip_fraction", "entropy"}
    )
    for step in range(3):
        assert many["loss"][step] == pytest.approx(one["loss"][step], abs=2e-6)
        assert many["norm"][step] == pytest.approx(one["norm"][step], rel=1e-6 if step == 0 else 5e-6)
        same_experts(one["experts"][step], many["experts"][step])
        assert many["logp"][step].keys() == one["logp"][step].keys()
        for answer, logp in one["logp"][step].items():
            assert many["logp"][step][answer] == pytest.approx(logp, abs=2e-5 if step == 0 else 5e-5)
        same_gradients(one, many, rounded, step)
        # A tensor whose gradient is zero would make its comparison empty; the router's bias has none.
        assert all(t.any() for n, t in one["gradients"][step].items() if "e_score_correction_bias" not in n)
    same_weights(one, many, rounded)
    torch.testing.assert_close(many["margins"][0], one["margins"][0], atol=1e-5, rtol=0)


def assert_equal_training(one: dict, again: dict) -> None:
    """In every bit."""
    assert (one["loss"], one["norm"], one["logp"]) == (again["loss"], again["norm"], again["logp"])
    assert one["experts"] == again["experts"]
    for a, b in zip([*one["gradients"], one["weights"]], [*again["gradients"], again["weights"]], strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("layout", TWO_RANKS)
def test_two_ranks_equal_one(one_rank: dict[str, dict], two_ranks: dict[str, dict], layout: str):
    assert_same_training(one_rank, two_ranks[layout])


@pytest.mark.parametrize("layout", TWO_RANKS)
def test_weights_are_put_together_one_at_a_time(two_ranks: dict[str, dict], layout: str):
    """On the first rank, or on all, each with the same; no rank ever has more than a tensor and a part of one."""
    found = two_ranks[layout]
    assert max(found["stream"]["peaks"]) <= 1.5 * found["stream"]["largest"]
    alike, sums = found["everywhere"]
    assert all(alike)
    assert sums == {name: tensor.sum(dtype=torch.float64).item() for name, tensor in found["weights"].items()}


@pytest.mark.parametrize("recompute", [FULL, PARTS])
def test_what_is_computed_again_is_equal_in_every_bit(one_rank: dict[str, dict], recompute: str):
    """Attention, norms, dense layers, experts and MTP layers: the tiny model has all."""
    assert_equal_training(one_rank["one"], one_rank[recompute])


@pytest.mark.slow
@pytest.mark.parametrize("layout", MORE_OF_TWO)
def test_more_of_two_ranks_equal_one(one_rank: dict[str, dict], more_of_two: dict[str, dict], layout: str):
    assert_same_training(one_rank, more_of_two[layout])


@pytest.mark.slow
@pytest.mark.parametrize("layout", [layout for layout in MORE_OF_TWO if "recompute" in layout])
def test_what_ranks_compute_again_is_equal_in_every_bit(
    two_ranks: dict[str, dict], more_of_two: dict[str, dict], layout: str
):
    assert_equal_training(two_ranks[layout[: layout.index(",recompute")]], more_of_two[layout])


@pytest.mark.slow
@pytest.mark.parametrize("layout", FOUR_RANKS)
def test_four_ranks_equal_one(one_rank: dict[str, dict], four_ranks: dict[str, dict], layout: str):
    assert_same_training(one_rank, four_ranks[layout])


def test_a_pool_that_was_used_gives_the_bits_of_fresh_processes(two_ranks: dict[str, dict], tmp_path: Path):
    """The last of the layouts that the same two processes ran, against two of torchrun's own."""
    layout = TWO_RANKS[-1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(Path(__file__).parent / "layouts.py"), str(tmp_path), layout]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stdout + done.stderr
    fresh, used = trained(tmp_path, layout), two_ranks[layout]
    assert_equal_training(fresh, used)
    for step in range(3):
        assert fresh["gradients"][step].keys() == used["gradients"][step].keys()
        assert all(torch.equal(t, used["gradients"][step][name]) for name, t in fresh["gradients"][step].items())
    assert all(torch.equal(t, used["weights"][name]) for name, t in fresh["weights"].items())
    assert torch.equal(fresh["margins"][0], used["margins"][0])
