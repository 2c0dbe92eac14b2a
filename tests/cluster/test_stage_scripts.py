"""Every script of slurm/ that a user submits: it runs its own kind of stage, comes back, and refuses another kind."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from emulated_slurm import Slurm, ended, wait_until

from r1mega.recipe.load import RECIPES

sys.path.append(str(Path(__file__).parents[1]))
import rotation

pytestmark = pytest.mark.slow

SCRIPTS = {kind: recipe.script for kind, recipe in RECIPES.items()}
CONFIGS = {
    "pretrain": "configs/tiny/r1_zero/0_base.toml",
    "sft": "configs/tiny/r1/1_cold_start.toml",
    "reward_model": "configs/tiny/r1/helpful_rm.toml",
    "grpo": "configs/tiny/r1/2_reasoning_rl.toml",
    "preferences": "configs/tiny/r1/helpful_pairs.toml",
    "rejection": "configs/tiny/r1/1_zero_traces.toml",
    "mixture": "configs/tiny/r1/1_cold_start_data.toml",
    "evaluate": "configs/tiny/r1_zero/2_eval.toml",
}
RUNS = [(script, kind) for kind, script in SCRIPTS.items()] + [("distill_stage", "sft")]
SOME = rotation.rows("scripts of slurm/, each on a kind of stage", rotating=RUNS, take=2)
TRAINER = """
echo "$*" >>runs.txt
[[ $(wc -l <runs.txt) == 1 ]] || exit 0
[[ ! -f killed ]] || kill -KILL $$
trap 'echo saved; exit 143' TERM USR1
touch up
while true; do sleep 0.1; done
"""
"""A trainer that is killed where there is a file `killed`, and otherwise runs until it is asked to leave, once."""


@pytest.mark.parametrize("script, kind", SOME)
def test_a_script_runs_its_kind_of_stage_and_comes_back(
    slurm: Slurm, stub: Callable[..., Path], tmp_path: Path, script: str, kind: str
):
    """Killed where the stage trains, preempted where it does not."""
    folder = stub(tmp_path, TRAINER)
    trains = kind in ("pretrain", "sft", "reward_model", "grpo")
    if trains:
        (folder / "killed").touch()
    other = next(one for one in SCRIPTS.values() if one != SCRIPTS[kind])
    wrong = slurm.submit(f"slurm/{other}.sh", CONFIGS[kind], "--cluster", "c", cwd=folder)
    job = slurm.submit("--nodes=1", f"slurm/{script}.sh", CONFIGS[kind], "--cluster", "c", cwd=folder)
    if not trains:
        wait_until("the stage runs", (folder / "up").exists, 300)
        node = slurm.job(job)["NodeList"]
        slurm.submit("--partition=high", f"--nodelist={node}", "--exclusive", "--wrap=true", cwd=tmp_path)
    said, printed = ended(slurm, job, "COMPLETED", folder)
    assert said["Restarts"] == "1"
    words = f"-m r1mega.cli run {CONFIGS[kind]} --cluster c --run-dir runs/slurm-{job} --resume\n"
    assert (folder / "runs.txt").read_text() == words * 2
    assert f"{SCRIPTS[kind]}: " in printed and printed.count("saved\n") == (not trains)
    said, printed = ended(slurm, wrong, "FAILED", folder)
    assert (said["ExitCode"], said["Restarts"]) == ("2:0", "0")
    assert f"{CONFIGS[kind]} is a stage for slurm/{SCRIPTS[kind]}.sh: submit that one" in printed
    assert not (folder / f"runs/slurm-{wrong}").exists()
