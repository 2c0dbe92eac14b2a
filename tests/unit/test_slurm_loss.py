"""What becomes of a stage where Slurm grants fewer nodes than its layout fills: worked out by hand."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from r1mega.cli import app
from r1mega.config.cluster import Cluster
from r1mega.config.load import load_cluster
from r1mega.config.slurm import GrantedNode, needs_of, place_largest, sizes, when_a_node_is_lost
from r1mega.errors import ConfigError
from r1mega.layout.device_laws import layout_faults
from r1mega.runtime import slurm

ROOT = Path(__file__).parents[2]
GPUS = ["gpus_per_node=8", "trainer.tp=8", "trainer.dp=4", "trainer.cp=1", "rollout.servers=1", "rollout.tp=8"]
"""On h800_14b: a node for each copy of the model and one for the server."""


def laid(machine: Cluster, nodes: list[GrantedNode], *, serves: bool = False) -> tuple[int, int, str, str]:
    """Data-parallel ranks, all ranks, nodes without use, and what is said of a loss."""
    machines = sizes(machine, lambda one: not layout_faults(one))
    wanted = needs_of(machines, trains=True, serves=serves)
    number, placed = place_largest(wanted, nodes)
    said = when_a_node_is_lost(machine, wanted, placed)
    return machines[number].trainer.dp, placed.ranks, " ".join(placed.unused), said


def nodes(number: int, cpus: int = 64, gpus: int | None = 8) -> list[GrantedNode]:
    return [GrantedNode(f"n{k}", cpus, gpus) for k in range(1, number + 1)]


def of(*overrides: str, cluster: str = "h800_14b") -> Cluster:
    return load_cluster(cluster, list(overrides))


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("granted, dp, ranks", [(5, 4, 32), (4, 3, 24), (3, 2, 16), (2, 1, 8)])
def test_each_node_that_lacks_costs_the_copy_that_it_would_hold(granted: int, dp: int, ranks: int):
    said = laid(of(*GPUS, "trainer.least_dp=1"), nodes(granted), serves=True)
    assert said[:3] == (dp, ranks, "")


def test_where_not_even_the_fewest_fit_what_is_said_is_of_the_whole():
    with pytest.raises(ConfigError, match=r"2 node\(s\) instead of 5\n.*\n.*\n  submit again with --nodes=3-5 "):
        laid(of(*GPUS, "trainer.least_dp=2"), nodes(2), serves=True)


def test_experts_must_still_divide_over_the_ranks():
    """Experts over two of four ranks, a GPU a node: three or one could not hold them alike."""
    machine = of("gpus_per_node=1", "trainer.tp=1", "trainer.ep=2", "trainer.least_dp=1")
    assert laid(machine, nodes(3, gpus=1))[:3] == (2, 2, "n3")
    with pytest.raises(ConfigError, match=r"1 node\(s\) instead of 4\n.*\n.*\n  submit again with --nodes=2-4 "):
        laid(machine, nodes(1, gpus=1))


def test_on_cpus_ranks_move_together_before_one_is_given_up():
    machine = of("trainer.least_dp=1", cluster="laptop2")
    assert laid(machine, nodes(1, cpus=2, gpus=None))[:2] == (2, 2)
    assert laid(machine, nodes(1, cpus=1, gpus=None))[:2] == (1, 1)


def test_a_layout_that_cannot_shrink_says_why_it_waits():
    begins = "should a node be lost, the job is requeued and"
    assert laid(of(*GPUS, "trainer.least_dp=1"), nodes(5), serves=True)[3] == (
        f"{begins} goes on with as few as 2 node(s), where sbatch was given --nodes=2-5"
    )
    assert laid(of(*GPUS), nodes(5), serves=True)[3] == (
        f"{begins} waits until there are 5 nodes again (cluster.trainer.least_dp is not set)"
    )
    stiff = of("gpus_per_node=2", "trainer.tp=1", "trainer.ep=4", "trainer.least_dp=1")
    assert laid(stiff, nodes(2, gpus=2))[3] == (
        f"{begins} waits until there are 2 nodes again (no layout of dp = 1 to 4 takes fewer)"
    )
    assert laid(of("gpus_per_node=16"), nodes(1, gpus=16))[3] == ""


def test_a_stage_without_a_trainer_has_no_ranks_to_give_up():
    machine = of("trainer.least_dp=1")
    (only,) = needs_of(sizes(machine, lambda _: True), trains=False, serves=True)
    assert only.options.startswith("--nodes=1 ")


def test_check_asks_for_a_range_of_nodes_and_refuses_a_lower_end_above_dp():
    sft = ["check", "configs/distill/qwen2_5_14b.toml", "--cluster", "h800_14b"]

    def check(*arguments: str) -> str:
        return CliRunner().invoke(app, [*sft, *arguments]).output

    assert "--nodes=2 " in check("--print", "slurm")
    assert "--nodes=1-2 --ntasks-per-node=8 " in check("--print", "slurm", "--set", "cluster.trainer.least_dp=2")
    # Half as many copies hold twice as much of the optimiser's state each: 41 GiB.
    held = ("--set", "cluster.trainer.least_dp=1", "--set", "cluster.gpu_memory_gib=40")
    assert "--nodes=2 " in check("--print", "slurm", *held)
    refused = CliRunner().invoke(app, [*sft, "--set", "cluster.trainer.least_dp=5"])
    assert "least_dp: 5 is more than dp = 4" in str(refused.exception)


def test_a_job_is_told_its_script_and_what_it_does_with_a_node_less(monkeypatch: pytest.MonkeyPatch):
    base = ["check", "configs/tiny/r1_zero/0_base.toml", "--cluster", "laptop2", "--print", "placement"]
    base += ["--set", "cluster.trainer.threads=8", "--set", "cluster.trainer.least_dp=1"]
    for number, dp, ranks in ((2, "", "2"), (1, "1", "1")):
        monkeypatch.setattr(slurm, "granted", lambda number=number: nodes(number, cpus=8, gpus=None))
        said = CliRunner().invoke(app, base).stdout.splitlines()
        told = dict(line.split("=", 1) for line in said)
        assert said[0] == "script=sft_stage" and (told["dp"], told["ranks"]) == (dp, ranks)
        assert told["loss"].endswith("--nodes=1-2" if number == 2 else "")
