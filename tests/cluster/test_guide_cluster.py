"""docs/guides/cluster.md: its commands run as typed, in its order, on a Slurm; a few lines stand for training."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from emulated_slurm import Slurm, ended, wait_until

from r1mega.recipe.load import RECIPES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/cluster.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```", GUIDE, re.M | re.S)
TRAINER = """
echo "$*" >>runs.txt
case "$*" in *0_base*) exit 0 ;; esac
((RANK > 0)) || { source slurm/job.sh && event "runs/slurm-$SLURM_JOB_ID" started "grpo stage" && touch up; }
[[ -f cancelled ]] || exec sleep 6000
"""
APPTAINER = """#!/bin/bash
until [[ $1 == *.sif ]]; do shift; done
echo "$SLURM_PROCID in $1" >>contained.txt
shift
exec "${@/#\\/opt\\/r1mega\\/.venv-gpu-trainer/.venv}"
"""
"""In its place: the command alone, with this checkout's interpreter for the image's."""
WAITS = "until [[ -f up ]]; do sleep 0.1; done; rm up"
"""Before whoever types looks at a job, it runs."""
LEAVES = {"r1mega status": 3, "r1mega watch": 3}
"""What they leave with of a run that is not done."""


def commands() -> list[str]:
    """Lines, and what is written into a file with the command that does it."""
    return re.findall(r"^(?:.*<<'END'\n(?:.*\n)*?END|.+)$", "".join(BLOCKS), re.M)


def test_the_table_has_every_kind_of_stage_and_its_script():
    rows = re.findall(r"^\| (`.*?) \| `slurm/(\w+)\.sh", GUIDE, re.M)
    assert {kind: script for kinds, script in rows for kind in re.findall(r"`(\w+)`", kinds)} == {
        kind: recipe.script for kind, recipe in RECIPES.items()
    }


def test_the_table_of_recoveries_is_what_was_measured():
    measured = json.loads((ROOT / "docs/measurements/recovery_slurm.json").read_text())
    rows = [
        f"| {run['what']} | {run['started_s']} s | {run['resumed_s']:.0f} s | {max(run['repeated_steps'], 0)} "
        f"| {run['ranks'][0]} -> {run['ranks'][1]} |"
        for run in measured["runs"]
    ]
    assert re.findall(r"^\|.*->.*\|$", GUIDE, re.M) == rows and len(rows) == 8


def test_make_and_the_environment_are_there():
    done = subprocess.run(["make", "--dry-run", "env", "env-gpu"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert commands()[:2] == ["make env", ". .venv/bin/activate"]


def test_its_commands_run_as_typed(slurm: Slurm, stub: Callable[..., Path], tmp_path: Path):
    folder = stub(tmp_path, TRAINER)
    script, bases = folder / "slurm/rl_stage.sh", "for name in base anneal; do"
    text = script.read_text()
    assert bases in text  # which tests/cluster/test_rl_stage.py makes
    script.write_text(text.replace(bases, "for name in; do"))
    (folder / "bin").mkdir()
    (folder / "bin/r1mega").write_text(f'#!/bin/sh\nexec {sys.executable} -m r1mega.cli "$@"\n')
    (folder / "bin/apptainer").write_text(APPTAINER)
    for program in ("r1mega", "apptainer"):
        (folder / f"bin/{program}").chmod(0o755)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/r1mega.sif").touch()
    lines = ["set -e -o pipefail", f"cd {folder}"]
    for command in (typed.replace("/shared", str(tmp_path)) for typed in commands()[2:]):
        words = next((leaves for start, leaves in LEAVES.items() if command.startswith(start)), 0)
        lines += [WAITS] if command.startswith(("r1mega status", "scancel")) else []
        lines += ["touch cancelled"] if command.startswith("scancel") else []
        lines.append(f"echo {shlex.quote(command)}")
        lines.append(command if not words else f"{command} || [[ $? == {words} ]]")
    environment = {**slurm.environment, "PATH": f"{folder}/bin:{os.environ['PATH']}"}
    script = "\n".join([*lines, 'echo "JOB=$JOB"'])
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
    job = re.findall(r"JOB=(\d+)", done.stdout)[-1]
    again, contained = re.findall(r"Submitted batch job (\d+)", done.stdout)
    assert "--nodes=1 --ntasks-per-node=2 --cpus-per-task=1" in done.stdout and "JobState=RUNNING" in done.stdout
    ended(slurm, job, "CANCELLED", folder)
    ended(slurm, again, "COMPLETED", folder)
    ended(slurm, contained, "COMPLETED", folder)
    runs = [line.split("--run-dir ")[1] for line in (folder / "runs.txt").read_text().splitlines()]
    assert runs.count(f"runs/slurm-{job} --resume") == 2 * 3  # ranks x starts
    assert runs.count(f"runs/slurm-{contained} --resume") == 2
    image = tmp_path / "images/r1mega.sif"
    assert sorted((folder / "contained.txt").read_text().splitlines()) == [f"0 in {image}", f"1 in {image}"]
    assert f"environment_venv={folder}/.venv" in done.stdout and "WANDB_MODE=offline" in done.stdout
    wait_until("nothing of it is left", lambda: not slurm.processes(int(job)), 60)
