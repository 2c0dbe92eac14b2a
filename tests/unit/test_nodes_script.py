"""slurm/nodes.sh: what is done with the verdict on a job's nodes, on Slurm's commands that are stood in for."""

from pathlib import Path

import pytest
from test_environment_steps import KINDS, job, on, steps

ONE = "gpu1"


def checked(folder: Path) -> list[str]:
    """Words of the check of nodes."""
    return (folder / "checked").read_text().splitlines()


def test_nodes_are_asked_by_the_steps_own_interpreter_one_each(tmp_path):
    code, said = job(tmp_path, on("h800_14b", KINDS["apptainer"]), SLURM_JOB_NODELIST="n1,n2,n3")
    assert code == 0 and ": seen\n" not in said and " seen\n" in said, said
    words = checked(tmp_path)
    assert words[:4] == ["-m", "r1mega.runtime.node_check", "--run-dir", "runs/slurm-7"]
    named = {words[k]: words[k + 1] for k, word in enumerate(words) if word in ("--gpus", "--address", "--nodes")}
    assert named == {"--gpus": "8", "--address": "10.0.0.1", "--nodes": "n1,n2,n3"}
    command = words[words.index("--") + 1 :]
    assert command[0] == "srun" and {"--nodes=1", "--ntasks=1", "--nodelist={node}"} < set(command)
    assert "--gpus-per-node=8" in command
    inside = command[command.index("apptainer") :]
    trainer = steps(tmp_path)["trainer"]
    at = trainer.index("apptainer")
    assert inside[: len(inside) - 4] == trainer[at : at + len(inside) - 4]  # up to the image
    assert inside[-4:] == [
        "env",
        "NCCL_IB_HCA=mlx5 0",
        "NVTE_FUSED_ATTN=1",
        "/opt/r1mega/.venv-gpu-trainer/bin/python",
    ]


def test_settings_of_the_cluster_reach_the_check(tmp_path):
    code, _ = job(tmp_path, on(ONE, {}), "--cluster", "c", "--set", "cluster.environment.checks.report_s=9", "--x")
    words = checked(tmp_path)
    assert code == 0
    assert words[4:8] == ["--cluster", "c", "--set", "cluster.environment.checks.report_s=9"] and "--x" not in words


def test_a_bad_first_node_puts_the_job_on_others(tmp_path):
    code, said = job(tmp_path, on(ONE, {}), BAD="n1", TOTAL="3", OUT="n9")
    asked = (tmp_path / "asked").read_text().splitlines()
    assert code == 75 and "trainer" not in steps(tmp_path), said
    assert asked == ["requeue 7", "update JobId=7 ExcNodeList=n1,n9"]
    assert "unfit nodes (n1): requeued" in said


def test_where_there_are_no_others_the_job_ends(tmp_path):
    code, said = job(tmp_path, on(ONE, {}), BAD="n1", TOTAL="2", OUT="n9")
    assert code == 2 and not (tmp_path / "asked").exists()
    assert "n1: unfit, and partition p has 2 node(s), of which 2 are left out and 1 needed" in said
    assert "[environment.checks]" in said and "Not requeued" in said


def test_a_bad_node_is_left_out_of_the_placement(tmp_path):
    code, said = job(tmp_path, on(ONE, {}), BAD="n2", SLURM_JOB_NODELIST="n1,n2")
    assert code == 0 and "n2: left out; the stage runs on the other nodes" in said
    placed = (tmp_path / "placed").read_text().splitlines()
    assert [line.partition("--leave-out ")[2] for line in placed] == ["", "n2"]


@pytest.mark.parametrize("code", [1, 2, 75])
def test_a_check_that_fails_itself(tmp_path, code: int):
    """1: it could not be made. 2: a setting is wrong. 75: the nodes do not meet, as at any loss of a rank."""
    ended, said = job(tmp_path, on(ONE, {}), CODE=str(code))
    assert ended == {1: 0, 2: 2, 75: 75}[code], said
    assert ("trainer" in steps(tmp_path)) == (code == 1)
    assert ("crash 1 of at most 10 (exit code 75)" in said) == (code == 75)


def test_checks_that_are_switched_off_are_said(tmp_path):
    code, said = job(tmp_path, on(ONE, {"checks": {"enabled": False}}))
    assert code == 0 and "nodes are not checked (environment.checks.enabled = false)" in said
    assert set(steps(tmp_path)) == {"trainer"}
