"""docs/guides/trace.md: each of its commands runs, and prints what the guide shows."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from chain_by_hand import read_jsonl, write_chain

from r1mega import cli
from r1mega.pipeline import rollouts, trace, trace_all

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/trace.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```", GUIDE, re.M | re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("r1mega ")]
SHOWN = {line: BLOCKS[i + 1] for i, block in enumerate(BLOCKS) for line in block.splitlines() if line in COMMANDS[:1]}
SHOWN |= {line: BLOCKS[i + 1] for i, block in enumerate(BLOCKS) for line in block.splitlines() if "--all" in line}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_guide_runs(command: str, tmp_path: Path, monkeypatch, capsys):
    chain = write_chain(tmp_path)
    monkeypatch.chdir(tmp_path)
    digest = read_jsonl(chain / "4_sft_800k_data/conversations.jsonl")[0]["sha256"]
    monkeypatch.setattr(sys, "argv", shlex.split(command.replace("SHA256", digest)))
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    told = capsys.readouterr().out
    assert told
    for line in SHOWN.get(command, "").splitlines():
        shown = re.escape(re.sub("^[│├└─ ]*", "", line)).replace(r"\.\.\.", ".*")
        assert re.search(re.sub(r"row\\ [0-9a-f]{12}", "row [0-9a-f]{12}", shown), told), line


def test_what_can_be_broken_stands_in_the_table():
    """Every kind of fault, and no other."""
    kinds = {
        value
        for module in (rollouts, trace, trace_all)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str) and " " in value
    }
    table = re.findall(r"^\| (.+?) \|", GUIDE[GUIDE.index("| broken |") :], re.M)[1:]
    assert kinds == set(table)
