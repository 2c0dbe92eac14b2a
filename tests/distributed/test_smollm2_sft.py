"""SFT of SmolLM2-135M's real weights, through the command line: a few steps lower its validation loss."""

import json
from pathlib import Path

import pytest
from smollm2_model import run

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "data.max_tokens=192", "batch.chunk_tokens=192", "batch.chunks_per_micro_batch=1", "batch_size=8", "max_steps=3",
    "validation.share=0.1", "validation.every_steps=3", "optimizer.lr=1e-4", "optimizer.warmup_steps=1",
    "save.every_steps=3", "save.asynchronous=false", "wandb.mode=disabled",
)  # fmt: skip


@pytest.mark.slow
def test_sft_lowers_the_validation_loss_of_real_weights(smollm2: Path, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    terms = ("--set", "min_terms=2", "--set", "max_terms=4")
    run("tools/make_conversations.py", str(rows), "--num", "160", *terms, cwd=ROOT)
    template = ROOT / "configs/chat_templates/qwen.jinja"  # SmolLM2 writes turns as Qwen does
    own = (f"model.path={smollm2 / 'hf'}", f"data.files=['{rows}']", f"chat_template={template}")
    sets = [part for override in (*own, *SETTINGS) for part in ("--set", override)]
    run_dir = tmp_path / "run"
    config = str(ROOT / "configs/tiny/sft/1_qwen2.toml")
    run("-m", "r1mega.cli", "run", config, "--run-dir", str(run_dir), *sets, cwd=ROOT)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["steps"] == 3
    loss = summary["validation_loss"]
    assert loss["before"] < 5  # it is no random model: those begin at ln 49,152 = 10.8
    assert loss["after"] < loss["before"] - 0.3
