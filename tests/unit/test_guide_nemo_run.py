"""docs/guides/nemo_run.md: every command is taken, and asks NeMo-Run for what is said of it. On a real Slurm the same
commands run in tests/cluster/test_nemo_run.py."""

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from r1mega import cli
from r1mega.launchers.nemo_run import NemoDriver

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/nemo_run.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^r1mega (.*)$", GUIDE, re.M)
ANSWERS = {"render": {"files": ["it.sh"]}, "submit": {"jobs": {"it": "12"}}, "ask": {"said": [0, "", ""]}}


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What NeMo-Run is asked, in a checkout whose chain is one stage that needs nothing."""
    for name in ("slurm", "configs/cluster"):
        shutil.copytree(ROOT / name, tmp_path / name)
    chain = tmp_path / "configs/tiny/r1/pipeline.toml"
    chain.parent.mkdir(parents=True)
    chain.write_text('[[stages]]\nname = "it"\nconfig = "mix.toml"\n')
    (chain.parent / "mix.toml").write_text('stage = "mixture"\n[[data]]\nfiles = ["rows.jsonl"]\ndomain = "math"\n')
    row = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
    (chain.parent / "rows.jsonl").write_text(row)
    python = tmp_path / ".venv-launch/bin/python"
    python.parent.mkdir(parents=True)
    python.touch()
    found: list[tuple[str, dict[str, Any]]] = []

    def ask(driver: NemoDriver, verb: str, **words: Any) -> dict[str, Any]:
        found.append((verb, words))
        if verb == "render":
            (Path(words["folder"]) / "it.sh").write_text("#!/bin/bash\n")
        return ANSWERS[verb]

    monkeypatch.setattr(NemoDriver, "ask", ask)
    monkeypatch.chdir(tmp_path)
    return found


def r1mega(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(sys, "argv", ["r1mega", *shlex.split(command)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code


def test_the_commands_ask_for_what_is_said(asked, monkeypatch, capsys):
    dry, submitted, shown, by_ssh, here = COMMANDS
    for command in (dry, submitted, shown):
        r1mega(monkeypatch, command)
    assert [verb for verb, _ in asked] == ["render", "submit"]
    assert asked[0][1]["folder"].endswith("/runs/tiny/r1/pipeline.launch")
    assert sorted(file.name for file in Path("runs/tiny/r1/pipeline.launch").iterdir()) == ["it.json", "it.sh"]
    (task,) = asked[1][1]["tasks"]
    assert task["executor"]["time"] == "00:30:00" and asked[1][1]["tunnel"] is None
    assert task["script"]["path"] == "slurm/chain_stage.sh" and asked[1][1]["title"] == "pipeline"
    assert "job 12" in capsys.readouterr().out
    shutil.rmtree("runs")
    asked.clear()
    r1mega(monkeypatch, by_ssh)
    verb, words = asked[0]
    assert verb == "submit" and {verb for verb, _ in asked[1:]} == {"ask"}
    assert (words["tunnel"]["host"], words["tunnel"]["user"]) == ("login1", "me")
    assert words["tasks"][0]["executor"]["setup_lines"].startswith("cd /home/me/r1mega && ")
    assert [words["command"].split()[0] for _, words in asked[1:]] == ["squeue", "sacct", "cat"]
    assert here.split()[-2:] == ["--with", "executor=local"]
