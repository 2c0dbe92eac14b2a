"""docs/guides/judge.md: its entries are taken, its commands run, and its figures are right."""

import contextlib
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from check_and_run import Started, stop_at_start, write_model

from r1mega import cli
from r1mega.recipe.load import load_recipe
from r1mega.rewards.callers import connected
from r1mega.rewards.judge import Judge
from r1mega.rewards.served_reward_model import ServedRewardModel

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/judge.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^r1mega .*$", GUIDE, re.M)
(SERVER,) = re.findall(r"^python .*$", GUIDE, re.M)
JUDGE, TONE, SERVED = re.findall(r"^```toml\n# configs/tiny/r1_zero/1_rl.toml\n(.*?)^```", GUIDE, re.M | re.S)
(ROWS,) = re.findall(r"^```jsonl\n(.*?)^```", GUIDE, re.M | re.S)
CONFIG = "configs/tiny/r1_zero/1_rl.toml"
PORT = "8100"
FITTING = (
    "batch.chunk_tokens=1024", "prompt.template=r1_zero", "rollout.num_prompts=4", "questions.0.num=60",
    "evaluation.questions.0.num=10",
)  # fmt: skip
"""The model of this test has a token a byte and no special ones."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Of the guide's server, at a port that is free."""
    assert f"--port {PORT}" in SERVER
    command = [sys.executable, *shlex.split(SERVER.replace(f"--port {PORT}", "--port 0"))[1:]]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = server.stdout.readline()
        assert said.startswith("rule-judge (equal) at http://127.0.0.1:")
        try:
            yield said.split()[-1]
        finally:
            server.kill()


@pytest.fixture
def folder(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the guide's entries, the model to start from, and the rows."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    entries = "\n".join((JUDGE, TONE, SERVED)).replace(f"http://127.0.0.1:{PORT}/v1", url)
    with (tmp_path / CONFIG).open("a") as file:
        file.write("\n" + entries)
    (tmp_path / "answers.jsonl").write_text(ROWS)
    out = tmp_path / "runs/tiny/r1_zero/demo/anneal/hf"
    out.mkdir(parents=True)
    write_model(out)
    stop_at_start(monkeypatch, tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said_by(command: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> tuple[int, str, str]:
    fitting = [] if "score" in command else [part for setting in FITTING for part in ("--set", setting)]
    monkeypatch.setattr(sys, "argv", [*shlex.split(command), *fitting])
    code = 0
    with contextlib.suppress(Started):
        try:
            cli.main()
        except SystemExit as left:
            code = int(left.code or 0)
    out, error = capsys.readouterr()
    return code, out, error


def test_the_commands_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    assert [command.split()[1] for command in COMMANDS] == ["check", "score", "run"]
    for command in COMMANDS:
        code, out, error = said_by(command, monkeypatch, capsys)
        assert code == 0, error
        if "score" in command:
            right, wrong, open_, summary = (json.loads(line) for line in out.splitlines())
            assert [row["parts"]["judge"] for row in (right, wrong, open_)] == [1.0, 0.0, 0.0]
            assert "By rule. [[right]]" in right["reason"] and "there is no summary in it" in open_["reason"]
            assert summary["summary"]["scored"] == 3


def test_check_wants_the_key_that_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    (folder / CONFIG).write_text(
        (folder / CONFIG).read_text().replace("budget_requests = 100_000", 'api_key_env = "JUDGE_KEY"')
    )
    _, out, error = said_by(COMMANDS[0], monkeypatch, capsys)
    wanted = "rewards.judge.endpoint.api_key_env: the environment variable JUDGE_KEY is not set"
    assert wanted in out + error
    for command in COMMANDS[1:]:
        code, _, error = said_by(command, monkeypatch, capsys)
        assert code == 2 and wanted in error and "Traceback" not in error


def test_a_row_without_its_question_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    (folder / "answers.jsonl").write_text('{"id": 1, "response": "2", "answer": "2"}\n')
    code, _, error = said_by(COMMANDS[1], monkeypatch, capsys)
    assert code == 2 and "answers.jsonl, line 1: question is missing, and rewards.judge sends it" in error


def test_a_faulty_endpoint_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    config = folder / CONFIG
    config.write_text(config.read_text().replace('model = "rule-judge"\nbudget', 'modell = "rule-judge"\nbudget'))
    code, _, error = said_by(COMMANDS[0], monkeypatch, capsys)
    assert code == 2 and "rewards.judge" in error and "model" in error and "Traceback" not in error


def test_the_entries_are_what_they_are_said_to_be(folder: Path):
    rewards: Any = load_recipe(folder / CONFIG, list(FITTING)).rewards  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(rewards["judge"], Judge) and rewards["judge"].needs_truth
    assert isinstance(rewards["tone"], Judge) and not rewards["tone"].needs_truth
    assert isinstance(rewards["helpful"], ServedRewardModel)
    with connected(rewards, None) as callers:
        assert set(callers) == {"judge", "tone", "helpful"}
        logged = ("asked", "cached", "unreadable", "tried_again", "given_up", "tokens")
        assert set(callers.take_figures()) == {f"judging/{name}" for name in logged}
        assert all(f"`{name}`" in GUIDE for name in logged[1:])


def test_what_independent_orders_keep_of_a_judge_that_takes_the_first():
    """All 16 orders of four votes, each 3 for the first: the mean gap and how often it is so large."""
    gaps = [abs(sum(3 if first else -3 for first in orders)) / 4 for orders in itertools.product((0, 1), repeat=4)]
    assert (gaps.count(3.0) / 16, gaps.count(1.5) / 16) == (1 / 8, 1 / 2)
    assert "one in eight, whose\n  four orders are alike, has gap 3 and one in two gap 1.5" in GUIDE
