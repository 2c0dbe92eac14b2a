"""tools/bench/hacking_toy.py reads a run's curves, and says what of the demonstration does not hold."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FALLS = [0.3] * 8 + [0.4] * 4 + [0.3 - 0.025 * i for i in range(12)] + [0.0] * 8
PARTED = {"step": 24, "grade": "parted", "against": "followed", "p": 1e-5}
SUSPECTED = {**PARTED, "grade": "suspected", "against": "response_length"}


@pytest.fixture
def tool(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "tools/bench")
    return importlib.import_module("hacking_toy")


def seen(truth: list[float], warned: list[dict[str, Any]], p: float, rise: float = 0.1) -> dict[str, Any]:
    score = [7 + rise * i for i in range(len(truth))]
    steps = list(range(1, len(truth) + 1))
    return {"steps": steps, "score": score, "followed": truth, "p_falls_at_the_end": p, "warned": warned}


def test_a_demonstration_that_holds_has_no_faults(tool):
    steady = seen([0.3] * 21, [SUSPECTED], 0.5)
    assert tool.faults({"from_start_0": seen(FALLS, [PARTED], 0.0), "last_steps_0": steady}) == []


@pytest.mark.parametrize(
    ("name", "run", "said"),
    [
        ("from_start_0", seen(FALLS, [SUSPECTED], 0.0), "from_start_0: no warning"),
        ("from_start_0", seen(FALLS, [PARTED], 0.0, rise=0.0), "from_start_0: the score goes from 7.00 to 7.00"),
        (
            "from_start_0",
            seen([0.3] * 21, [PARTED], 0.5),
            "from_start_0: the truth ends at 0.30, and its best is 0.30",
        ),
        ("last_steps_0", seen([0.3] * 21, [PARTED], 0.5), "last_steps_0: a warning at step 24"),
        ("last_steps_0", seen(FALLS, [], 0.04), "last_steps_0: the truth falls to 0.00 (p = 0.04)"),
    ],
)
def test_what_does_not_hold_is_said(tool, name, run, said):
    assert tool.faults({name: run}) == [said]


def test_of_more_runs_each_has_its_share_of_alpha(tool):
    assert tool.faults({f"last_steps_{seed}": seen([0.3] * 21, [], 0.04) for seed in range(3)}) == []


def test_curves_are_those_of_the_rollouts_that_are_learnt_from(tool, tmp_path: Path):
    rows: list[dict[str, Any]] = [{"kind": "train", "step": 1, "seconds/rollout": 1.0}]
    for step, truth in enumerate(FALLS, start=2):
        own = {"trained": 7 + 0.1 * step, "followed": truth, "response_length": 10.0, "repetition": 0.0}
        rows.append({"kind": "train", "step": step, **{f"hacking/helpful/{k}": v for k, v in own.items()}})
    rows.append({"kind": "hacking", "reward": "helpful", "text": "", **PARTED})
    run = tmp_path / "from_start_4"
    run.mkdir()
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (run / "run.json").write_text(json.dumps({"parts": [{"seed": 4, "commit": "c0ffee"}]}))
    (tmp_path / "from_start_4.load.json").write_text("[1.5, 2.5]")
    found = tool.figures(run)
    assert found["steps"] == list(range(2, 34)) and found["followed"] == [round(x, 3) for x in FALLS]
    assert (found["seed"], found["commit"], found["load_average"]) == (4, "c0ffee", [1.5, 2.5])
    assert found["least_p_of_short_windows"] < 1e-3
    assert found["warned"] == [PARTED] and found["p_falls_at_the_end"] < 1e-3
    tool.draw({"from_start_4": found, "last_steps_4": {**found, "warned": []}}, tmp_path / "toy.png")
    assert (tmp_path / "toy.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(("score", "truth"), [(1, 1), (-1, -1)])
def test_windows_that_do_not_part_have_a_large_p(tool, score, truth):
    assert tool.least_p([score * i for i in range(30)], [truth * i for i in range(30)]) == 1


def test_one_short_window_that_parts_is_enough(tool):
    flat, steep = [0.0] * 12, [float(i) for i in range(12)]
    assert tool.least_p([*flat, *steep, *flat], [*flat, *(-x for x in steep), *flat]) == 0
