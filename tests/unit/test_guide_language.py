"""docs/guides/language.md: its command runs, and its rows are worth what it says."""

import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

from pydantic import TypeAdapter

from r1mega import cli
from r1mega.rewards.language import MAX_CHARACTERS, Language
from r1mega.rewards.registry import Rewards

GUIDE = (Path(__file__).parents[2] / "docs/guides/language.md").read_text(encoding="utf-8")


def block(kind: str) -> str:
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```", GUIDE, re.M | re.S)
    return found


def test_the_command_scores_the_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("thoughts.jsonl").write_text(block("json"), encoding="utf-8")
    (command,) = re.findall(r"^r1mega .*$", GUIDE, re.M)
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    try:
        cli.main()
    except SystemExit as left:
        assert not left.code, capsys.readouterr().err
    *verdicts, last = map(json.loads, Path("shares.jsonl").read_text().splitlines())
    assert [(verdict["value"], verdict["reason"]) for verdict in verdicts] == [(0.5, ""), (0.5, "")]
    assert last["summary"]["mean"] == 0.5


def test_the_settings_are_those_of_the_reward():
    rewards = TypeAdapter(Rewards).validate_python(tomllib.loads(block("toml"))["rewards"])
    assert rewards["language"] == Language()
    named = re.findall(r"\w+", re.search(r"\[rewards.language\] with ([\w, ]+)", GUIDE)[1])
    assert set(named) == {"weight", "language", "domains", "from_step"} < set(Language.model_fields)
    assert f"more than {MAX_CHARACTERS:,} characters" in GUIDE
