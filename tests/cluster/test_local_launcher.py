"""launchers/local.py: a stage on this machine that comes back after a crash, as slurm/rl_stage.sh does on Slurm."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "pipeline"))
from holding import hold_after_step

ROOT = Path(__file__).parents[2]
SETTINGS = ("num_steps=8", "documents_per_step=16", "data.num_documents=400", "optimizer.warmup_steps=2",
            "save.every_steps=2", "wandb.mode=disabled")  # fmt: skip
BASE = ["configs/tiny/r1_zero/0_base.toml", *(word for setting in SETTINGS for word in ("--set", setting))]


def launch(*arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "launchers/local.py", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def children(pid: int) -> list[int]:
    """What a guarded process runs, in the order of their start: its children are their guards."""
    guards = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(run) for guard in guards for run in Path(f"/proc/{guard}/task/{guard}/children").read_text().split()]


def steps(run_dir: Path) -> list[int]:
    file = run_dir / "metrics.jsonl"
    return [json.loads(line)["step"] for line in file.read_text().split("\n")[:-1]] if file.exists() else []


def wait_for(held: Path, launcher: subprocess.Popen[str]) -> None:
    while not held.exists():
        assert launcher.poll() is None, launcher.communicate()[0]
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["laptop", "laptop2"])
def test_a_killed_run_is_started_again_and_goes_on(tmp_path: Path, cluster: str):
    run_dir = tmp_path / "run"
    held, environment = hold_after_step(3, tmp_path)
    launcher = launch(*BASE, "--cluster", cluster, "--run-dir", str(run_dir), env=environment)
    wait_for(held, launcher)
    (run,) = children(launcher.pid)
    os.kill(run if cluster == "laptop" else children(run)[1], signal.SIGKILL)  # laptop2: rank 1 of two
    held.unlink()
    printed = launcher.communicate()[0]
    assert launcher.returncode == 0, printed
    assert printed.count("local: exit code 137; restart 1 of at most 10") == 1
    assert steps(run_dir) == list(range(1, 9))


@pytest.mark.slow
def test_a_run_that_is_told_to_leave_saves_and_stays_away(tmp_path: Path):
    run_dir = tmp_path / "run"
    held, environment = hold_after_step(1, tmp_path)
    launcher = launch(*BASE, "--run-dir", str(run_dir), env=environment)
    wait_for(held, launcher)
    launcher.send_signal(signal.SIGTERM)
    printed = launcher.communicate()[0]
    assert launcher.returncode == 128 + signal.SIGTERM, printed
    assert printed.count("stopping after this step") == 1 and "restart" not in printed
    last = steps(run_dir)[-1]
    assert last < 8 and (run_dir / f"checkpoints/step_{last}").is_dir()


def test_a_mistake_is_told_once(tmp_path: Path):
    launcher = launch(*BASE, "--run-dir", str(tmp_path), "--set", "numsteps=8")
    printed = launcher.communicate()[0]
    assert launcher.returncode == 2
    assert printed.count("did you mean 'num_steps'") == 1 and "restart" not in printed


def test_gives_up_after_the_restarts_it_was_given(tmp_path: Path):
    """A run that dies at once, whatever it is given: its interpreter is told to kill itself."""
    (tmp_path / "sitecustomize.py").write_text("import os, sys\nif 'run' in sys.orig_argv: os.kill(os.getpid(), 9)\n")
    command = [sys.executable, str(ROOT / "launchers/local.py"), "no.toml", "--max-restarts", "1"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 137
    assert done.stderr.splitlines() == [
        "local: exit code 137; restart 1 of at most 1",
        "local: exit code 137 after 1 restarts: given up",
    ]
