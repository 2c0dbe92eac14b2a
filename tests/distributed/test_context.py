"""Context parallelism trains as one copy without it does, with a stand-in for Transformer Engine's kernel alone.

Packing, zig-zag slicing, positions, MTP, targets, gathered log-probabilities and summed gradients are what runs on a
GPU: three GRPO updates at CP2 against DP2, which `test_layouts` holds against one process.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_layouts import RELATIVE, relative


@pytest.mark.slow
def test_two_context_parallel_ranks_train_as_two_copies_do(tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *torchrun, str(Path(__file__).parent / "context_layouts.py")]
    done = subprocess.run([*command, str(tmp_path), "dp=2", "cp=2"], capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stdout + done.stderr
    want, got = (torch.load(tmp_path / f"{name}.pt", weights_only=False) for name in ("dp=2", "cp=2"))
    for step in range(3):
        assert got["loss"][step] == pytest.approx(want["loss"][step], abs=2e-6)
        assert got["norm"][step] == pytest.approx(want["norm"][step], rel=1e-6)
        assert got["logp"][step].keys() == want["logp"][step].keys()
        for answer, logp in want["logp"][step].items():
            assert got["logp"][step][answer] == pytest.approx(logp, abs=2e-5)
        gradients = want["gradients"][step]
        assert got["gradients"][step].keys() == gradients.keys()
        gaps = {name: relative(gradients[name], got["gradients"][step][name]) for name in gradients}
        assert max(gaps.values()) < RELATIVE, max(gaps.items(), key=lambda item: item[1])
    for name, weight in want["weights"].items():
        torch.testing.assert_close(got["weights"][name], weight, atol=1e-5, rtol=0)
    torch.testing.assert_close(got["margins"][0], want["margins"][0], atol=1e-5, rtol=0)
