"""Nodes are checked before a stage starts: those with a planted fault are left out, or the job is put on others."""

import json
import os
import sys
from pathlib import Path

from emulated_slurm import Slurm, ended, wait_until

SCRIPT = "slurm/sft_stage.sh"
FAULTS = """
import os, sys, time
node, argv = os.environ.get("SLURMD_NODENAME"), " ".join(sys.orig_argv)
if "node_probe" in argv and node == "{skewed}":
    ours = time.time
    time.time = lambda: ours() - 60
if "node_probe" in argv and node == "{full}":
    import shutil
    found = shutil.disk_usage
    shutil.disk_usage = lambda path: found(path)._replace(free=2**20)
if "node_warmup" in argv and node == "{late}":
    time.sleep(600)
"""
"""A module that Python imports at its start, on every node."""
CHECKED = """
[environment.checks]
all_reduce_s = 15
all_reduce = {all_reduce}
"""


def prepared(stub, folder: Path, ranks: int, *, all_reduce: bool, **faults: str) -> tuple[Path, str]:
    """A checkout whose nodes are really checked, and what sbatch is to export."""
    checkout = stub(folder, 'echo "rank $RANK on $SLURMD_NODENAME"', ranks)
    python = checkout / ".venv/bin/python"
    mine = f'*r1mega.runtime.node_check*|*r1mega.runtime.node_probe*) exec {sys.executable} "$@" ;;'
    python.write_text(python.read_text().replace("*r1mega.runtime.node_check*) echo bad= ;;", mine))
    with (checkout / "configs/cluster/c.toml").open("a") as cluster:
        cluster.write(CHECKED.format(all_reduce=str(all_reduce).lower()))
    (folder / "hook").mkdir()
    named = {"skewed": "", "full": "", "late": "", **faults}
    (folder / "hook/sitecustomize.py").write_text(FAULTS.format(**named))
    path = os.pathsep.join([str(folder / "hook"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return checkout, f"--export=ALL,PYTHONPATH={path}"


def told(run_dir: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]


def test_nodes_with_a_fault_are_left_out_where_the_others_are_enough(slurm: Slurm, stub, tmp_path: Path):
    """Of three nodes the second's clock is off, and the third does not come to the all-reduce."""
    first, second, third = slurm.nodes
    folder, export = prepared(stub, tmp_path, 3, all_reduce=True, skewed=second, late=third)
    job = slurm.submit(export, "--nodes=3", SCRIPT, "a.toml", "--cluster", "c", cwd=folder)
    said, output = ended(slurm, job, "COMPLETED", folder)
    run_dir = folder / f"runs/slurm-{job}"
    assert said["Restarts"] == "0"
    assert f"node {second}: its clock is 60.0 s behind the others'" in output
    assert f"node {third}: was told to come, and has not within 15 s" in output
    assert f"{second},{third}: left out; the stage runs on the other nodes" in output
    assert f"rank 0 on {first}" in output and f"rank 2 on {first}" in (run_dir / "logs/rank_2.log").read_text()
    assert [(one["kind"], one.get("node")) for one in told(run_dir)] == [
        ("node-left-out", second), ("node-left-out", third)
    ]  # fmt: skip
    wait_until("nothing of the job is left", lambda: not slurm.processes(job), 60)


def test_a_job_whose_first_node_has_a_fault_comes_back_on_others(slurm: Slurm, stub, tmp_path: Path):
    """Its disk is full, and the batch script is on it."""
    first, *_ = slurm.nodes
    folder, export = prepared(stub, tmp_path, 2, all_reduce=False, full=first)
    job = slurm.submit(export, "--nodes=2", SCRIPT, "a.toml", "--cluster", "c", cwd=folder)
    said, output = ended(slurm, job, "COMPLETED", folder)
    assert (said["Restarts"], said["ExcNodeList"]) == ("1", first), output
    assert f"node {first}: {folder}/runs/slurm-{job} has 0.00 GiB free of the 1 of environment.checks.run" in output
    assert f"{first}: the job will start on others (ExcNodeList)" in output
    kinds = [one["kind"] for one in told(folder / f"runs/slurm-{job}")]
    assert kinds == ["node-left-out", "requeued"]
    others = slurm.ask("scontrol", "show", "hostnames", said["NodeList"]).split()
    assert len(others) == 2 and first not in others
