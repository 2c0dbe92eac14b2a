"""What a stage asks of Slurm, and where it goes on the nodes that were granted: worked out by hand."""

import os
from pathlib import Path

import pytest

from r1mega.config.cluster import Cluster
from r1mega.config.load import load_cluster
from r1mega.config.slurm import GrantedNode, Needs, needs, place
from r1mega.errors import ConfigError, SlurmSilentError
from r1mega.recipe.load import RECIPES, load
from r1mega.runtime.slurm import granted

ROOT = Path(__file__).parents[2]
CLUSTERS = sorted(path.stem for path in (ROOT / "configs/cluster").glob("*.toml"))
STAGES = sorted(
    path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.toml") if "\nstage = " in f"\n{path.read_text()}"
)
ASKED = {
    # tp x pp x dp ranks, eight GPUs to a node; the servers' tp x dp GPUs each on nodes of their own.
    "laptop": {"supervised": (1, 1, 2, 0), "grpo": (1, 1, 2, 0), "evaluate": (1, 1, 2, 0)},
    "laptop2": {"supervised": (1, 2, 1, 0), "grpo": (1, 2, 1, 0), "evaluate": (1, 1, 1, 0)},
    "gpu1": {"supervised": (1, 1, 1, 1), "grpo": (1, 1, 1, 1), "evaluate": (1, 1, 1, 1)},  # colocated
    "h800_1b5": {"supervised": (1, 8, 1, 8), "grpo": (2, 8, 1, 8), "evaluate": (1, 1, 1, 8)},  # 8 servers of 1
    "h800_14b": {"supervised": (2, 8, 1, 8), "grpo": (3, 8, 1, 8), "evaluate": (1, 1, 1, 8)},  # 4 of 2
    "h800_70b": {"supervised": (8, 8, 1, 8), "grpo": (10, 8, 1, 8), "evaluate": (2, 1, 1, 8)},  # 2 of 8
    "h800_v3": {"supervised": (64, 8, 1, 8), "grpo": (80, 8, 1, 8), "evaluate": (16, 1, 1, 8)},  # 2 of 64
}
"""Nodes, tasks on each, CPUs for each task, GPUs on each node."""


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_every_stage_asks_for_what_its_cluster_file_has(cluster: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    assert len(STAGES) > 20
    for config in STAGES:
        stage, machine = load(config, cluster)
        kind = "supervised" if stage.stage in ("pretrain", "sft", "reward_model") else stage.stage
        kind = "evaluate" if kind in ("preferences", "rejection", "mixture") else kind  # no trainer either
        nodes, tasks, cpus, gpus = ASKED[cluster][kind]
        if not (stage.trains or stage.serves):  # an endpoint answers, or nothing does: one process on any node
            nodes, gpus = 1, 0
        options = f"--nodes={nodes} --ntasks-per-node={tasks} --cpus-per-task={cpus}"
        asked = needs(machine, trains=stage.trains, serves=stage.serves)
        assert asked.options == options + (f" --gpus-per-node={gpus}" if gpus else ""), config


def test_every_kind_of_stage_has_its_script():
    scripts = {kind: recipe.script for kind, recipe in RECIPES.items()}
    for script in {*scripts.values(), "distill_stage", "convert"}:
        text = (ROOT / f"slurm/{script}.sh").read_text()
        assert os.access(ROOT / f"slurm/{script}.sh", os.X_OK)
        kinds = [kind for kind in scripts if f'"{kind}"' in text]  # as its head tells
        assert kinds == [kind for kind in scripts if scripts[kind] == script.replace("distill", "sft")]
        assert f"SCRIPT={script.replace('distill', 'sft')}\n" in text


def test_a_stage_without_a_model_takes_one_process_of_one_node_and_no_gpu():
    machine = load_cluster("h800_v3", [])
    asked = needs(machine, trains=False, serves=False)
    assert asked.options == "--nodes=1 --ntasks-per-node=1 --cpus-per-task=1"
    placed = place(asked, [GrantedNode("n1", 1, None), GrantedNode("n2", 1, None)])
    assert (placed.trainer, placed.server, placed.unused) == (("n1",), (), ("n2",))
    needs(Cluster(device="cuda"), trains=False, serves=False)  # how many GPUs a node has is all the same


def test_gpus_of_a_node_must_be_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=r"cluster\.gpus_per_node: not set.*--set cluster\.gpus_per_node=8"):
        needs(Cluster(device="cuda"), trains=True, serves=False)
    half = load_cluster("h800_14b", ["gpus_per_node=4"])  # 16 ranks
    asked = needs(half, trains=True, serves=False)
    assert asked.options == "--nodes=4 --ntasks-per-node=4 --cpus-per-task=1 --gpus-per-node=4"


def cpus(ranks: int, *, threads: int = 1, serves: bool = False) -> Needs:
    return Needs(ranks, threads, 0, 0, serves, 0)


def gpus(ranks: int, *, server: int = 0, per_node: int = 8) -> Needs:
    return Needs(ranks, 1, ranks, server, server > 0, per_node)


def nodes(number: int, cpus: int = 8, gpus: int | None = None) -> tuple[GrantedNode, ...]:
    return tuple(GrantedNode(f"n{k}", cpus, gpus) for k in range(1, number + 1))


@pytest.mark.parametrize(
    "wanted, number, trainer, server, unused, tasks, cpus_each",
    [
        (cpus(1), 1, "n1", "", "", 1, 8),
        (cpus(2), 2, "n1 n2", "", "", 2, 8),
        (cpus(3), 2, "n1 n2", "", "", 3, 4),  # two ranks on n1
        (cpus(7), 3, "n1 n2 n3", "", "", 7, 2),  # three on n1
        (cpus(2), 3, "n1 n2", "", "n3", 2, 8),
        (cpus(2, serves=True), 1, "n1", "", "", 2, 4),
        (cpus(2, serves=True), 2, "n1", "n2", "", 2, 4),
        (cpus(2, serves=True), 3, "n1 n2", "n3", "", 2, 8),
        (cpus(2, serves=True), 5, "n1 n2", "n5", "n3 n4", 2, 8),
    ],
)
def test_placement_on_cpus(wanted, number, trainer, server, unused, tasks, cpus_each):
    placed = place(wanted, nodes(number))
    assert (" ".join(placed.trainer), " ".join(placed.server), " ".join(placed.unused)) == (trainer, server, unused)
    on = trainer.split()
    assert placed.trainer_options == (
        f"--nodes={len(on)}", f"--ntasks={tasks}", f"--nodelist={','.join(on)}", f"--cpus-per-task={cpus_each}",
        "--distribution=block",
    )  # fmt: skip
    step = ("--nodes=1", "--ntasks=1", f"--nodelist={server}", "--cpus-per-task=8")
    assert placed.server_options == (step if server else ())


def test_placement_on_gpus_fills_a_node_before_the_next():
    placed = place(gpus(12, server=2), nodes(3, cpus=96, gpus=8))
    assert placed.lines.splitlines() == [
        "ranks=12",
        "trainer=n1,n2",
        "server=n3",
        "trainer_options=--nodes=2 --ntasks=12 --nodelist=n1,n2 --cpus-per-task=12 --gpus-per-node=8 "
        "--distribution=plane=8",
        "server_options=--nodes=1 --ntasks=1 --nodelist=n3 --cpus-per-task=96 --gpus-per-node=2",
        "unused=",
        "gpus=8",
        "node_options=--gpus-per-node=8",
    ]


def test_servers_have_a_task_on_each_of_their_nodes():
    """Three servers of 16 GPUs, two nodes of 8 each; five of 4 GPUs, two to a node."""
    wide = place(Needs(8, 1, 8, 16, True, 8, servers=3), nodes(7, cpus=96, gpus=8))
    assert (wide.trainer, wide.server) == (("n1",), ("n2", "n3", "n4", "n5", "n6", "n7"))
    step = ("--nodes=6", "--ntasks=6", "--nodelist=n2,n3,n4,n5,n6,n7", "--cpus-per-task=96", "--gpus-per-node=8")
    assert wide.server_options == step
    small = Needs(8, 1, 8, 4, True, 8, servers=5)
    assert (small.server_nodes, small.gpus_of_servers, small.nodes) == (3, 8, 4)
    with pytest.raises(ConfigError, match=r"4 GPU\(s\) for each of 5 rollout servers"):
        place(small, nodes(3, gpus=8))
    alone = place(Needs(1, 1, 0, 16, True, 8, servers=1), nodes(2, gpus=8))  # an evaluation: on its servers' nodes
    assert (alone.trainer, alone.server) == (("n1",), ("n1", "n2"))


def test_an_evaluation_on_gpus_has_the_first_node_of_its_server():
    evaluation = Needs(1, 1, 0, 4, True, 8)
    placed = place(evaluation, nodes(1, gpus=4))
    assert (placed.trainer, placed.server) == (("n1",), ()) and "--gpus-per-node=4" in placed.trainer_options
    with pytest.raises(ConfigError, match=r"n1: 2 GPU\(s\) instead of 4"):
        place(evaluation, nodes(1, gpus=2))


def test_gpus_that_slurm_does_not_know_of_are_not_asked_for():
    options = place(gpus(8), nodes(1)).trainer_options
    assert "--ntasks=8" in options and not any("gpus" in option for option in options)


@pytest.mark.parametrize(
    "wanted, given, fault",
    [
        (cpus(4, threads=2), nodes(1, cpus=7), "n1: 7 CPU(s) for 4 rank(s) of 2 thread(s)"),
        (cpus(3), (*nodes(1, cpus=1), *nodes(2)[1:]), "n1: 1 CPU(s) for 2 rank(s) of 1 thread(s)"),
        (gpus(16), nodes(1, gpus=8), "1 node(s) instead of 2"),
        (gpus(16), nodes(2, gpus=4), "n1: 4 GPU(s) instead of 8; n2: 4 GPU(s) instead of 8"),
        (gpus(8), nodes(1, gpus=0), "n1: 0 GPU(s) instead of 8"),
        (gpus(8, server=2), nodes(1, gpus=8), "1 node(s) instead of 2"),
        (gpus(8, server=4), (*nodes(1, gpus=8), GrantedNode("n2", 8, 2)), "n2: 2 GPU(s) instead of 4"),
        (gpus(16), nodes(2, cpus=4, gpus=8), "n1: 4 CPU(s) for 8 rank(s) of 1 thread(s)"),
    ],
)
def test_what_does_not_fit_is_one_message(wanted: Needs, given, fault: str):
    with pytest.raises(ConfigError) as raised:
        place(wanted, given)
    said = str(raised.value)
    assert said.startswith(f"what Slurm granted does not fit: {fault}")
    assert f"submit again with {wanted.options}," in said and all(str(node) in said for node in given)


SCONTROL = """#!/bin/sh
case "$*" in
  *"--details --oneliner job $JOB") cat job ;;
  *'hostnames n[1-3]') printf 'n1\\nn2\\nn3\\n' ;;
  *'hostnames n[1,3]') printf 'n1\\nn3\\n' ;;
  *"hostnames n2") echo n2 ;;
  *"--oneliner node n2") echo "NodeName=n2 Gres=$GRES_OF_N2 OS=Linux" ;;
  *) echo "no answer to $*" >&2; exit 1 ;;
esac
"""
JOB = (
    "JobId=7 JobName=x JobState=RUNNING ReqNodeList=(null) ExcNodeList=(null) NodeList=n[1-3] BatchHost=n1 "
    "JOB_GRES=x   Nodes=n[1,3] CPU_IDs=0-3,8-11 Mem=0 GRES=gpu:h800:4(IDX:0-3),gpu:2(IDX:4,6),shard:8 "
    "  Nodes=n2 CPU_IDs=5 Mem=100 GRES= MinCPUsNode=1\n"
)
"""As Slurm 22.05 writes it: nodes of like parts are told together."""


@pytest.mark.parametrize("known, of_n2", [("(null)", None), ("gpu:a100:8(S:0)", 0)])
def test_what_was_granted_is_read_from_scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known, of_n2):
    program = tmp_path / "scontrol"
    program.write_text(SCONTROL)
    program.chmod(0o755)
    (tmp_path / "job").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("GRES_OF_N2", known)
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="not a Slurm job"):
        granted()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("JOB", "7")
    expected = (GrantedNode("n1", 8, 6), GrantedNode("n2", 1, of_n2), GrantedNode("n3", 8, 6))
    assert granted() == expected
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")  # the last task of an array: 7 would be all of its tasks
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    with pytest.raises(SlurmSilentError, match="no answer to show --details --oneliner job 7_2") as silent:
        granted()
    assert silent.value.exit_code == 75  # the job is requeued, as nothing given to it is wrong
    monkeypatch.setenv("JOB", "7_2")
    assert granted() == expected
