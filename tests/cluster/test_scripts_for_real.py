"""Every script of slurm/ with the real trainer and the real vLLM server: killed once on the way, it finishes."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from emulated_slurm import Slurm, ended, wait_until

from r1mega.runtime.events import read

SOAK = bool(os.environ.get("R1MEGA_SOAK"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not SOAK, reason="each stage starts twice, with its server: make test-soak"),
]

BASE = ("configs/tiny/r1_zero/0_base.toml", "--cluster", "laptop2", "--run-dir", "runs/base")
SUMS = "{ min_terms = 2, max_terms = 3, min_digits = 1, max_digits = 1 }"


def stage(config: str, *settings: str) -> tuple[str, ...]:
    """Arguments of a script for a stage that begins with the base."""
    mine = ("wandb.mode=disabled", "model.path=runs/base/hf", *settings)
    return (config, "--cluster", "laptop2", *(word for one in mine for word in ("--set", one)))


JOBS = {
    "eval_stage": stage(
        "configs/tiny/r1_zero/2_eval.toml", "evaluation.questions.0.num=16", "sampling.max_new_tokens=16"
    ),
    "rejection_stage": stage(
        "configs/tiny/r1/1_zero_traces.toml", f"questions.0.params={SUMS}", "questions.0.num=16",
        "questions.1.num=16", "sampling.max_new_tokens=16",
    ),
    "reward_model_stage": stage(
        "configs/tiny/r1/helpful_rm.toml", "data.files=['pairs.jsonl']", "num_epochs=1", "batch_size=8",
        "validation.share=0.2", "optimizer.warmup_steps=0", "save.every_steps=2", "validation.every_steps=4",
    ),
    "distill_stage": stage(
        "configs/tiny/r1/1_cold_start.toml", "data.files=['talks.jsonl']", "num_epochs=1", "batch_size=8",
        "validation.share=0.2", "optimizer.warmup_steps=0", "save.every_steps=2", "validation.every_steps=4",
    ),
    "convert": ("to-megatron", "runs/base/hf", "runs/megatron", "--processes", "1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, make_checkout: Callable[[Path], Path], slurm: Slurm) -> Path:
    """With a base of eight steps, and rows to learn from."""
    folder = make_checkout(tmp_path_factory.mktemp("scripts") / "checkout")
    pairs, talks = [], []
    for number in range(48):
        question, answer = f"{number} + {number % 7} = ?", str(number + number % 7)
        pairs.append(
            {"prompt": question, "chosen": f"<think>{number}.</think>{answer}", "rejected": "<think>.</think>1"}
        )
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": f"<think>.</think>{answer}"}]
        talks.append({"messages": turns})
    for name, rows in (("pairs", pairs), ("talks", talks)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = slurm.submit("--nodes=2", "slurm/sft_stage.sh", *BASE, cwd=folder)
    killed(slurm, job, folder / "runs/base")
    said, _ = ended(slurm, job, "COMPLETED", folder)
    assert said["Restarts"] == "1"
    return folder


def killed(slurm: Slurm, job: int, run_dir: Path) -> None:
    """SIGKILL to what the job runs, once it has begun; a conversion, which has no history, as soon as it is there."""

    def begun() -> list[int]:
        found = {pid: command.split() for pid, (_, command) in slurm.processes(job).items()}
        cli = {pid: words[3] for pid, words in found.items() if words[1:3] == ["-m", "r1mega.cli"] and words[3:]}
        started = any(event.kind == "started" for event in read(run_dir))
        return [pid for pid, verb in cli.items() if verb == "convert" or (verb == "run" and started)]

    os.kill(min(wait_until("it has begun", begun, 600)), signal.SIGKILL)


@pytest.mark.parametrize("script", JOBS)
def test_a_script_finishes_though_it_was_killed(slurm: Slurm, checkout: Path, script: str):
    job = slurm.submit("--nodes=2", f"slurm/{script}.sh", *JOBS[script], cwd=checkout)
    run_dir = checkout / f"runs/slurm-{job}"
    killed(slurm, job, run_dir)
    said, printed = ended(slurm, job, "COMPLETED", checkout)
    assert said["Restarts"] == "1" and "(exit code 137): requeued" in printed
    result = checkout / "runs/megatron" if script == "convert" else run_dir / "summary.json"
    assert result.exists(), printed
