"""Settings of training a reward model: the report's at full size, and one message for each law that is broken."""

from pathlib import Path
from typing import Any

import pytest

from r1mega.errors import ConfigError
from r1mega.recipe.load import load_recipe
from r1mega.recipe.reward_model import RewardModelTraining

ROOT = Path(__file__).parents[2]
R1 = ROOT / "configs/r1"
TABLE: dict[str, Any] = {
    "stage": "reward_model", "objective": "pairwise", "scope": "summary", "model": {"path": "m"},
    "data": {"files": ["f.jsonl"]}, "batch": {"chunk_tokens": 16_384}, "optimizer": {"lr": 6e-6},
    "save": {"every_steps": 10},
}  # fmt: skip


def faults(**changes: Any) -> list[str]:
    return RewardModelTraining.model_validate({**TABLE, **changes}).faults()


@pytest.mark.parametrize(
    ("name", "objective", "scope"), [("helpful", "pairwise", "summary"), ("harmless", "pointwise", "response")]
)
def test_the_reports_settings_at_full_size(name: str, objective: str, scope: str):
    recipe = load_recipe(R1 / f"{name}_rm.toml")
    assert isinstance(recipe, RewardModelTraining)
    assert (recipe.objective, recipe.scope, recipe.batch_size, recipe.num_epochs) == (objective, scope, 256, 1)
    assert (recipe.optimizer.lr, recipe.data.max_tokens, recipe.expert_bias) == (6e-6, 8_192, "frozen")


def test_the_reports_settings_are_the_defaults():
    recipe = RewardModelTraining.model_validate(TABLE)
    assert recipe.faults() == []
    assert (recipe.batch_size, recipe.num_epochs, recipe.data.max_tokens) == (256, 1, 8_192)
    assert (recipe.margin, recipe.balance, recipe.expert_bias) == ("none", "none", "frozen")


BROKEN: dict[str, dict[str, Any]] = {
    "model.path: a reward model starts from": {"model": {"config": str(ROOT / "configs/tiny/qwen2.json")}},
    "data: give files (JSONL or parquet), or dataset": {"data": {}},
    "batch.chunk_tokens: 16383 is less than 2 x data.max_tokens = 16384, and a chunk holds both answers": {
        "batch": {"chunk_tokens": 16_383},
    },
    "batch.chunk_tokens: 8191 is less than data.max_tokens = 8192, and a chunk holds whole answers": {
        "objective": "pointwise", "batch": {"chunk_tokens": 8_191},
    },
    'margin: is between two answers, and objective = "pointwise"': {"objective": "pointwise", "margin": "gap"},
    'margin_scale: has no effect where margin = "none"': {"margin_scale": 0.5},
    'balance: is of labels, and objective = "pairwise" has none': {"balance": "classes"},
    'data.label: is a column of labels, and objective = "pairwise"': {"data": {"files": ["f.jsonl"], "label": "ok"}},
    'marks: have no effect where scope = "response"': {"scope": "response", "marks": ["a", "b"]},
    "marks: ['', 'b']: one is empty": {"marks": ["", "b"]},
    "validation: give files or dataset (rows of its own), or share": {"validation": {"every_steps": 1}},
    "chat_template: no file": {"chat_template": "none.jinja"},
    "optimizer.warmup_steps: 5 leaves no step": {"max_steps": 5, "optimizer": {"lr": 1e-3, "warmup_steps": 5}},
}  # fmt: skip


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_law_is_one_message(message: str):
    (fault,) = faults(**BROKEN[message])
    assert message in fault


def test_a_setting_that_is_none_of_its_choices_is_refused(tmp_path: Path):
    text = (R1 / "helpful_rm.toml").read_text()
    faulty = {"objective": "listwise", "scope": "thought", "margin": "big", "margin_scale": "1e7"}
    for setting, wrong in faulty.items():
        with pytest.raises(ConfigError, match=setting):
            load_recipe(R1 / "helpful_rm.toml", [f"{setting}={wrong}"])
    with pytest.raises(ConfigError, match=r"did you mean|objective"):
        (tmp_path / "a.toml").write_text(text.replace("objective =", "objectiv ="))
        load_recipe(tmp_path / "a.toml")
