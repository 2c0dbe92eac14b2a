"""`sbatch slurm/rl_stage.sh` with the real trainer and the real vLLM server, each on a node of its own."""

import json
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from emulated_slurm import Slurm, wait_until

sys.path.append(str(Path(__file__).parents[1] / "pipeline"))
from holding import hold_after_step

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


def held(slurm: Slurm, job: int, run_dir: Path, file: Path) -> None:
    """Wait until the run stands still where it is to be held."""

    def reached() -> bool:
        assert slurm.job(job)["JobState"] not in ("COMPLETED", "FAILED", "TIMEOUT"), output(run_dir, job)
        return file.exists()

    wait_until(f"job {job} stands still", reached, START_S)


def submit(slurm: Slurm, checkout: Path, hooks: list[Path], *arguments: str) -> tuple[int, Path]:
    """A job whose runs find `hooks` (see holding.py), and its run directory."""
    path = ":".join([*map(str, hooks), *filter(None, [os.environ.get("PYTHONPATH")])])
    job = slurm.submit(f"--export=ALL,PYTHONPATH={path}", *arguments, cwd=checkout)
    return job, checkout / f"runs/slurm-{job}"


@dataclass(frozen=True)
class DefaultRun:
    job: int
    run_dir: Path
    nodes: dict[str, set[str]]
    """Where trainer and server were while the first step stood."""
    said: dict[str, str]


@pytest.fixture(scope="module")
def default_run(slurm: Slurm, checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> DefaultRun:
    """Pretrains the base that the other runs start from, in its two parts, as it is not there, and trains on it."""
    file, _ = hold_after_step(1, tmp_path_factory.mktemp("first"))
    job, run_dir = submit(slurm, checkout, [file.parent], "--nodes=2", SCRIPT)
    for _ in ("base", "anneal"):
        held(slurm, job, run_dir, file)
        file.rename(file.with_name("armed"))
    held(slurm, job, run_dir, file)
    nodes = {module: set(processes(slurm, job, module).values()) for module in (TRAINER, SERVER)}
    file.unlink()
    return DefaultRun(job, run_dir, nodes, wait_until_done(slurm, job, run_dir))


def test_default_run_trains_on_one_node_and_samples_on_the_other(
    slurm: Slurm, checkout: Path, default_run: DefaultRun
):
    first, second, *_ = slurm.nodes
    assert default_run.nodes == {TRAINER: {first}, SERVER: {second}}
    assert default_run.said["Restarts"] == "0" and default_run.said["NumNodes"] == "2"
    assert steps(checkout / BASE) == list(range(1, 9))
    assert steps(default_run.run_dir) == [1, 2, 3, 4]
    for name in ("summary.json", "hf/model.safetensors", "samples/step_0.jsonl"):
        assert (default_run.run_dir / name).is_file(), name
    wait_until("the job's processes are gone", lambda: not slurm.processes(default_run.job), 300)


def test_a_run_that_is_preempted_and_then_loses_a_rank_comes_back_each_time(
    slurm: Slurm, checkout: Path, default_run: DefaultRun, tmp_path: Path
):
    for name in ("preempted", "killed"):
        (tmp_path / name).mkdir()
    (preempted, _), (killed, _) = hold_after_step(4, tmp_path / "preempted"), hold_after_step(9, tmp_path / "killed")
    settings = ["num_steps=16", "save.every_steps=2", "evaluation.every_steps=16"]
    sets = [word for setting in settings for word in ("--set", setting)]
    hooks = [preempted.parent, killed.parent]
    job, run_dir = submit(slurm, checkout, hooks, "--nodes=2", SCRIPT, "--cluster", "laptop2", *sets)
    held(slurm, job, run_dir, preempted)
    (preempted.parent / "sitecustomize.py").unlink()  # the next start finds the other one
    all_nodes = ("--partition=high", f"--nodes={len(slurm.nodes)}", "--exclusive", "--wrap=true")
    slurm.submit(*all_nodes, cwd=tmp_path)  # its signal lets the run go
    held(slurm, job, run_dir, killed)
    os.kill(max(processes(slurm, job, TRAINER)), signal.SIGKILL)  # either: the other one then fails as well
    killed.unlink()
    said = wait_until_done(slurm, job, run_dir)
    assert said["Restarts"] == "2"
    printed = output(run_dir, job)
    # Without control groups Slurm's SIGTERM takes the server from a trainer that is saving: any code may come of it.
    code = "143" if slurm.proctrack == "cgroup" else r"\d+"
    assert len(re.findall(rf"preempted \(exit code {code}\): requeued", printed)) == 1, printed
    assert printed.count("crash 1 of at most 10 (exit code 137): requeued") == 1
    assert len(re.findall("^resumed from", printed, re.MULTILINE)) == 2  # and as often in what a crash repeats
    assert steps(run_dir) == list(range(1, 17))


def test_a_supervised_stage_trains_on_all_nodes(
    slurm: Slurm, checkout: Path, default_run: DefaultRun, tmp_path: Path
):
    file, _ = hold_after_step(1, tmp_path)
    base = ("configs/tiny/r1_zero/0_base.toml", "--cluster", "laptop2")
    job, run_dir = submit(slurm, checkout, [file.parent], "--nodes=2", "slurm/sft_stage.sh", *base)
    held(slurm, job, run_dir, file)
    assert sorted(processes(slurm, job, TRAINER).values()) == list(slurm.nodes)[:2]
    file.unlink()
    wait_until_done(slurm, job, run_dir)
    losses = [[json.loads(line)["loss"] for line in (d / "metrics.jsonl").open()] for d in (checkout / BASE, run_dir)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)  # of the same run on one rank
