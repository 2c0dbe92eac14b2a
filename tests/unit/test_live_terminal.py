"""`r1mega status` and `r1mega watch` as typed: their words, exit codes and pictures; no torch, little time, and a
terminal that a hostile run cannot drive."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from rich.console import Console
from watched_runs import HOSTILE, NOW, answer, event, train_row, write_lines, write_stage

from r1mega import cli
from r1mega.report.live import terminal
from r1mega.report.live.terminal import blocks, screen
from r1mega.report.live.watcher import Watcher


def typed(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["r1mega", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_stage(tmp_path / "rl", [train_row(step) for step in range(1, 101)], written=NOW)


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ({"done": True}, 0, "state      done: its summary is written"),
        ({"written": 4e9}, 3, "state      running: it wrote something"),  # in the future of every clock
        ({"events": [event("crashed", 4e9, "no memory")]}, 4, "state      failed: crashed: no memory"),
        ({"events": [event("stopped", 4e9, "saved")]}, 4, "state      stopped: stopped: saved"),
        ({"written": 1e9}, 4, "state      silent: nothing was written for"),
    ],
)
def test_a_status_leaves_with_what_is_true(tmp_path: Path, monkeypatch, capsys, more: dict, code: int, words: str):
    write_stage(tmp_path / "rl", [train_row(1)], **more)
    assert typed("status", str(tmp_path / "rl"), monkeypatch=monkeypatch) == code
    assert words in capsys.readouterr().out
    assert typed("watch", "--once", str(tmp_path / "rl"), monkeypatch=monkeypatch) == code
    assert words in capsys.readouterr().out
    assert typed("status", "--json", str(tmp_path / "rl"), monkeypatch=monkeypatch) == code
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == code and words.split()[1] == f"{told['state']}:"


def test_where_there_is_no_run_the_message_says_what_to_name(tmp_path: Path, monkeypatch, capsys):
    assert typed("status", str(tmp_path), monkeypatch=monkeypatch) == 2
    assert "no run here" in (said := capsys.readouterr().err) and "--run-dir" in said


def test_a_status_takes_no_torch(run: Path):
    script = "import sys; from r1mega import cli; sys.argv[0] = 'r1mega'\n"
    script += "try: cli.main()\nexcept SystemExit: pass\n"
    script += (
        "heavy = {'torch', 'numpy', 'transformers', 'matplotlib', 'vllm', 'megatron', 'wandb'} & sys.modules.keys()\n"
    )
    script += "print('heavy:', sorted(heavy))"
    for command in (["status"], ["watch", "--once"]):
        told = subprocess.run(
            [sys.executable, "-c", script, *command, str(run)], capture_output=True, text=True, check=True
        )
        assert told.stdout.endswith("heavy: []\n") and "rl" in told.stdout


def test_a_terminal_is_not_driven_by_a_run(tmp_path: Path, monkeypatch, capsys):
    told = [event(HOSTILE, NOW, HOSTILE), event("crashed", NOW, "two\nlines [bold]markup[/bold]")]
    chain = tmp_path / "chain"
    run = write_stage(chain / "a\x1b[2Jb", [train_row(1)], events=told, kind=HOSTILE)
    write_lines(run / "samples/step_1.jsonl", [answer(HOSTILE, HOSTILE)])
    (run / "logs/a.log").write_text(f"ERROR {HOSTILE}\n")
    (chain / "chain.json").write_text("{}")
    typed("status", str(chain), monkeypatch=monkeypatch)
    typed("watch", "--once", str(chain), monkeypatch=monkeypatch)
    shown = capsys.readouterr().out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", shown)
    assert "\\x1b[31m" in shown and "[bold]markup[/bold]" in shown and "two lines" in shown


def test_a_picture_fits_its_screen_and_has_curves(run: Path):
    out = io.StringIO()
    console = Console(file=out, width=80, height=20, force_terminal=True, color_system=None)
    console.print(screen(Watcher(run, clock=lambda: NOW), "http://here/", 20))
    lines = out.getvalue().splitlines()
    assert len(lines) <= 20 and all(len(line) <= 80 for line in lines)
    assert any(line.startswith("Reward of the sampled answers") and "█ 0.6" in line for line in lines)
    assert "http://here/" in out.getvalue()


def test_a_curve_in_a_line():
    assert blocks([0.0, 7.0, 3.5]) == "▁█▅" and blocks([]) == "" and blocks([2.0, 2.0]) == "▄▄"
    assert blocks([float(i) for i in range(80)], 8) == "▁▂▃▄▅▆▇█"
    assert len(blocks([1.0] * 1000)) == terminal.CURVE_WIDTH


def test_on_a_terminal_it_is_drawn_until_someone_leaves(run: Path, monkeypatch):
    out, looks = io.StringIO(), iter([False, True])
    monkeypatch.setattr(terminal, "EVERY_S", 0.0)
    console = Console(file=out, width=80, height=20, force_terminal=True)
    terminal.watch(Watcher(run, clock=lambda: NOW), console, "http://here/", leave=lambda: next(looks))
    assert "step 100 of 400" in out.getvalue()


def test_into_a_file_a_line_is_written_when_it_is_another_one(run: Path, monkeypatch):
    out, now, looks = io.StringIO(), [NOW], iter([False, False, True])
    monkeypatch.setattr(terminal, "LINE_EVERY_S", 0.0)

    def leave() -> bool:
        now[0] += 3
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(train_row(101)) + "\n" if now[0] == NOW + 6 else "")
        os.utime(run / "metrics.jsonl", (now[0], now[0]))
        return next(looks)

    terminal.watch(Watcher(run, clock=lambda: now[0]), Console(file=out), "http://here/", leave=leave)
    page, *lines = out.getvalue().splitlines()
    assert page == "page: http://here/"
    assert "step 100 of 400" in lines[0] and "step 101 of 400" in lines[-1] and len(lines) == 2


def test_the_command_serves_its_page_until_ctrl_c(run: Path):
    command = [sys.executable, "-m", "r1mega.cli", "watch", str(run)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("page: ").strip()
        with urllib.request.urlopen(f"{url}state.json", timeout=60) as answered:
            assert json.load(answered)["status"]["run_dir"] == str(run)
        assert "step 100 of 400" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert "is watched no more" in process.stdout.read()
    assert process.returncode == 0
