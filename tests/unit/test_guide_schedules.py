"""docs/guides/schedules.md: its tables are taken by a config, and its commands say and do what it says."""

import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from check_and_run import Started, stop_at_start, write_model

from r1mega import cli
from r1mega.recipe.grpo import GRPO
from r1mega.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/schedules.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^r1mega .*$", GUIDE, re.M)
BLOCKS = re.findall(r"^```toml\n(.*?)^```", GUIDE, re.M | re.S)
CONFIG = "configs/tiny/r1_zero/1_rl.toml"
FITTING = (
    "batch.chunk_tokens=1024", "prompt.template=r1_zero", "rollout.num_prompts=4", "questions.0.num=60",
    "evaluation.questions.0.num=10",
)  # fmt: skip
"""The model of this test has a token a byte and no special ones."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "configs/tiny", tmp_path / "configs/tiny")
    shutil.copytree(ROOT / "configs/cluster", tmp_path / "configs/cluster")
    out = tmp_path / "runs/tiny/r1_zero/demo/anneal/hf"
    out.mkdir(parents=True)
    write_model(out)
    stop_at_start(monkeypatch, tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_do_what_is_said_of_them(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    found: list[tuple[str, int | str]] = []
    said = ""
    for command in COMMANDS:
        fitting = [part for setting in FITTING for part in ("--set", setting)]
        monkeypatch.setattr(sys, "argv", [*shlex.split(command), *fitting])
        code: int | str = 0
        try:
            cli.main()
        except Started:
            code = "started"
        except SystemExit as left:
            code = int(left.code or 0)
        found.append((command.split()[1], code))
        said = capsys.readouterr().err
    assert found == [("check", 0), ("check", 0), ("run", "started"), ("check", 2)]
    (quoted,) = re.findall(r"^((?:> .*\n)+)", GUIDE, re.M)
    assert re.sub(r"\s*\n> ", " ", quoted.removeprefix("> ")).strip() in said


def test_the_tables_are_taken_and_mean_what_is_said():
    plain = tomllib.loads((ROOT / CONFIG).read_text(encoding="utf-8"))
    plain["model"]["path"] = "/nowhere"
    recipes = []
    for block in BLOCKS:
        tables = tomllib.loads(block)
        settings = {**plain, **{name: {**plain[name], **table} for name, table in tables.items()}}
        recipes.append(GRPO.model_validate(settings))
    assert [recipe.faults() for recipe in recipes] == [[], []]
    first, second = recipes
    drawn = [
        (first.sampling_at(step).temperature, first.sampling_at(step).max_new_tokens) for step in (0, 16, 20, 24)
    ]
    assert drawn == [(1.0, 48), (1.0, 64), (pytest.approx(0.9), 64), (0.8, 64)]
    weights = [first.rubric().rewards["format"].weight.at(step) for step in (23, 24)]
    assert weights == [1.0, 0.5] and first.num_steps == 32
    assert second.rubric().rewards["format"].from_step == 24


def test_the_reports_length_limit_is_in_its_config():
    recipe = load_recipe(ROOT / "configs/r1_zero/1_rl.toml")
    assert isinstance(recipe, GRPO)
    limits = [recipe.sampling_at(step).max_new_tokens for step in (0, 8_191, 8_192, 10_400)]
    assert limits == [32_768, 32_768, 65_536, 65_536]


def test_the_last_400_steps_of_the_last_stage_are_in_its_config():
    """Before them no general prompt is asked, nor a reward model; in them each prompt is as likely as any other."""
    recipe = load_recipe(ROOT / "configs/r1/5_all_scenarios_rl.toml")
    assert isinstance(recipe, GRPO)
    rewards = recipe.rubric().rewards
    found = {
        step: (
            {n for n, r in rewards.items() if step >= r.begins()},
            [source.weight_or_1.at(step, recipe.num_steps) for source in recipe.questions],
        )
        for step in (0, 1_295, 1_296, 1_695)
    }
    rules, reasoning = {"accuracy", "format", "language"}, [26, 17, 8, 22, 15]
    assert found[0] == found[1_295] == (rules, [*reasoning, 0, 0])
    assert found[1_296] == found[1_695] == (rules | {"helpful", "harmless"}, [*reasoning, 66, 12])
    assert {recipe.sampling_at(step).temperature for step in (0, 1_696)} == {0.7}
    assert {name: reward.domains for name, reward in rewards.items()} == {
        "accuracy": ("math", "code", "stem", "logic"), "format": (), "language": (),
        "helpful": ("helpful",), "harmless": ("harmless",),
    }  # fmt: skip
