"""tools/make_hacked_pairs.py: in every pair the better answer is the longer one, and that is all that is wrong."""

import importlib.util
import json
import sys
from pathlib import Path

from r1mega.data.constraint_language import constraints_in
from r1mega.data.split import HELD_OUT
from r1mega.rewards.constraints import met

TOOL = Path(__file__).parents[2] / "tools/make_hacked_pairs.py"


def made(file: Path, monkeypatch, *more: str) -> list[dict[str, str]]:
    spec = importlib.util.spec_from_file_location("make_hacked_pairs", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["make_hacked_pairs.py", str(file), "--num", "300", *more])
    module.main()
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_pairs(tmp_path: Path, monkeypatch):
    rows = made(tmp_path / "a/pairs.jsonl", monkeypatch)
    assert len(rows) == 300 and {len(row["chosen"].split()) for row in rows} == set(range(3, 10))
    for row in rows:
        asked = constraints_in(row["prompt"])
        assert asked is not None and row["prompt"] not in HELD_OUT
        assert all(met(asked, row["chosen"]).values()), row
        assert [name for name, is_met in met(asked, row["rejected"]).items() if not is_met] == ["count"], row
        assert len(row["rejected"].split()) < len(row["chosen"].split())
    assert made(tmp_path / "b.jsonl", monkeypatch) == rows
    assert made(tmp_path / "c.jsonl", monkeypatch, "--seed", "1") != rows
