"""The chain in small through slurm/pipeline.sh, with its trainers and servers; one stage is requeued on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulated_slurm import Slurm, wait_until
from typer.testing import CliRunner

from r1mega.cli import app
from r1mega.launchers.job import Phase
from r1mega.launchers.record import LaunchRecord
from r1mega.launchers.tree import states
from r1mega.pipeline.graph import load_pipeline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not os.environ.get("R1MEGA_SOAK"), reason="takes too long beside all other tests: test-soak"),
]
ROOT = Path(__file__).parents[2]
CHAIN = "configs/micro/pipeline.toml"
LAST = load_pipeline(ROOT / CHAIN).stages[-1].name
REQUEUED = "r1_zero"
LIMIT_S = 5400.0


def test_the_chain_in_small(slurm: Slurm, make_checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_checkout(tmp_path / "checkout")
    for name in (CHAIN, *(f"configs/tiny/{part}" for part in ("r1_zero/0_base.toml", "r1_zero/1_rl.toml"))):
        (folder / name).write_text((ROOT / name).read_text())  # as they are, not shortened
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    monkeypatch.chdir(folder)
    command = [sys.executable, str(ROOT / "tools/rule_judge.py"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as judge:
        assert judge.stdout is not None
        try:
            url = judge.stdout.readline().split()[-1]
            _run(slurm, folder, [f"{name}:judge.endpoint.url={url}" for name in ("helpful_pairs", "harmless_labels")])
        finally:
            judge.terminate()


def _run(slurm: Slurm, folder: Path, sets: list[str]) -> None:
    first, *_ = slurm.nodes
    # One stage at a time, on one node: this host has two cores. RL has a second node, for its server.
    options = [f"--nodelist={first}", f"{REQUEUED}:--nodes=2", "--time=60"]
    line = [CHAIN, "--cluster", "laptop", "--run-dir", "runs/micro", "--until", LAST]
    sets = [*sets, "cluster.trainer.threads=1", "wandb.mode=disabled"]
    words = [*line, *(w for o in options for w in ("--sbatch", o)), *(w for s in sets for w in ("--set", s))]
    done = subprocess.run(["slurm/pipeline.sh", *words], env=slurm.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = LaunchRecord.read(folder / "runs/micro")
    assert record is not None
    jobs = {name: job for name, job in record.latest().items() if job is not None}
    metrics = folder / f"runs/micro/{REQUEUED}/metrics.jsonl"
    wait_until("a step of it", lambda: metrics.is_file() and metrics.read_text().count("\n") > 0, LIMIT_S)
    slurm.ask("scontrol", "requeue", jobs[REQUEUED].id)
    for job in jobs.values():
        slurm.wait_for_state(job.id, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", timeout_s=LIMIT_S)
    told = {name: (state.phase, state.reason) for name, (job, state) in states(record).items() if job is not None}
    assert told == dict.fromkeys(jobs, (Phase.DONE, "")), {
        name: (folder / f"runs/micro/.jobs/{name}-{job.id}.out").read_text()[-4000:]
        for name, job in jobs.items()
        if told[name][0] is Phase.FAILED
    }
    assert slurm.job(jobs[REQUEUED].id)["Restarts"] == "1"
    steps = [json.loads(row)["step"] for row in metrics.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    plan = CliRunner().invoke(app, ["pipeline", *line[:5], "--dry-run", *(w for s in sets for w in ("--set", s))])
    assert [row.split()[1] for row in plan.stdout.splitlines()[: len(jobs)]] == ["done"] * len(jobs), plan.stdout
    if load_pipeline(folder / CHAIN).stages[-1].name == LAST:
        summary = json.loads((folder / "runs/micro/summary.json").read_text())
        assert len(summary["stages"]) == len(jobs) and summary["table"]["rows"] and summary["relations"]
