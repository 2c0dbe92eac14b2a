"""SFT of SmolLM2-135M's real weights, through the command line: a few steps lower its validation loss."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = Path(sys.prefix) / "smollm2"
SETTINGS = (
    "data.max_tokens=192", "batch.chunk_tokens=192", "batch.chunks_per_micro_batch=1", "batch_size=8", "max_steps=6",
    "validation.share=0.1", "validation.every_steps=6", "optimizer.lr=1e-4", "optimizer.warmup_steps=1",
    "save.every_steps=6", "save.asynchronous=false", "wandb.mode=disabled",
)  # fmt: skip


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=1700, cwd=ROOT)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


@pytest.mark.slow
@pytest.mark.skipif(not (PACKAGE / ".installed").is_file(), reason="SmolLM2 is not there; `make smollm2` installs it")
def test_sft_lowers_the_validation_loss_of_real_weights(tmp_path: Path):
    run(str(Path(__file__).parent / "smollm2.py"), "reference", str(tmp_path), str(PACKAGE))
    rows = tmp_path / "rows.jsonl"
    run("tools/make_conversations.py", str(rows), "--num", "160", "--set", "min_terms=2", "--set", "max_terms=4")
    template = ROOT / "configs/chat_templates/qwen.jinja"  # SmolLM2 writes turns as Qwen does
    own = (f"model.path={tmp_path / 'hf'}", f"data.files=['{rows}']", f"chat_template={template}")
    sets = [part for override in (*own, *SETTINGS) for part in ("--set", override)]
    run_dir = tmp_path / "run"
    run("-m", "r1mega.cli", "run", str(ROOT / "configs/tiny/sft/1_qwen2.toml"), "--run-dir", str(run_dir), *sets)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["steps"] == 6
    loss = summary["validation_loss"]
    assert loss["before"] < 5  # it is no random model: those begin at ln 49,152 = 10.8
    assert loss["after"] < loss["before"] - 0.3
