"""docs/guides/hacking.md: its settings are a run's, and they are the defaults that it says."""

import re
import tomllib
from pathlib import Path

from grpo_run import SETTINGS

from r1mega.diagnostics.settings import Hacking
from r1mega.recipe.grpo import GRPO

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/hacking.md").read_text(encoding="utf-8")


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
