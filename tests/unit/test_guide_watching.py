"""docs/guides/watching.md: each of its commands runs, and prints what the guide shows."""

import contextlib
import json
import re
import shlex
import socket
import sys
from pathlib import Path

import pytest
from watched_runs import NOW, eval_row, event, train_row, write_beat, write_stage

from r1mega import cli
from r1mega.report.live import commands, terminal
from r1mega.report.live.life import EXIT_CODES, RunState

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/watching.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```", GUIDE, re.M | re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if re.match(r"r1mega (status|watch) ", line)]
SHOWN = BLOCKS[1]


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The guide's run, in its second stage of four."""
    run = tmp_path / "runs/r1/pipeline"
    write_stage(run / "base", kind="pretrain", started="2026-09-21T08:00:00+00:00", done=True)
    rows = [train_row(step) for step in range(1, 200)]
    rows += [train_row(200, **{"seconds/update": 31.0, "reward/total": 0.9}), eval_row(200, 0.7)]
    told = [event("recovered-server", NOW - 900 + i, "it had frozen", step=90) for i in range(2)]
    rl = write_stage(run / "r1_zero", rows, events=told, started="2026-09-21T09:00:00+00:00", starts=2)
    (rl / "logs/vllm.log").write_text("Traceback (most recent call last):\n  File x\nEngineDeadError: see above\n")
    wait = {"what": "all ranks", "seconds": 33.0, "limit_s": 600.0}
    for rank in (0, 1):
        write_beat(rl, rank, wait=wait)
    write_beat(rl, 2, phase="sampling", phases=8)
    (run / "chain.json").write_text(json.dumps({"stages": ["base", "r1_zero", "cold_start", "eval"]}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "clock", lambda: NOW)
    return run


def typed(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_guide_runs(command: str, chain: Path, monkeypatch, capsys):
    shows_until_someone_leaves = command.startswith("r1mega watch") and "--once" not in command
    if shows_until_someone_leaves:
        monkeypatch.setattr(terminal.time, "sleep", interrupted)
        port = str(free_port())
        command = command.replace("8080", port)
    assert typed(command, monkeypatch) == (0 if shows_until_someone_leaves else EXIT_CODES[RunState.RUNNING])
    told = capsys.readouterr().out
    if shows_until_someone_leaves:
        assert "page: http://127.0.0.1:" in told and "is watched no more" in told
        assert "--port" not in command or f"127.0.0.1:{port}/" in told
    elif "--json" in command:
        assert json.loads(told)["state"] == "running"
    else:
        for line in SHOWN.splitlines() if "status" in command else SHOWN.splitlines()[:6]:
            assert re.search("^" + re.escape(line).replace(r"\.\.\.", ".*") + "$", told, re.M), line


def interrupted(seconds: float) -> None:
    raise KeyboardInterrupt


def free_port() -> int:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        return taken.getsockname()[1]


def test_the_guide_has_every_exit_code_and_no_other():
    table = {int(code) for code in re.findall(r"^\| (\d) \|", GUIDE, re.M)}
    assert table == {2, *EXIT_CODES.values()} and len(COMMANDS) == 5


def test_its_pictures_are_there_and_small():
    for name in re.findall(r"!\[.*?\]\((.*?)\)", GUIDE):
        assert 5_000 < (ROOT / "docs/guides" / name).stat().st_size < 150 * 1024
