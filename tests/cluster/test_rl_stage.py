"""`sbatch slurm/rl_stage.sh` with the real trainer and the real vLLM server, each on a node of its own."""

import json
import os
import signal
from pathlib import Path

import pytest
from emulated_slurm import Slurm, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(3600)]

SCRIPT = "slurm/rl_stage.sh"
BASE = Path("runs/tiny/r1_zero/demo/base")
TRAINER, SERVER = "r1mega.cli", "vllm.entrypoints.openai.api_server"
START_S = 1500
"""Bound on one start of trainer and server, on a busy machine."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, make_checkout) -> Path:
    return make_checkout(tmp_path_factory.mktemp("real") / "checkout")


def steps(run_dir: Path) -> list[int]:
    """The optimiser steps in metrics.jsonl, in the order of its lines."""
    file = run_dir / "metrics.jsonl"
    # The last line may be half written.
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [row["step"] for row in map(json.loads, lines) if row["kind"] == "train"]


def wait_for_step(slurm: Slurm, job: int, run_dir: Path, step: int) -> None:
    def reached() -> bool:
        assert slurm.job(job)["JobState"] not in ("COMPLETED", "FAILED", "TIMEOUT"), output(run_dir, job)
        return step in steps(run_dir)

    wait_until(f"step {step} of job {job}", reached, START_S)


def wait_until_done(slurm: Slurm, job: int, run_dir: Path) -> dict[str, str]:
    said = slurm.wait_for_state(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", timeout_s=START_S)
    assert said["JobState"] == "COMPLETED", output(run_dir, job)
    return said


def output(run_dir: Path, job: int) -> str:
    """What the job has printed; run_dir is runs/slurm-N of a checkout."""
    return (run_dir.parents[1] / f"slurm-{job}.out").read_text()


def processes(slurm: Slurm, job: int, module: str) -> dict[int, str]:
    """{process id: node} of the job's Python processes that run `module`."""
    found = slurm.processes(job).items()
    return {pid: node for pid, (node, command) in found if command.split()[1:3] == ["-m", module]}


def test_default_run_trains_on_one_node_and_samples_on_the_other(slurm: Slurm, checkout: Path):
    job = slurm.submit(SCRIPT, cwd=checkout)
    run_dir = checkout / f"runs/slurm-{job}"
    wait_for_step(slurm, job, run_dir, 1)
    first, second, _ = slurm.nodes
    assert set(processes(slurm, job, TRAINER).values()) == {first}
    assert set(processes(slurm, job, SERVER).values()) == {second}
    said = wait_until_done(slurm, job, run_dir)
    assert said["Restarts"] == "0" and said["NumNodes"] == "2"
    assert steps(checkout / BASE) == list(range(1, 9))  # the base was not there
    assert steps(run_dir) == [1, 2, 3, 4]
    for name in ("summary.json", "hf/model.safetensors", "samples/step_0.jsonl"):
        assert (run_dir / name).is_file(), name
    wait_until("the job's processes are gone", lambda: not slurm.processes(job), 300)


def longer(slurm: Slurm, checkout: Path) -> tuple[int, Path]:
    """A job of two trainer ranks whose run is long enough to be disturbed, and its run directory."""
    assert (checkout / BASE / "hf").is_dir(), "the first test makes the base"
    settings = ["num_steps=16", "save.every_steps=2", "evaluation.every_steps=16"]
    sets = [word for setting in settings for word in ("--set", setting)]
    job = slurm.submit(SCRIPT, "--cluster", "laptop2", *sets, cwd=checkout)
    return job, checkout / f"runs/slurm-{job}"


def test_a_preempted_run_comes_back_and_goes_on(slurm: Slurm, checkout: Path, tmp_path: Path):
    job, run_dir = longer(slurm, checkout)
    wait_for_step(slurm, job, run_dir, 4)
    slurm.submit("--partition=high", "--nodes=3", "--exclusive", "--wrap=true", cwd=tmp_path)
    said = wait_until_done(slurm, job, run_dir)
    assert said["Restarts"] == "1"
    printed = output(run_dir, job)
    if slurm.proctrack == "cgroup":  # otherwise Slurm's SIGTERM takes the server from a trainer that is saving
        assert "preempted (exit code 143): requeued" in printed
    assert "resumed from" in printed
    assert steps(run_dir) == list(range(1, 17))


def test_a_run_of_which_a_rank_was_killed_comes_back_and_goes_on(slurm: Slurm, checkout: Path):
    job, run_dir = longer(slurm, checkout)
    wait_for_step(slurm, job, run_dir, 4)
    os.kill(max(processes(slurm, job, TRAINER)), signal.SIGKILL)  # either: the other one then fails as well
    said = wait_until_done(slurm, job, run_dir)
    assert said["Restarts"] == "1"
    printed = output(run_dir, job)
    assert "crash 1 of at most 10 (exit code 137): requeued" in printed
    assert "resumed from" in printed
    assert steps(run_dir) == list(range(1, 17))


def test_two_ranks_train_on_two_nodes(slurm: Slurm, checkout: Path):
    job = slurm.submit("--nodes=3", SCRIPT, "configs/tiny/r1_zero/0_base.toml", "--cluster", "laptop2", cwd=checkout)
    run_dir = checkout / f"runs/slurm-{job}"
    wait_for_step(slurm, job, run_dir, 1)
    assert sorted(processes(slurm, job, TRAINER).values()) == list(slurm.nodes)[:2]
    wait_until_done(slurm, job, run_dir)
    losses = [[json.loads(line)["loss"] for line in (d / "metrics.jsonl").open()] for d in (checkout / BASE, run_dir)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)  # of the same run on one rank
