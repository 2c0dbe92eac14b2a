"""docs/guides/preferences.md: its config, its questions and its commands, at servers that answer and judge."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from endpoint_server import EndpointServer
from preference_run import made, rows, say

from r1mega.data.length_balance import Balance
from r1mega.data.pairing import Choose
from r1mega.data.split import HELD_OUT
from r1mega.pipeline.graph import handed_over, load_pipeline
from r1mega.recipe.load import load_recipe
from r1mega.recipe.preferences import JudgedBy
from r1mega.stages.preference_rows import Outcome

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/preferences.md").read_text(encoding="utf-8")
(ROWS,) = re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL)
PAIRS, SAFETY, *CHAIN = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
COMMANDS = re.findall(r"^r1mega .*$", GUIDE, re.M)
LAPTOP = str(ROOT / "configs/cluster/laptop.toml")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the commands are typed; both servers are one."""
    monkeypatch.setenv("JUDGE_KEY", "k")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    (tmp_path / "my/questions.jsonl").write_text(ROWS, encoding="utf-8")
    with EndpointServer(say) as server:
        pairs = re.sub(r"http://127\.0\.0\.1:800[01]/v1", server.url, PAIRS)
        (tmp_path / "my/pairs.toml").write_text(pairs, encoding="utf-8")
        (tmp_path / "my/safety.toml").write_text(_safety(pairs), encoding="utf-8")
        yield tmp_path


def _safety(pairs: str) -> str:
    """The config with what the guide says is different."""
    top, table = SAFETY.split("\n\n")
    text = pairs.replace('stage = "preferences"', 'stage = "preferences"\n' + top.splitlines()[-1])
    return re.sub(r"\[pairs\]\n(\w.*\n)+", table, text)


def typed(command: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    _, *arguments = shlex.split(command)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "r1mega.cli", *arguments, "--cluster", LAPTOP, *more], cwd=folder, env=environment,
        capture_output=True, text=True,
    )  # fmt: skip


def test_the_commands_make_pairs_and_labels(folder: Path):
    assert [command.split()[1] for command in COMMANDS][:3] == ["check", "run", "run"]
    questions = [json.loads(line)["question"] for line in ROWS.splitlines()]
    for command in COMMANDS[:3]:
        done = typed(command, folder)
        assert done.returncode == 0, done.stderr
    pairs, labelled = rows(folder / "runs/my/pairs", "pairs.jsonl"), rows(folder / "runs/my/safety", "labelled.jsonl")
    asked = [q for q in questions if q not in HELD_OUT]
    assert len(asked) > 1 and {row["prompt"] for row in [*pairs, *labelled]} <= set(asked) and pairs and labelled
    assert made(folder / "runs/my/pairs")["counts"]["pairs"] == len(pairs)
    listed = re.findall(r"^\| `(\w+\.(?:jsonl|json|html))` \|", GUIDE, re.M)
    there = {path.name for run in ("pairs", "safety") for path in (folder / "runs/my" / run).iterdir()}
    assert len(listed) == 5 and set(listed) <= there
    for row, of in ((pairs[0], "pairs.jsonl"), (labelled[0], "labelled.jsonl")):
        (told,) = re.findall(rf"^\| `{of}` \|(.*)\|$", GUIDE, re.M)
        assert set(re.findall(r"`(\w+)`", told)) - {"label"} == row.keys()


def test_the_tables_name_what_there_is(folder: Path):
    assert set(re.findall(r"^\| `(\w+)` \|", GUIDE, re.M)) == {*get_args(Choose), *get_args(Balance)}
    counted = GUIDE[GUIDE.index("## Left out") : GUIDE.index("## Safe or unsafe")]
    reasons = {"truncated", "no_summary", "equal", "no_pair", *get_args(Outcome)} - {"kept"}
    assert reasons <= set(re.findall(r"`(\w+)`", counted))
    fields = type(load_recipe(folder / "my/pairs.toml")).model_fields
    defaults = {name: fields["pairs"].default.model_dump()[name] for name in ("votes", "min_gap", "length_step")}
    assert defaults == {"votes": 4, "min_gap": 1.0, "length_step": 1.25}
    assert "`votes` judgements (4)" in GUIDE and "`min_gap` (1)" in GUIDE and "`length_step` (1.25)" in GUIDE
    assert fields["pairs"].default.retries == 2 and f"({JudgedBy().max_failed})" in counted


def test_pairs_and_reward_model_are_one_chain(folder: Path):
    """What is missing is the reward model's weights alone, not the pairs that the first stage makes."""
    guide = (ROOT / "docs/guides/reward_model.md").read_text(encoding="utf-8")
    (own,) = (text for text in re.findall(r"```toml\n(.*?)```", guide, re.DOTALL) if text.startswith("# own_rm"))
    (folder / "my/reward_model.toml").write_text(own, encoding="utf-8")
    (chain,) = CHAIN
    (folder / "my/chain.toml").write_text(chain, encoding="utf-8")
    check, run = COMMANDS[3:]
    done = typed(check, folder)
    assert done.returncode == 0 and "2 stages" in done.stdout, done.stderr
    assert "model.path" in done.stderr and "data.files" not in done.stderr
    done = typed(run, folder)
    assert done.returncode == 2 and "model.path" in done.stderr and "data.files" not in done.stderr
    loaded = load_pipeline(folder / "my/chain.toml")
    (told,) = handed_over(loaded.stages[1], folder / "runs/my/chain")
    assert told == f'data.files=["{folder}/runs/my/chain/pairs/pairs.jsonl"]'
    (folder / "my/chain.toml").write_text(chain.replace("pairs/pairs.jsonl", "pairs/pair.jsonl"), encoding="utf-8")
    done = typed(check, folder)
    assert done.returncode == 2 and "stage pairs leaves pairs.jsonl behind (did you mean" in done.stderr
