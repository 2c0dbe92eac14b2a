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

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/language.md").read_text(encoding="utf-8")


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


def test_the_figures_are_those_that_were_measured():
    measured = json.loads((ROOT / "docs/measurements/language_mixing.json").read_text())["runs"]
    with_reward, control = measured["with_reward"], measured["control"]
    assert with_reward["rollouts"]["step 0"] == control["rollouts"]["step 0"]

    def row(run, step, held_out):
        thoughts, found = run["rollouts"][step], run["held_out"]["sampled"][held_out]["pass@1"]
        mean, low, high = (f"{100 * share:.1f}" for share in found)
        return f"| {100 * thoughts['share']:.0f}% | {100 * thoughts['mixed']:.0f}% | {mean}% [{low}, {high}] |"

    assert f"| base {row(control, 'step 0', 'step 0')}" in GUIDE
    assert f"| with the reward {row(with_reward, 'step 38', 'step 40')}" in GUIDE
    assert f"| without {row(control, 'step 38', 'step 40')}" in GUIDE
