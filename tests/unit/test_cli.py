"""The command line itself: what is given to the wrong command, or by a launcher, is one message."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from r1mega import cli
from r1mega.errors import ConfigError
from r1mega.pipeline.graph import load_pipeline
from r1mega.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs/tiny/r1_zero"
BASE, RL = TINY / "0_base.toml", TINY / "1_rl.toml"


def r1mega(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "r1mega.cli", *arguments], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "abc", "WORLD_SIZE": "2"}, "RANK='abc' in the environment: ranks are numbered from 0"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK='2', WORLD_SIZE='2' in the environment"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "-1"}, "LOCAL_RANK='-1' in the environment"),
    ],
)
def test_a_place_among_ranks_that_is_none_is_one_message(environment: dict, said: str, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["r1mega", "run", str(BASE)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert said in capsys.readouterr().err


def test_a_stage_is_no_pipeline_and_a_pipeline_no_stage():
    with pytest.raises(ConfigError, match=r"1_rl.toml: a stage, not a pipeline; `r1mega run \S+1_rl.toml` runs it$"):
        load_pipeline(RL)
    with pytest.raises(
        ConfigError, match=r"demo.toml: a pipeline, not a stage; `r1mega pipeline \S+demo.toml` runs it$"
    ):
        load_recipe(TINY / "demo.toml")


def test_the_version_is_told():
    done = r1mega("--version")
    assert (done.returncode, done.stdout) == (0, f"r1mega {importlib.metadata.version('r1mega')}\n")


@pytest.mark.parametrize("num", ["0", "-5"])
def test_a_number_of_conversations_is_above_zero(num: str, tmp_path: Path):
    command = [sys.executable, "tools/make_conversations.py", str(tmp_path / "a.jsonl"), "--num", num]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and f"--num {num}: give a number above 0" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["to-megatron", "to-hf"])
def test_a_run_directory_is_no_models_folder(command: str, tmp_path: Path):
    for name in ("config.json", "run.json"):
        (tmp_path / name).write_text("{}")
    asked = ("convert", command, str(tmp_path), str(tmp_path / "out"))
    assert (
        f"r1mega: {tmp_path}: a run directory, not a model's folder; it has no weights yet" in r1mega(*asked).stderr
    )
    for name in ("hf", "checkpoints/step_2", "checkpoints/step_10"):
        (tmp_path / name).mkdir(parents=True)
    done = r1mega(*asked)
    inside = ", ".join(f"{tmp_path}/{name}" for name in ("hf", "checkpoints/step_2", "checkpoints/step_10"))
    assert done.returncode == 2
    assert done.stderr == f"r1mega: {tmp_path}: a run directory, not a model's folder; give one of {inside}\n"
