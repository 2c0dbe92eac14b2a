"""docs/guides/prompt.md: its file and its entry are what they are said to be, and its commands run."""

import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from check_and_run import write_model

from r1mega import cli
from r1mega.data.prompt_form import PromptForm
from r1mega.data.settings import PromptSettings
from r1mega.data.tokenizer import load_tokenizer
from r1mega.preflight import verdicts

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/prompt.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^r1mega .*$", GUIDE, re.M)
(ENTRY,), (FILE,) = (re.findall(rf"^```{kind}\n(.*?)^```", GUIDE, re.M | re.S) for kind in ("toml", "jinja"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the guide's file in it, and the model that the configs start from."""
    folder = tmp_path_factory.mktemp("guide")
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "own.jinja").write_text(FILE)
    for name in ("anneal", "rl"):
        out = folder / f"runs/tiny/r1_zero/demo/{name}/hf"
        out.mkdir(parents=True)
        write_model(out)
    return folder


def test_there_are_commands():
    assert len(COMMANDS) == 2 and all("own.jinja" in command for command in COMMANDS)


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_guide_runs(
    command: str, broken: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """And reads the file: one without the question is refused."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(verdicts, "cache_dir", lambda: folder / "cache")
    (folder / "own.jinja").write_text(FILE.replace("Problem: {{ message['content'] }}", "Hm.") if broken else FILE)
    room = ["--set", "batch.chunk_tokens=1024"] if "1_rl" in command else []  # a token a byte here
    monkeypatch.setattr(sys, "argv", [*shlex.split(command), *room])
    try:
        cli.main()
        code = 0
    except SystemExit as left:
        code = left.code or 0
    said = capsys.readouterr().err
    assert code == (2 if broken else 0), said
    assert ("own.jinja does not write the question" in said) == broken


def test_the_guides_file_and_entry_make_the_prompt_that_they_say(folder: Path):
    table = tomllib.loads(ENTRY)["prompt"]
    (folder / "own.jinja").write_text(FILE)
    settings = PromptSettings.model_validate(table, context={"folder": str(folder)})
    assert settings.file == folder / "own.jinja"
    tokenizer = load_tokenizer(folder / "runs/tiny/r1_zero/demo/rl/hf")
    assert PromptForm(settings, tokenizer).render(["What is 2 + 2?"]) == [
        "You are careful with numbers.\n\nProblem: What is 2 + 2?\nThink in <think> </think>, then give the number "
        "in <answer> </answer>.\n<think>\n"
    ]
