"""Any layout of the trainer's ranks trains the same model: loss, grad norm, loads of experts, gradients and weights.

Three GRPO updates (with MTP training and expert-bias updates) on the same samples, in fp32, against one process. One
gloo group of two processes serves all layouts of two ranks, one of four those of four.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from r1mega.samples import ExpertLoad

FULL = "recompute.granularity=full"
PARTS = "recompute.granularity=selective,recompute.modules=core_attn+layernorm+mlp+moe+shared_experts"
TWO_RANKS = (
    "dp=2",
    "dp=2,distributed_optimizer=false",
    "tp=2",
    "pp=2",
    "pp=2,vpp=2",
    "dp=2,ep=2",
    "dp=2,ep=2,dispatcher=allgather",
    "tp=2,ep=2",
)
MORE_OF_TWO = (
    "pp=2,vpp=2,pipeline=Et|tt|t|mL",
    f"pp=2,vpp=2,{FULL}",
    f"tp=2,{FULL},recompute.num_layers=2",
    f"tp=2,{PARTS}",
    f"dp=2,ep=2,{PARTS}",
)
FOUR_RANKS = (
    "tp=2,pp=2",
    "tp=2,dp=2,ep=2",
    "tp=2,dp=2,ep=2,etp=2",
    "tp=2,dp=2,ep=2,etp=2,dispatcher=allgather",
    "pp=2,dp=2,ep=2",
    "pp=2,dp=2,ep=2,distributed_optimizer=false",
    "pp=2,vpp=2,dp=2,ep=2",
    "pp=4,pipeline=Et|ttt|m|L",
    "dp=4,ep=2",
)
RELATIVE = 1e-5
"""Bound on max |difference| / max |gradient| of each tensor."""


def run(folder: Path, num_ranks: int, layouts: tuple[str, ...]) -> dict[str, dict]:
    """What each layout found, by its name; "one" is that of a single rank."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command = [sys.executable, *(torchrun if num_ranks > 1 else []), str(Path(__file__).parent / "layouts.py")]
    done = subprocess.run([*command, str(folder), *layouts], capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [layout or "one" for layout in layouts]
    return {name: torch.load(folder / f"{name}.pt", weights_only=False) for name in names}


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    return run(tmp_path_factory.mktemp("one"), 1, ("", FULL, PARTS))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    return run(tmp_path_factory.mktemp("two"), 2, TWO_RANKS)


@pytest.fixture(scope="module")
def more_of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    return run(tmp_path_factory.mktemp("more"), 2, MORE_OF_TWO)


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    return run(tmp_path_factory.mktemp("four"), 4, FOUR_RANKS)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-30))


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


def assert_same_training(one: dict, many: dict) -> None:
    assert many["loss"][0].keys() == one["loss"][0].keys() >= {"loss", "mtp_loss", "kl/mean", "clip_fraction"}
    for step in range(3):
        assert many["loss"][step] == pytest.approx(one["loss"][step], abs=2e-6)
        assert many["norm"][step] == pytest.approx(one["norm"][step], rel=1e-6)
        same_experts(one["experts"][step], many["experts"][step])
        assert many["logp"][step].keys() == one["logp"][step].keys()
        for answer, logp in one["logp"][step].items():
            assert many["logp"][step][answer] == pytest.approx(logp, abs=2e-5)
        gradients = one["gradients"][step]
        assert many["gradients"][step].keys() == gradients.keys()
        gaps = {name: relative(gradients[name], many["gradients"][step][name]) for name in gradients}
        assert max(gaps.values()) < RELATIVE, max(gaps.items(), key=lambda item: item[1])
        # A tensor whose gradient is zero would make its comparison empty; the router's bias has none.
        assert all(gradients[name].any() for name in gradients if "e_score_correction_bias" not in name)
    for name, weight in one["weights"].items():
        torch.testing.assert_close(many["weights"][name], weight, atol=1e-5, rtol=0)
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
    assert_same_training(one_rank["one"], two_ranks[layout])


@pytest.mark.parametrize("recompute", [FULL, PARTS])
def test_what_is_computed_again_is_equal_in_every_bit(one_rank: dict[str, dict], recompute: str):
    """Attention, norms, dense layers, experts and MTP layers: the tiny model has all."""
    assert_equal_training(one_rank["one"], one_rank[recompute])


@pytest.mark.slow
@pytest.mark.parametrize("layout", MORE_OF_TWO)
def test_more_of_two_ranks_equal_one(one_rank: dict[str, dict], more_of_two: dict[str, dict], layout: str):
    assert_same_training(one_rank["one"], more_of_two[layout])


@pytest.mark.slow
@pytest.mark.parametrize("layout", [layout for layout in MORE_OF_TWO if "recompute" in layout])
def test_what_ranks_compute_again_is_equal_in_every_bit(
    two_ranks: dict[str, dict], more_of_two: dict[str, dict], layout: str
):
    assert_equal_training(two_ranks[layout[: layout.index(",recompute")]], more_of_two[layout])


@pytest.mark.slow
@pytest.mark.parametrize("layout", FOUR_RANKS)
def test_four_ranks_equal_one(one_rank: dict[str, dict], four_ranks: dict[str, dict], layout: str):
    assert_same_training(one_rank["one"], four_ranks[layout])
