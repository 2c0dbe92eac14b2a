"""Real weights, where their package is installed: pushed to vLLM, SmolLM2-135M answers as it does in transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(sys.prefix) / "smollm2"
HERE = Path(__file__).parent


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", *command], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(not (PACKAGE / ".installed").is_file(), reason="SmolLM2 is not there; `make smollm2` installs it")
def test_the_pushed_model_gives_the_greedy_text_of_transformers(tmp_path: Path):
    folder = str(tmp_path)
    run(str(HERE.parent / "distributed" / "smollm2.py"), "reference", folder, str(PACKAGE))
    run("-m", "r1mega.cli", "convert", "to-megatron", f"{folder}/hf", f"{folder}/megatron")
    for part in ("transformers", "engine"):
        run(str(HERE / "smollm2_push.py"), part, folder)
    wanted = json.loads((tmp_path / "greedy.json").read_text())
    pushed = json.loads((tmp_path / "pushed.json").read_text())
    assert "Paris" in wanted[0]["text"]
    assert [row["answer"] for row in wanted] == pushed["1"]
    # The server began with other weights.
    assert all(a != b for a, b in zip(pushed["0"], pushed["1"], strict=True))
