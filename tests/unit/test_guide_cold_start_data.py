"""docs/guides/cold_start_data.md: its configs and its commands, at servers that answer and rewrite."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from endpoint_server import EndpointServer
from typer.testing import CliRunner

from r1mega.cli import app
from r1mega.data.review import DECISIONS
from r1mega.data.split import HELD_OUT
from r1mega.recipe.rewrite import Rewrite
from r1mega.rewards.rewriting import R1_FORM
from r1mega.stages.sifting import Outcome

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/cold_start_data.md").read_text(encoding="utf-8")
(QUESTIONS,) = re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL)
TRACES, SET = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
COMMANDS = re.findall(r"^(?:r1mega|sed) .*$", GUIDE, re.M)
TRUTHS = {row["question"]: row["truth"] for row in map(json.loads, QUESTIONS.splitlines())}


def say(body: dict[str, Any]) -> str:
    if body["model"] == "r1-zero":
        (question,) = (question for question in TRUTHS if question in body["prompt"])
        answer = TRUTHS[question]
        return f"<think> I count until I have {answer} , number {body['seed']} </think> <answer> {answer} </answer>"
    said = body["messages"][-1]["content"]
    (question,) = (question for question in TRUTHS if question in said)
    return f"[[reasoning]]\nI count up to it.\n[[summary]]\nIt is <answer>{TRUTHS[question]}</answer>."


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the commands are typed; both servers are one."""
    monkeypatch.setenv("REWRITER_KEY", "k")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    (tmp_path / "my/questions.jsonl").write_text(QUESTIONS, encoding="utf-8")
    (tmp_path / "my/set.toml").write_text(SET, encoding="utf-8")
    with EndpointServer(say) as server:
        traces = re.sub(r"http://127\.0\.0\.1:800[01]/v1", server.url, TRACES)
        (tmp_path / "my/traces.toml").write_text(traces, encoding="utf-8")
        yield tmp_path


def typed(command: str, folder: Path) -> str:
    program, *arguments = shlex.split(command)
    if program == "r1mega" and arguments[0] in ("review", "trace"):  # which start nothing
        here = CliRunner().invoke(app, arguments)
        assert here.exit_code == 0, (here.output, here.exception)
        return here.stdout
    laptop = ["--cluster", str(ROOT / "configs/cluster/laptop.toml")] if arguments[0] in ("check", "run") else []
    line = [program, *arguments] if program == "sed" else [sys.executable, "-m", "r1mega.cli", *arguments, *laptop]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def edit(queue: Path) -> None:
    """As a person would, by hand."""
    lines = rows(queue)
    lines[0] |= {"decision": "edit", "answer": lines[0]["answer"].replace("I count", "Let me count")}
    lines[1] |= {"decision": "reject", "note": "too short"}
    queue.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_the_commands_make_a_set_that_people_have_looked_at(folder: Path):
    check, run, export, accept, back, mix, trace = COMMANDS
    asked = [question for question in TRUTHS if question not in HELD_OUT]
    assert len(asked) > 2
    for command in (check, run, export):
        typed(command, folder)
    shown = json.loads(re.findall(r'^\{"sha256.*$', GUIDE, re.M)[0])
    queue = rows(folder / "queue.jsonl")
    assert len(queue) == len(asked) and list(queue[0]) == list(shown) and queue[0]["reviewer"] == "ann"
    edit(folder / "queue.jsonl")
    typed(accept, folder)
    told = typed(back, folder)
    assert f"  ann: {len(asked) - 2} accepted, 1 edited, 1 rejected, 0 undecided" in told
    typed(mix, folder)
    found = rows(folder / "runs/my/set/conversations.jsonl")
    assert len(found) == len(asked) - 1 == len(rows(folder / "reviewed.jsonl"))
    edited = [row for row in found if "Let me count" in row["messages"][1]["content"]]
    assert len(edited) == 1 and len(rows(folder / "reviewed.rejected.jsonl")) == 1
    assert all("<think>\n" in row["messages"][1]["content"] for row in found)
    listed = re.findall(r"^\| `(\w+\.jsonl?)` \|", GUIDE, re.M)
    assert len(listed) == 5 and set(listed) <= {path.name for path in (folder / "runs/my/traces").iterdir()}
    life = typed(trace, folder)
    for told in ("by ann", "written anew: by endpoint", "answer 0" if "answer 0" in life else "answer 1", "resolves"):
        assert told in life


def test_the_tables_name_what_there_is():
    outcomes = set(re.findall(r"^\| `(rewrite_\w+)` \|", GUIDE, re.M))
    assert outcomes == {name for name in get_args(Outcome) if name.startswith("rewrite_")}
    assert set(re.findall(r"^\| `(accept|edit|reject)` \|", GUIDE, re.M)) == set(DECISIONS)
    assert f"```\n{R1_FORM}\n```" in GUIDE
    defaults = Rewrite()
    assert (defaults.retries, defaults.max_failed, defaults.format) == (2, 0.05, "r1")
    assert "`rewrite.retries` (2)" in GUIDE and "`rewrite.max_failed` (0.05)" in GUIDE
