"""`make demo-smollm2` as far as it goes without the weights: its questions, its prompt, its commands."""

import hashlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from prompt_templates import SMOLLM2, tokenizer_with

from r1mega.data.prompt_form import PromptForm
from r1mega.recipe.grpo import GRPO
from r1mega.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs/smollm2"
NAMES = "questions", "held_out"


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DEMO / f"{name}.jsonl").read_text().splitlines()]


def test_the_tool_writes_the_files_that_are_there(tmp_path: Path):
    subprocess.run([sys.executable, ROOT / "tools/make_word_problems.py", tmp_path], check=True, capture_output=True)
    for name in NAMES:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (DEMO / f"{name}.jsonl").read_bytes()


def test_every_truth_is_what_the_words_ask_for():
    """By the question's numbers and what is asked of them, not by who wrote it."""
    asked = [row for name in NAMES for row in rows(name)]
    assert len(asked) == 700 and len({row["question"] for row in asked}) == 700
    for row in asked:
        a, b = map(int, re.findall(r"\d+", row["question"]))
        less = re.search(r"left|How many more|minus", row["question"])
        assert int(row["truth"]) == (a - b if less else a + b) > 0, row


@pytest.mark.parametrize("name", NAMES)
def test_sides_are_those_of_every_stage(name: str):
    for row in rows(name):
        first = int.from_bytes(hashlib.sha256(row["question"].encode()).digest()[:8], "big")
        assert (first % 8 == 0) == (name == "held_out")


def test_the_prompt_is_what_its_head_says(tmp_path: Path):
    recipe = load_recipe(DEMO / "1_rl.toml")
    assert isinstance(recipe, GRPO)
    form = PromptForm(recipe.prompt, tokenizer_with(SMOLLM2, tmp_path, bos=False))
    assert form.render(["What is 2 plus 3?"]) == [
        "<|im_start|>system\nAnswer every question like this: <think>2 + 3 = 5</think><answer>5</answer><|im_end|>\n"
        "<|im_start|>user\nWhat is 2 plus 3?<|im_end|>\n<|im_start|>assistant\n<think>"
    ]
    assert form.prefill == "<think>" and recipe.objective.kl_coef > 0


def test_the_target_runs_the_config_on_the_folder_that_the_tool_writes():
    done = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "demo-smollm2", "CLUSTER=laptop2"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [line.removeprefix(".venv/bin/") for line in done.stdout.splitlines()]
    made, run, report = lines[-3:]
    recipe = load_recipe(DEMO / "1_rl.toml")
    assert recipe.model.path == ROOT / made.removeprefix("python tools/smollm2_folder.py ")
    assert run == ("r1mega run configs/smollm2/1_rl.toml --cluster laptop2 --run-dir runs/smollm2/1_rl --resume")
    assert report == "r1mega report runs/smollm2/1_rl"
    assert "make demo-smollm2" in (DEMO / "1_rl.toml").read_text()


def test_without_the_package_the_tool_says_what_to_do(tmp_path: Path):
    command = f"tools/smollm2_folder.py {tmp_path}/out --packages {tmp_path}"
    done = subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "run `make smollm2`" in done.stderr and not (tmp_path / "out").exists()


def test_readme_says_what_was_measured():
    found = json.loads((ROOT / "docs/measurements/smollm2_grpo.json").read_text())
    readme = (ROOT / "README.md").read_text()
    table = readme.split("| step | in the format |")[1].split("\n\n")[0].splitlines()[2:]
    assert found["held_out"]["sampled"].keys() == {f"step {line.split('|')[1].strip()}" for line in table}
    for line, (step, of) in zip(table, found["held_out"]["sampled"].items(), strict=True):
        strict, lenient = (
            "{:.1f} ({:.1f} to {:.1f})".format(*(100 * v for v in of[name])) for name in ("strict", "lenient")
        )
        assert line == f"| {step[5:]} | {100 * of['format']:.1f} | {strict} | {lenient} | {of['tokens']} |"
    for answers in found["transcripts"].values():
        assert answers["question"] in readme
