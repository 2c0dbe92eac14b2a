"""docs/guides/rejection.md: its config, its questions and its commands, at a server that answers."""

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
from preference_run import rows

from r1mega.data.conversations import Source
from r1mega.data.split import HELD_OUT
from r1mega.recipe.load import load_recipe
from r1mega.rewards.filters import Filters
from r1mega.stages.sampled_answers import BLOCK
from r1mega.stages.sifting import Outcome

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/rejection.md").read_text(encoding="utf-8")
QUESTIONS, SHOTS = re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL)
CONFIG, JUDGE, THINKING, EXAMPLES = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
COMMANDS = re.findall(r"^r1mega .*$", GUIDE, re.M)
LAPTOP = str(ROOT / "configs/cluster/laptop.toml")


def say(body: dict[str, Any]) -> str:
    """Right, or one off, by the seed."""
    a, b = map(int, re.findall(r"\d+", body["messages"][-1]["content"]))
    thought = f"<think>\nI add {b} to {a}, in my way number {body['seed']}.\n</think>\n\n"
    return f"{thought}It is \\boxed{{{a + b + body['seed'] % 2}}}."


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the commands are typed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "my").mkdir()
    (tmp_path / "my/questions.jsonl").write_text(QUESTIONS, encoding="utf-8")
    (tmp_path / "my/shots.jsonl").write_text(SHOTS, encoding="utf-8")
    with EndpointServer(say) as server:
        config = CONFIG.replace("http://127.0.0.1:8000/v1", server.url)
        (tmp_path / "my/rejection.toml").write_text(config + "\n" + EXAMPLES, encoding="utf-8")
        yield tmp_path


def typed(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "r1mega.cli", *shlex.split(command)[1:], "--cluster", LAPTOP], cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip


def test_the_commands_make_rows_that_sft_reads(folder: Path):
    assert [command.split()[1] for command in COMMANDS] == ["check", "run"]
    for command in COMMANDS:
        done = typed(command, folder)
        assert done.returncode == 0, done.stderr
    run = folder / "runs/my/rejection"
    listed = re.findall(r"^\| `(\w+\.(?:jsonl|json|html))` \|", GUIDE, re.M)
    assert len(listed) == 4 and set(listed) <= {path.name for path in run.iterdir()}
    asked = {json.loads(line)["question"] for line in QUESTIONS.splitlines()} - {
        json.loads(line)["question"] for line in QUESTIONS.splitlines() if json.loads(line)["question"] in HELD_OUT
    }
    found = rows(run, "rows.jsonl")
    assert {row["messages"][0]["content"] for row in found} == asked and len(asked) > 1
    for row in found:
        a, b = map(int, re.findall(r"\d+", row["messages"][0]["content"]))
        assert row["messages"][1]["content"].endswith(f"It is \\boxed{{{a + b}}}.")
    read = list(Source([run / "rows.jsonl"], "", "train"))
    assert [one.messages for one in read] == [tuple(row["messages"]) for row in found]
    assert "One and one more" in found[0]["provenance"]["policy"]["asked_as"]


def test_the_tables_name_what_there_is(folder: Path):
    order = re.findall(
        r"`(\w+)`",
        "".join(
            re.findall(
                r"^\| (`\w+`(?: `\w+`)*) \| \D", GUIDE[GUIDE.index("| outcome |") : GUIDE.index("## Filters")], re.M
            )
        ),
    )
    assert tuple(order) == (*get_args(Outcome)[1:], "kept")
    defaults = {name: value for name, value, _ in re.findall(r"^\| `(\w+)` \| (\S+) \| (\S+) \|$", GUIDE, re.M)}
    off = {name: value for name, _, value in re.findall(r"^\| `(\w+)` \| (\S+) \| (\S+) \|$", GUIDE, re.M)}
    settings = Filters().model_dump()
    assert settings.pop("language") == "en" and {n: f"{v}" for n, v in settings.items()} == defaults
    assert (
        Filters.model_validate({n: v if n == "code_blocks" else float(v) for n, v in off.items()}).measure(
            "a", 1, 1.0, ""
        )
        == {}
    )
    assert f"{BLOCK:,}" in GUIDE
    whole = (folder / "my/rejection.toml").read_text() + "\n" + JUDGE + "\n" + THINKING
    (folder / "my/whole.toml").write_text(whole)
    recipe: Any = load_recipe(folder / "my/whole.toml")
    assert recipe.thinking.simple_words == 3 and recipe.verify.judge.endpoint.model == "judge"
