"""Context parallelism trains as one copy without it does, with a stand-in for Transformer Engine's kernel alone.

Packing, zig-zag slicing, positions, MTP, targets, gathered log-probabilities and summed gradients are what runs on a
GPU: three GRPO updates at CP2 against DP2, which `test_layouts` holds against one process.
"""

from pathlib import Path

import pytest
import torch
from layouts import trained
from rank_pool import Pool
from test_layouts import same_gradients, same_weights


@pytest.mark.slow
def test_two_context_parallel_ranks_train_as_two_copies_do(
    ranks: Pool, one_rank: dict[str, dict], two_ranks: dict[str, dict], tmp_path: Path
):
    ranks.run(2, "context_layouts.of", tmp_path, ["cp=2"])
    want, got = two_ranks["dp=2"], trained(tmp_path, "cp=2")
    for step in range(3):
        assert got["loss"][step] == pytest.approx(want["loss"][step], abs=2e-6)
        assert got["norm"][step] == pytest.approx(want["norm"][step], rel=1e-6)
        assert got["logp"][step].keys() == want["logp"][step].keys()
        for answer, logp in want["logp"][step].items():
            assert got["logp"][step][answer] == pytest.approx(logp, abs=2e-5)
        same_gradients(want, got, one_rank["rounded"], step)
    same_weights(want, got, one_rank["rounded"])
    torch.testing.assert_close(got["margins"][0], want["margins"][0], atol=1e-5, rtol=0)
