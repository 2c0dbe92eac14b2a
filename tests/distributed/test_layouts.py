"""Any layout of the trainer's ranks trains the same model: loss, grad norm, loads of experts, gradients and weights.

Three GRPO updates (with MTP training and expert-bias updates) on the same samples, in fp32, against one process. One
gloo group of two processes serves all layouts of two ranks.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from r1mega.samples import ExpertLoad

TWO_RANKS = ("dp=2", "tp=2", "pp=2", "dp=2,ep=2", "tp=2,ep=2")
RELATIVE = 1e-5
"""Bound on max |difference| / max |gradient| of each tensor."""


def run(folder: Path, num_ranks: int, layouts: tuple[str, ...]) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command = [sys.executable, *(torchrun if num_ranks > 1 else []), str(Path(__file__).parent / "layouts.py")]
    done = subprocess.run([*command, str(folder), *layouts], capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("layouts")
    run(folder, 1, ("",))
    run(folder, 2, TWO_RANKS)
    return {file.stem: torch.load(file, weights_only=False) for file in folder.glob("*.pt")}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-30))


def same_experts(one: ExpertLoad, two: ExpertLoad) -> None:
    """Every layer's choices to the last one, all of the step's tokens, and what is averaged over them."""
    assert list(two.layers) == list(one.layers) == ["1", "2", "3", "mtp 0"]
    for name, ours in one.layers.items():
        theirs = two.layers[name]
        assert (theirs.load, theirs.tokens) == (ours.load, ours.tokens)
        assert sum(ours.load) == ours.tokens * one.top_k > 0
        assert (theirs.bias, theirs.bias_change) == (ours.bias, ours.bias_change)
        assert (theirs.entropy, theirs.aux_loss) == pytest.approx((ours.entropy, ours.aux_loss), rel=1e-6)


@pytest.mark.parametrize("layout", TWO_RANKS)
def test_two_ranks_equal_one(found: dict[str, dict], layout: str):
    one, two = found["one"], found[layout]
    assert two["loss"][0].keys() == one["loss"][0].keys() >= {"loss", "mtp_loss", "kl/mean", "clip_fraction"}
    for step in range(3):
        assert two["loss"][step] == pytest.approx(one["loss"][step], abs=2e-6)
        assert two["norm"][step] == pytest.approx(one["norm"][step], rel=1e-6)
        same_experts(one["experts"][step], two["experts"][step])
        assert two["logp"][step].keys() == one["logp"][step].keys()
        for answer, logp in one["logp"][step].items():
            assert two["logp"][step][answer] == pytest.approx(logp, abs=2e-5)
        gradients = one["gradients"][step]
        assert two["gradients"][step].keys() == gradients.keys()
        gaps = {name: relative(gradients[name], two["gradients"][step][name]) for name in gradients}
        assert max(gaps.values()) < RELATIVE, max(gaps.items(), key=lambda item: item[1])
        # A tensor whose gradient is zero would make its comparison empty; the router's bias has none.
        assert all(gradients[name].any() for name in gradients if "e_score_correction_bias" not in name)
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, atol=1e-5, rtol=0)
    torch.testing.assert_close(two["margins"][0], one["margins"][0], atol=1e-5, rtol=0)
