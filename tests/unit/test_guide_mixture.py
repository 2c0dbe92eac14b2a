"""docs/guides/mixture.md: its config, its commands and its tables."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from mixture_run import card, plain, read, sampled, set_of, write

from r1mega.data.settings import SFTData
from r1mega.pipeline.graph import Node
from r1mega.stages.mixture_choice import OUTCOMES

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/mixture.md").read_text(encoding="utf-8")
CONFIG, REVIEW, SFT_DATA = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
COMMANDS = re.findall(r"^r1mega .*$", GUIDE, re.M)
CHECK, RUN, EXPORT = COMMANDS
LAPTOP = str(ROOT / "configs/cluster/laptop.toml")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands are typed."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(tmp_path / "my/traces/rows.jsonl", [sampled(f"Q{i // 3}", f"A{i}") for i in range(9)])
    write(tmp_path / "my/chat.jsonl", [plain(f"Hello {i}", "Hi") for i in range(5)])
    write(tmp_path / "my/evaluation.jsonl", [{"question": "one two three four five six seven eight nine ten"}])
    (tmp_path / "my/set.toml").write_text(CONFIG, encoding="utf-8")
    return tmp_path


def typed(command: str, folder: Path) -> str:
    _, *arguments = shlex.split(command)
    cluster = [] if "review" in arguments else ["--cluster", LAPTOP]
    done = subprocess.run(
        [sys.executable, "-m", "r1mega.cli", *arguments, *cluster], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_set_is_made(folder: Path):
    assert "3 one answer too many to their question and left out" in typed(CHECK, folder)
    typed(RUN, folder)
    rows = set_of(folder / "runs/my/set")
    assert [sum("imported" in row["provenance"] for row in rows), len(rows)] == [2, 8]
    named = set(re.findall(r"`(\w+\.(?:jsonl|json|md))`", GUIDE.split("| file | what |")[1].split("\n\n")[0]))
    assert named == {
        "conversations.jsonl", "card.md", "card.json", "decisions.jsonl", "rejected.jsonl", "contaminated.jsonl",
    }  # fmt: skip
    assert all((folder / "runs/my/set" / name).is_file() for name in named)


def test_people_s_decisions_are_applied(folder: Path):
    typed(EXPORT, folder)
    queue = read(folder / "my/queue.jsonl")
    queue[0]["decision"], queue[1] = "reject", {**queue[1], "decision": "edit", "answer": "Mended."}
    write(folder / "my/queue.jsonl", queue)
    (folder / "my/set.toml").write_text(REVIEW + CONFIG, encoding="utf-8")
    typed(RUN + " --set max_per_question=0", folder)
    assert card(folder / "runs/my/set")["outcomes"]["rejected"] == 1
    assert "Mended." in (folder / "runs/my/set/conversations.jsonl").read_text()


def test_outcomes_are_those_that_there_are():
    told = GUIDE.split("| outcome | why |")[1].split("\n\n")[0]
    first = [line.split("|")[1] for line in told.strip().splitlines()[1:]]
    assert sorted(name for cell in first for name in re.findall(r"`(\w+)`", cell)) == sorted(OUTCOMES)


def test_what_it_says_of_other_stages_can_be_set():
    import tomllib

    SFTData.model_validate({**tomllib.loads(SFT_DATA)["data"], "max_tokens": 1}, context={"folder": "/my"})
    reads = re.findall(r"`reads = (\{.*?\})`", GUIDE)
    assert len(reads) == 2
    for one in reads:
        table = tomllib.loads(f"reads = {one}")["reads"]
        Node.model_validate({"name": "a", "config": "b.toml", "reads": table}, context={"folder": "/"})
        assert json.dumps(table)
