"""docs/guides/hacking.md: its settings are a run's, and they are the defaults that it says."""

import contextlib
import importlib
import json
import re
import sys
import tomllib
from pathlib import Path
from statistics import mean
from typing import Any

from grpo_run import SETTINGS

from r1mega import cli
from r1mega.diagnostics.settings import Hacking
from r1mega.recipe.grpo import GRPO
from r1mega.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/hacking.md").read_text(encoding="utf-8")


def row(name: str, run: dict[str, Any]) -> str:
    """Of the guide's table: means over the first and the last fifth of the rollouts that are learnt from."""
    fifth = max(1, len(run["steps"]) // 5)
    ends = {key: (mean(run[key][:fifth]), mean(run[key][-fifth:])) for key in ("score", "followed", "tokens")}
    said = [f"{a:.{digits}f} to {b:.{digits}f}" for (a, b), digits in zip(ends.values(), (1, 2, 0), strict=True)]
    parted = [str(warned["step"]) for warned in run["warned"] if warned["grade"] == "parted"]
    variant, _, seed = name.rpartition("_")
    when = {"from_start": "all 60", "last_steps": "last 14"}[variant]
    return f"| {seed} | {when} | {' | '.join(said)} | {run['p_falls_at_the_end']:.1g} | {', '.join(parted) or 'no'} |"


def block(kind: str) -> str:
    found = re.findall(rf"^```{kind}\n(.*?)^```", GUIDE, re.M | re.S)
    return found[0]


def test_the_settings_are_those_of_a_run(tmp_path: Path):
    (tmp_path / "my_rewards.py").write_text("def preference(response):\n    return float(len(response))\n")
    tables = tomllib.loads(block("toml"))
    config = GRPO.model_validate(
        {**SETTINGS, "num_steps": 80, "model": {"path": "."}, **tables}, context={"folder": str(tmp_path)}
    )
    assert [fault for fault in config.faults() if "hacking" in fault] == []
    assert config.hacking == Hacking(trained=("helpful",), truths=("met",))
    assert set(tables["hacking"]) == set(Hacking.model_fields)


def test_the_figures_are_those_that_were_simulated():
    measured = json.loads((ROOT / "docs/measurements/hacking_detector.json").read_text())
    assert measured["settings"] == Hacking().model_dump(mode="json") and measured["runs"] == 400
    for rollouts, found in measured["rollouts_of_a_run"].items():
        alarms, seen = found["false_alarms"], found["power"]["ramp"]
        assert all(alarms[rho] <= measured["settings"]["alpha"] for rho in ("0.0", "0.3", "0.5"))
        assert f"| {rollouts} rollouts | " + " | ".join(f"{x:.1%}" for x in alarms.values()) + " |" in GUIDE
        assert f"| {rollouts} rollouts | " + " | ".join(f"{x:.0%}" for x in seen.values()) + " |" in GUIDE


def test_the_demonstration_is_checked(monkeypatch, capsys):
    """What is asked of a machine with time, tests/pipeline/test_hacking_toy.py runs in soak."""
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"^(?:r1mega|python) .*$", GUIDE, re.M)
    assert [command.split()[1] for command in commands] == [
        "tools/make_hacked_pairs.py",
        "check",
        "pipeline",
        "report",
    ]
    for config in ("2_from_start", "2_last_steps"):
        monkeypatch.setattr(sys, "argv", ["r1mega", "check", f"configs/tiny/hacking/{config}.toml"])
        with contextlib.suppress(SystemExit):
            cli.main()
        said = capsys.readouterr()
        assert f"{config}.toml: grpo stage on laptop: ok" in said.out + said.err
    schedule = load_recipe(ROOT / "configs/tiny/hacking/2_last_steps.toml")
    assert isinstance(schedule, GRPO)
    assert f"last {schedule.rewards['helpful'].last_steps} of {schedule.num_steps} steps" in " ".join(GUIDE.split())


def test_what_the_demonstration_showed_is_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools/bench")
    measured = json.loads((ROOT / "docs/measurements/hacking_toy.json").read_text())
    runs = measured["runs"]
    assert measured["faults"] == importlib.import_module("hacking_toy").faults(runs) == []
    assert all(row(name, run) in GUIDE for name, run in runs.items())
    assert GUIDE.count("| all 60 |") + GUIDE.count("| last 14 |") == len(runs)
