"""docs/guides/watching.md, of W&B: its settings are settings, and its commands send a chain's runs."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from test_runtime_wandb import CONFIG, alone, begin, take_steps
from wandb_server import recording

from r1mega.config.watching import Wandb
from r1mega.runtime.events import Events
from r1mega.runtime.mirror import mirrored

__all__ = ["alone"]  # a fixture

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/watching.md").read_text(encoding="utf-8").partition("## At W&B")[2]
(SETTINGS,) = re.findall(r"^```toml\n(.*?)^```", GUIDE, re.M | re.S)
COMMANDS = [line for block in re.findall(r"^```bash\n(.*?)^```", GUIDE, re.M | re.S) for line in block.splitlines()]
CHAIN = "runs/r1/pipeline"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a chain that is done, and an sbatch that runs a copy of what it is given at once, as Slurm does."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("slurm", "r1mega"):
        (checkout / name).symlink_to(ROOT / name)
    begin(checkout / CHAIN / "r1_zero")
    with mirrored(checkout / CHAIN / "r1_zero", Wandb(mode="offline"), CONFIG) as shown:
        take_steps(checkout / CHAIN / "r1_zero", range(1, 3), shown=shown)
    Events(checkout / CHAIN / "r1_zero").say("finished", "grpo stage")
    (checkout / CHAIN / "summary.json").write_text("{}")
    (part,) = checkout.glob(f"{CHAIN}/r1_zero/wandb/offline-*/*.wandb")
    os.utime(part, (1e9, 1e9))  # whole since long ago
    (checkout / "bin").mkdir()
    sbatch = f'shift; cp "$1" {checkout}/slurm_script; shift; SLURM_JOB_ID=7 exec bash {checkout}/slurm_script "$@"\n'
    for name, does in {"sbatch": sbatch, "wandb": f'exec {sys.executable} -m wandb "$@"\n'}.items():
        (checkout / "bin" / name).write_text(f"#!/bin/bash\n{does}")
        (checkout / "bin" / name).chmod(0o755)
    return checkout


def test_its_settings_are_settings():
    assert Wandb.model_validate(tomllib.loads(SETTINGS)["wandb"]).tags == ("ablation",)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_guide_sends_the_chain(command: str, checkout: Path):
    for mark in checkout.glob(f"{CHAIN}/r1_zero/wandb/offline-*/*.sync*"):
        mark.unlink()
    own = {"PATH": f"{checkout}/bin:{os.environ['PATH']}", "R1MEGA_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    with recording() as server:
        environment = os.environ | server.environment | own
        done = subprocess.run(
            command, shell=True, cwd=checkout, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        assert [row["step"] for row in server.rows if row["kind"] == "train"] == [1, 2]


def test_it_speaks_of_what_there_is():
    assert shutil.which("bash") and all((ROOT / word).exists() for word in re.findall(r"slurm/\w+\.sh", GUIDE))
    named = set(re.findall(r"^(\w+) = ", SETTINGS, re.M))
    assert named | {"group"} == set(Wandb.model_fields)
