"""README's commands run as typed, in its order, in a fresh checkout whose shell is set up as README says."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ACTIVATE = ". .venv/bin/activate"
PROGRAMS = ("r1mega", "python", "make", "sbatch", "srun", "pip", "bash", "sh", ".")
PLACEHOLDER = re.compile(r"<[^>]*>|\b[A-Z][A-Z_]+\b(?!=)|\.\.\.")
"""What nobody can type; names of variables are followed by their value."""

FEW_STEPS = (
    "num_steps=2", "documents_per_step=8", "data.num_documents=400", "optimizer.warmup_steps=1", "save.every_steps=2",
)  # fmt: skip
FEW_ANSWERS = (
    "num_steps=2", "questions.0.num=16", "rollout.num_prompts=4", "rollout.num_minibatches=1",
    "objective.group_size=4", "objective.constant_groups=keep", "sampling.max_new_tokens=8",
    "optimizer.warmup_steps=1", "evaluation.every_steps=2", "evaluation.questions.0.num=4",
    "evaluation.samples_per_question=1", "save.every_steps=2", "mismatch.max_abs=1",
)  # fmt: skip


def sets(*overrides: str) -> str:
    return " ".join(f"--set {override}" for override in ("wandb.mode=disabled", *overrides))


ADDED = {
    "r1mega check configs/tiny/dense/0_base.toml": "",
    "r1mega run configs/tiny/dense/0_base.toml --cluster laptop2": sets(*FEW_STEPS),
    "r1mega run configs/tiny/dense/0_base.toml --cluster laptop2 --resume": sets(*FEW_STEPS),
    "r1mega report runs/tiny/dense/0_base": "",
    "r1mega status runs/tiny/dense/0_base": "",
    "r1mega convert to-megatron runs/tiny/dense/0_base/hf runs/megatron": "--processes 1",
    "r1mega convert to-hf runs/megatron runs/hf": "--processes 1",
    "r1mega convert inspect runs/megatron": "",
    "r1mega convert verify runs/tiny/dense/0_base/hf runs/hf": "",
    "python tools/compare_logprobs.py runs/hf --engines transformers megatron": "",
    "python launchers/local.py configs/tiny/dense/0_base.toml --run-dir runs/again": sets(*FEW_STEPS),
    "r1mega pipeline configs/tiny/dense/demo.toml --cluster laptop2": " ".join(
        f"--set {stage}:{override}"
        for stage, few in (("base", FEW_STEPS), ("rl", FEW_ANSWERS))
        for override in ("wandb.mode=disabled", *few)
    ),
    "r1mega pipeline configs/tiny/r1/pipeline.toml --cluster laptop2 --dry-run": "",
    "python tools/make_conversations.py runs/conversations.jsonl --set min_terms=2 --set max_terms=7": "--num 200",
    "r1mega run configs/tiny/sft/1_qwen2.toml --set model.path=runs/hf "
    """--set data.files="['runs/conversations.jsonl']" """.rstrip(): sets(
        "max_steps=2", "batch_size=8", "optimizer.warmup_steps=1", "validation.every_steps=2", "save.every_steps=2"
    ),
    "r1mega check configs/r1/1_cold_start.toml --cluster h800_v3": "",
    "r1mega check configs/distill/qwen2_5_14b.toml --cluster h800_14b --print slurm": "",
}
"""Command -> what is appended so that it takes seconds. They run in README's order, each on what is there by then."""
ELSEWHERE = {
    "sbatch --nodes=2 slurm/rl_stage.sh configs/tiny/r1_zero/1_rl.toml "
    "--cluster laptop2": "tests/cluster/test_rl_stage.py",
}
"""What takes more than this machine has: where it is run."""


def commands() -> list[str]:
    """README's commands in its order: lines of its code blocks, and code within the text that begins as one."""
    found: list[str] = []
    for number, part in enumerate((ROOT / "README.md").read_text().split("\n```\n")):
        if number % 2:
            typed = [re.sub(r"\s+# .*", "", line) for line in part.splitlines()]
            found += [line for line in typed if line.strip()]
        else:
            code = [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", part)]
            found += [text for text in code if whole(text)]
    return found


def whole(text: str) -> bool:
    """Whether it can be typed: not a command's name alone, which the text speaks of."""
    words = len(text.split())
    return program(text) in PROGRAMS and words > (2 if text.startswith("r1mega") else 1)


def program(command: str) -> str:
    """The first word that sets no variable; "" where there is none."""
    words = [word for word in command.split() if not re.match(r"[A-Z_]+=", word)]
    return words[0] if words else ""


def test_every_command_is_known_here_and_none_is_left_over():
    made = [c for c in commands() if program(c) == "make"]
    others = {c for c in commands() if program(c) != "make"}
    assert others == {ACTIVATE, *ADDED, *ELSEWHERE}
    assert {"make demo", "make test"} <= set(made)
    assert not [c for c in others if PLACEHOLDER.search(c)]
    assert all((ROOT / file).is_file() for file in ELSEWHERE.values())


@pytest.mark.parametrize("target", sorted({w for c in commands() if program(c) == "make" for w in c.split()[-1:]}))
def test_make_has_such_a_target(target: str):
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this one without what has run in it, and with its environment."""
    folder = tmp_path / "r1mega"
    without = shutil.ignore_patterns(
        ".git", ".venv", "runs", "shared", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info"
    )
    shutil.copytree(ROOT, folder, ignore=without, symlinks=True)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    return folder


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(not (ROOT / ".venv/bin/activate").is_file(), reason="needs the environment of `make env`")
def test_they_run_as_typed_one_after_the_other(checkout: Path):
    own = Path(sys.executable).parent
    path = os.pathsep.join(
        p for p in os.environ["PATH"].split(os.pathsep) if p and Path(p).resolve() != own.resolve()
    )
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(checkout),
    }  # its code, where a test run has changed it
    for command in commands():
        if command in ADDED:
            line = f"{ACTIVATE} && {command} {ADDED[command]}"
            done = subprocess.run(["bash", "-c", line], cwd=checkout, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    runs = checkout / "runs"
    assert (runs / "tiny/dense/demo/rl/summary.json").is_file() and (runs / "tiny/dense/0_base/report.html").is_file()
    assert (runs / "tiny/sft/1_qwen2/hf/config.json").is_file() and (runs / "again/summary.json").is_file()


SCRIPTS = sorted(p.relative_to(ROOT) for folder in ("tools", "launchers") for p in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_a_python_that_lacks_the_environment_is_told_what_to_do(script: Path):
    done = subprocess.run([sys.executable, "-I", "-S", script, "--help"], cwd=ROOT, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert line.startswith(f"{script.stem}: ") and shlex.quote(ACTIVATE)[1:-1] in line and "`make env`" in line
