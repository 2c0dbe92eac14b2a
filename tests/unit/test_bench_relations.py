"""tools/bench/relations.py sets finished chains of several seeds beside each other."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "tools/bench")
    return importlib.import_module("relations")


def write_chain(folder: Path, seed: int, outcomes: dict[str, tuple[str, bool]]) -> Path:
    difference = {"mean": 0.12345, "se": 0.02, "low": 0.08, "high": 0.16}
    part = {"a": "zero", "b": "dev1", "column": "reasoning", "is": "higher", "margin": 0.0, "num_questions": 400}
    relations = [
        {
            "claim": claim, "outcome": outcome, "reversed": is_reversed,
            "parts": [{**part, "holds": outcome == "HOLDS", "reversed": is_reversed, "difference": difference}],
        }
        for claim, (outcome, is_reversed) in outcomes.items()
    ]  # fmt: skip
    cell = {"mean": 0.71234, "se": 0.02, "low": 0.67, "high": 0.75, "num_questions": 400, "num_answers": 800}
    rows = [{"model": "dev1", "label": "R1-Dev1", "weights": "w1", "cells": {"reasoning": cell}}]
    stages = {"rl": {"seconds": 61.26}, "eval": {"seconds": 2.0}}
    for name in stages:
        (folder / name).mkdir(parents=True)
        start = {"seed": seed, "commit": "abc", "versions": {"torch": "2"}, "device": {"machine": "x86_64"}}
        record = {"run": "id", "earlier": [], "start": f"start {seed}", "recipe": "r", "parts": [start, start]}
        (folder / name / "run.json").write_text(json.dumps(record))
    (folder / "rl/outputs.json").write_text(
        json.dumps({"outputs": {"hf": {"digest": "d", "files": ["config.json"]}}})
    )
    whole = {
        "stages": stages, "wall_seconds": 70.0, "relations": relations,
        "table": {"columns": {"reasoning": "Reasoning"}, "rows": rows},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(whole))
    return folder


HOLDS, FAILS, REVERSED = ("HOLDS", False), ("DOES NOT HOLD", False), ("DOES NOT HOLD", True)


def test_three_seeds(tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    claims = [
        {"rises": HOLDS, "falls": REVERSED, "open": FAILS},
        {"rises": HOLDS, "falls": REVERSED, "open": REVERSED},
        {"rises": FAILS, "falls": REVERSED, "open": HOLDS},
    ]
    runs = [str(write_chain(tmp_path / str(seed), seed, of)) for seed, of in enumerate(claims)]
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["relations", *reversed(runs), "--out", str(out), "--note", "a note"])
    tool.main()
    found = json.loads(out.read_text())
    assert found["relations"] == {
        "rises": {"holds_on": [0, 1], "reversed_on": []},
        "falls": {"holds_on": [], "reversed_on": [0, 1, 2]},
        "open": {"holds_on": [2], "reversed_on": [1]},
    }
    assert found["reversed_on_all_seeds"] == ["falls"]
    assert (found["hold"], found["of"], found["note"]) == ({"0": 1, "1": 1, "2": 1}, 3, "a note")
    first = found["chains"][0]
    assert (first["seed"], first["commit"], first["device"]) == (0, "abc", {"machine": "x86_64"})
    assert first["seconds"] == {"rl": 61.3, "eval": 2.0} and first["starts"] == {"rl": 2, "eval": 2}
    assert first["digests"]["rl"] == {"start": "start 0", "recipe": "r", "hf": "d"}
    assert first["table"] == {"R1-Dev1": {"weights": "w1", "Reasoning": [0.7123, 0.67, 0.75, 400]}}
    assert first["relations"]["rises"]["parts"][0]["difference"] == [0.1235, 0.08, 0.16]
    assert "reversed on all seeds: falls" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seeds", "second", "said"),
    [
        ((0, 0), {"rises": HOLDS}, "two of the chains are of seed 0"),
        ((0, 1), {"sinks": HOLDS}, "seeds 0 and 1 do not claim the same: 'rises'"),
        ((0, 1), {}, "no relations in it"),
        ((0, None), {}, "give the run directories of finished chains"),
    ],
)
def test_what_cannot_be_set_beside_each_other_is_refused(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    seeds: tuple[int, int | None], second: dict[str, Any], said: str,
):  # fmt: skip
    runs = [write_chain(tmp_path / "0", 0, {"rises": HOLDS}), tmp_path / "1"]
    if seeds[1] is not None:
        write_chain(tmp_path / "1", seeds[1], second)
    monkeypatch.setattr(sys, "argv", ["relations", *map(str, runs), "--out", str(tmp_path / "out.json")])
    with pytest.raises(SystemExit) as left:
        tool.main()
    assert left.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
