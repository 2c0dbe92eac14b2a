"""docs/guides/reward.md: its file and its entries are what they are said to be, and its commands run."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from check_and_run import Started, stop_at_start, write_model

from r1mega import cli
from r1mega.errors import R1MegaError
from r1mega.recipe.grpo import GRPO
from r1mega.recipe.load import load_recipe
from r1mega.rewards.own import GIVEN, Own

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/reward.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^r1mega .*$", GUIDE, re.M)
BLOCKS = re.findall(r"^```(python|toml)\n# (\S+)\n(.*?)^```", GUIDE, re.M | re.S)
(ROWS,) = re.findall(r"^```jsonl\n(.*?)^```", GUIDE, re.M | re.S)
CONFIG = "configs/tiny/r1_zero/1_rl.toml"
FITTING = (
    "batch.chunk_tokens=1024", "prompt.template=r1_zero", "rollout.num_prompts=4", "questions.0.num=60",
    "evaluation.questions.0.num=10",
)  # fmt: skip
"""The model of this test has a token a byte and no special ones."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the guide's file and its first entry in it, the model to start from, and the rows."""
    folder = tmp_path_factory.mktemp("guide")
    shutil.copytree(ROOT / "configs", folder / "configs")
    (_, name, source), (_, config, entry), _ = BLOCKS
    assert config == CONFIG
    (folder / name).write_text(source)
    with (folder / config).open("a") as file:
        file.write("\n" + entry)
    (folder / "answers.jsonl").write_text(ROWS)
    out = folder / "runs/tiny/r1_zero/demo/anneal/hf"
    out.mkdir(parents=True)
    write_model(out)
    return folder


@pytest.fixture
def folder(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stop_at_start(monkeypatch, checkout / "cache")
    monkeypatch.chdir(checkout)
    return checkout


def said_by(command: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> tuple[int, str, str]:
    """Exit code, standard output and what is said on stderr."""
    fitting = [] if "score" in command else [part for setting in FITTING for part in ("--set", setting)]
    monkeypatch.setattr(sys, "argv", [*shlex.split(command), *fitting])
    code = 0
    try:
        cli.main()
    except Started:
        pass
    except SystemExit as left:
        code = int(left.code or 0)
    out, error = capsys.readouterr()
    return code, out, error


def test_there_are_commands():
    assert [command.split()[1] for command in COMMANDS] == ["check", "score", "run"]


def test_the_commands_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    for command in COMMANDS:
        code, out, error = said_by(command, monkeypatch, capsys)
        assert code == 0, error
        if "score" in command:
            first, second, _ = (json.loads(line) for line in out.splitlines())
            assert (first["value"], first["parts"]["brevity"]) == (pytest.approx(2.225), 0.75)
            assert (second["value"], second["parts"]) == (1.0, {"accuracy": 0.0, "format": 1.0, "brevity": 0.0})
            assert "2.225 for the first" in GUIDE and "1.0 for the second" in GUIDE.replace("\n", " ")


def test_check_and_run_refuse_a_faulty_file(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    file = folder / "configs/tiny/r1_zero/my_reward.py"
    sound = file.read_text()
    file.write_text(sound.replace("num_tokens, *", "num_token, *"))
    for command in (COMMANDS[0], COMMANDS[2]):
        code, _, error = said_by(command, monkeypatch, capsys)
        assert code == 2 and "Traceback" not in error
        assert f"rewards.brevity: {file}:4: brevity: takes 'num_token', which is neither given" in error
    file.write_text(sound)


def test_the_parameters_are_those_of_the_table():
    section = GUIDE.partition("## What it is given")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.M)
    assert dict(rows) == GIVEN


def test_the_other_entry_is_taken_where_it_makes_sense(folder: Path):
    (*_, entry) = BLOCKS
    config = folder / "configs/tiny/r1_zero/both.toml"
    config.write_text((folder / CONFIG).read_text() + entry[2])
    recipe = load_recipe(config, ["objective.truncated=judge"])
    assert (
        isinstance(recipe, GRPO)
        and isinstance(recipe.rewards["brevity"], Own)
        and set(recipe.rewards) > {"overlong", "accuracy"}
    )
    with pytest.raises(R1MegaError, match="= zero an answer that is cut scores 0"):
        load_recipe(config)
