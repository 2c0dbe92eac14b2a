"""[[questions]] of configs: old forms refused with the new one, and the tiny runs' questions, which stay theirs."""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from r1mega.buffers import Int32s
from r1mega.data.asked_questions import evaluation_questions, training_questions
from r1mega.data.prompts import PromptStream
from r1mega.data.question import Question
from r1mega.errors import ConfigError
from r1mega.recipe.asking import Asking
from r1mega.recipe.evaluate import Evaluate
from r1mega.recipe.grpo import GRPO
from r1mega.recipe.load import load_recipe
from r1mega.rewards.verifiers import VERIFIERS
from r1mega.samples import Prompt

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs/tiny"
BEFORE = {
    "r1_zero/1_rl": ("ab6def31280184ef", "64a96053007e88ba", "aaada80c350d3eca"),
    "r1_zero/2_eval": ("ab6def31280184ef",),
    "dense/1_rl": ("cfd95d26ed5f3f12", "2af586c81fa1a931", "804c2d5f42813cd5"),
    "sft/2_eval": ("cfd95d26ed5f3f12",),
    "r1_zero/2_eval_endpoint": ("ab6def31280184ef",),
    "language/1_rl": ("cfd95d26ed5f3f12", "2af586c81fa1a931", "804c2d5f42813cd5"),
}
"""Digests of what each tiny stage asked while tasks were listed: held-out questions, training questions, and the ids
of its first 300 rollouts. Taken with the code of that time."""


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]


def told(questions: list[Question]) -> str:
    return digest([[q.id, q.verifier, q.text, q.truth, q.domain, q.entry] for q in questions])


@pytest.mark.parametrize("config", BEFORE)
def test_tiny_stages_ask_what_they_always_asked(config: str):
    stage = load_recipe(TINY / f"{config}.toml")
    assert isinstance(stage, Asking)
    held_out = evaluation_questions(stage.evaluation.questions, stage.evaluation.seed, verifiers=VERIFIERS)
    found = [told(held_out.questions)]
    if isinstance(stage, GRPO):
        asked = training_questions(stage.questions, stage.seed, verifiers=VERIFIERS, evaluation=held_out).questions
        made = [Prompt(q.id, q.verifier, q.text, q.truth, Int32s([1])) for q in asked]
        stream = PromptStream(made, stage.seed)
        rollouts = [[p.id for p in stream.take(stage.rollout.num_prompts)] for _ in range(300)]
        found += [told(asked), digest(rollouts)]
    assert tuple(found) == BEFORE[config]


# ---- old forms ----------------------------------------------------------------------------------------------

RL = (TINY / "r1_zero/1_rl.toml").read_text(encoding="utf-8")
SUMS = "{ min_terms = 2, max_terms = 3 }"
OF_TASKS = f"""
[[tasks]]
name = "chain_sum"
weight = 3
params = {SUMS}

[[tasks]]
name = "gcd"
"""


def without_questions(text: str) -> str:
    """A config's text without its tables of questions."""
    kept, skipping = list[str](), False
    for line in text.splitlines():
        skipping = "questions]]" in line or (skipping and not line.startswith("["))
        kept += [] if skipping else [line]
    return "\n".join(kept) + "\n"


def refused(text: str, path: Path, *overrides: str) -> tuple[str, str]:
    """What is said of a config of the old form, and the tables of the new one that are written out there."""
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_recipe(path, [f"model.path={path.parent}/none", *overrides])
    said, _, new = str(error.value).partition("Instead:\n")
    return said, new


def mended(text: str, path: Path, *overrides: str) -> tuple[str, dict[str, Any]]:
    """What is said of the old form, and what the message's own tables are read as in its place."""
    said, new = refused(text, path, *overrides)
    bare = without_questions(text)
    for gone in ("num_questions = ", "questions = ", "duplicates = ", "too_long = "):
        bare = "\n".join(line for line in bare.splitlines() if not line.startswith(gone)) + "\n"
    bare = bare.replace(OF_TASKS, "")
    path.write_text(f"{bare}\n{new}", encoding="utf-8")
    stage = load_recipe(path, [f"model.path={path.parent}/none"])
    assert isinstance(stage, Asking)
    read = stage.evaluation.model_dump(mode="json", exclude_unset=True)["questions"]
    of_training = stage.model_dump(mode="json", exclude_unset=True).get("questions", [])
    return said, {"questions": of_training, "evaluation": read, "text": tomllib.loads(new)}


def test_tasks_become_tables_that_can_be_pasted(tmp_path: Path):
    old = without_questions(RL).replace("num_steps", "num_questions = 200\nnum_steps") + OF_TASKS
    old = old.replace("[evaluation]\n", "[evaluation]\nnum_questions = 40\n")
    said, now = mended(old, tmp_path / "a.toml")
    assert "tasks, num_questions, evaluation.num_questions are of an earlier form" in said
    sums = {"kind": "reasoning_gym", "family": "chain_sum", "params": {"min_terms": 2, "max_terms": 3}}
    gcd = {"kind": "reasoning_gym", "family": "gcd"}
    assert now["questions"] == [{**sums, "num": 150}, {**gcd, "num": 50}]  # three to one
    assert now["evaluation"] == [{**sums, "num": 30}, {**gcd, "num": 10}]


def test_a_file_becomes_a_table_with_its_settings(tmp_path: Path):
    old = without_questions(RL).replace(
        "num_steps", 'questions = "own.jsonl"\nduplicates = "drop"\ntoo_long = "drop"\nnum_questions = 9\nnum_steps'
    )
    old = old.replace("[evaluation]\n", "[evaluation]\nnum_questions = 40\n") + OF_TASKS
    said, now = mended(old, tmp_path / "a.toml")
    assert "tasks, num_questions, duplicates, too_long, evaluation.num_questions, questions are of an earlier" in said
    (table,) = now["questions"]
    path = Path(table.pop("path"))
    assert path == tmp_path / "own.jsonl" and now["text"]["questions"][0]["path"] == "own.jsonl"
    assert table == {"kind": "jsonl", "verifier_column": "task", "duplicates": "drop", "too_long": "drop"}
    assert [source["num"] for source in now["evaluation"]] == [30, 10]


def test_tables_of_the_earlier_shape_become_ones_of_this(tmp_path: Path):
    old = without_questions(RL).replace("[evaluation]\n", "[evaluation]\nnum_questions = 40\n") + OF_TASKS
    old += '[[questions]]\nkind = "jsonl"\npath = "own.jsonl"\ndomain = "stem"\n'
    old += '[[questions]]\nkind = "reasoning_gym"\nnum = 8\ndomain = "logic"\ntasks = [{ name = "gcd" }]\n'
    _, now = mended(old, tmp_path / "a.toml")
    own, made = now["questions"]
    assert own | {"path": ""} == {"kind": "jsonl", "path": "", "domain": "stem", "verifier_column": "task"}
    assert made == {"kind": "reasoning_gym", "family": "gcd", "num": 8, "domain": "logic"}


def test_an_evaluation_becomes_tables(tmp_path: Path):
    old = without_questions((TINY / "r1_zero/2_eval.toml").read_text(encoding="utf-8"))
    old = old.replace("[evaluation]\n", "[evaluation]\nnum_questions = 40\n") + OF_TASKS
    _, now = mended(old, tmp_path / "a.toml")
    assert now["questions"] == [] and [source["family"] for source in now["evaluation"]] == ["chain_sum", "gcd"]
    assert isinstance(load_recipe(tmp_path / "a.toml", [f"model.path={tmp_path}/none"]), Evaluate)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("num_questions=40", "num_questions: is `num` of a table of questions: --set questions.0.num=40"),
        (
            "evaluation.num_questions=7",
            "evaluation.num_questions: is `num` of a table of questions: --set evaluation.questions.0.num=7",
        ),
        ("tasks.0.params={min_terms=3}", "--set questions.0.params={...}"),
        ("too_long=drop", 'too_long: is a setting of each table of questions: --set questions.0.too_long="drop"'),
        (
            "questions=own.jsonl",
            'questions: is a list of tables: --set \'questions=[{kind = "jsonl", path = "own.jsonl", '
            'verifier_column = "task"}]\'',
        ),
    ],
)
def test_an_old_command_line_is_told_the_new_one(tmp_path: Path, override: str, said: str):
    assert said in refused(RL, tmp_path / "a.toml", override)[0]
