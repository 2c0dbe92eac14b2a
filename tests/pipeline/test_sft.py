"""SFT through the command line: two ranks, malformed rows, and a distilled student that vLLM loads and evaluates."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import warm

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs/tiny"
TASK = ("--set", "min_terms=2", "--set", "max_terms=7", "--set", "min_digits=1", "--set", "max_digits=1")


def sets(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations, and a tiny dense base that has seen a little text."""
    folder = tmp_path_factory.mktemp("sft")
    make = [sys.executable, "tools/make_conversations.py", str(folder / "rows.jsonl"), "--num", "1600", *TASK]
    subprocess.run(make, check=True, cwd=ROOT)
    done = warm.run(
        "run", str(TINY / "dense/0_base.toml"), "--run-dir", str(folder / "base"),
        *sets("num_steps=20", "data.num_documents=2000", "optimizer.warmup_steps=2", "wandb.mode=disabled"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def sft(folder: Path, run_dir: Path, *overrides: str, cluster: str = "laptop") -> list[str]:
    own = (
        f"model.path={folder / 'base/hf'}",
        f"data.files=['{folder / 'rows.jsonl'}']",
        "wandb.mode=disabled",
        "optimizer.warmup_steps=2",
        *overrides,
    )
    return ["run", str(TINY / "sft/1_qwen2.toml"), "--cluster", cluster, "--run-dir", str(run_dir), *sets(*own)]


def losses(run_dir: Path, key: str) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


@pytest.mark.slow
def test_two_data_parallel_ranks_train_as_one_does_and_one_goes_on_for_them(folder: Path, tmp_path: Path):
    settings = ("max_steps=4", "validation.every_steps=2", "save.every_steps=2")

    def as_one() -> None:
        for key in ("loss", "validation/loss", "grad_norm"):
            assert losses(tmp_path / "laptop2", key) == pytest.approx(losses(tmp_path / "laptop", key), rel=1e-4)
        assert len(losses(tmp_path / "laptop2", "validation/loss")) == 3

    for cluster in ("laptop", "laptop2"):
        done = warm.run(*sft(folder, tmp_path / cluster, *settings, cluster=cluster), cold=cluster == "laptop2")
        assert done.returncode == 0, done.stderr
    as_one()
    shutil.rmtree(tmp_path / "laptop2/checkpoints/step_4")
    (tmp_path / "laptop2/summary.json").unlink()
    done = warm.run(*sft(folder, tmp_path / "laptop2", *settings, cluster="laptop"), "--resume")
    assert done.returncode == 0, done.stderr
    assert "goes on at another layout" in done.stderr
    as_one()


@pytest.mark.slow
def test_malformed_input_is_one_message(folder: Path, tmp_path: Path):
    rows = (folder / "rows.jsonl").read_text().splitlines()
    rows[6] = '{"messages": [{"role": "user", "content": "a"}]}'
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(rows))
    cases = {
        f"{bad}, line 7: ends with the user's turn": f"data.files=['{bad}']",
        f"data.files: {tmp_path}/no.jsonl: not there yet": f"data.files=['{tmp_path}/no.jsonl']",
        "batch.chunk_tokens: 256 is less than data.max_tokens = 300": "data.max_tokens=300",
    }
    for i, (message, override) in enumerate(cases.items()):
        done = warm.run(*sft(folder, tmp_path / str(i), override))
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.vllm
def test_a_distilled_student_is_loaded_by_vllm_and_evaluated(folder: Path, tmp_path: Path):
    done = warm.run(*sft(folder, tmp_path / "sft", "num_epochs=2", "optimizer.lr=3e-3"))
    assert done.returncode == 0, done.stderr
    validation = losses(tmp_path / "sft", "validation/loss")
    assert validation[-1] < validation[0] - 0.5
    done = warm.run(
        "run", str(TINY / "sft/2_eval.toml"), "--run-dir", str(tmp_path / "eval"),
        *sets(f"model.path={tmp_path / 'sft/hf'}", "evaluation.questions.0.num=20"),
        *sets("evaluation.samples_per_question=2"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "eval/summary.json").read_text())["eval"]["after"]
    # It answers as its teacher did: worked steps in tags, hardly anything else.
    assert result["num_answers"] == 40
    assert result["format"] > 0.5
