"""Rollout servers on nodes of their own under a real Slurm, with a few lines in place of trainer and vLLM."""

import json
from pathlib import Path

import pytest
from emulated_slurm import Slurm, ended, wait_until

pytestmark = pytest.mark.slow

CLUSTER = """
device = "cuda"
gpu = "hopper"
gpus_per_node = 2

[trainer]
dtype = "bf16"

[rollout]
tp = 4
dtype = "bf16"
"""
"""A rank of the trainer, and a server of two nodes."""
TRAINER = """
servers=$(sed -n 's/.*cluster.rollout.attendants=\\([^ ]*\\).*/\\1/p' <<<"$*")
order() { # NODE: writes down where it runs, and waits
  cat >"$servers/new" <<END
{"number": 1, "environment": {"WORD": "word"}, "log": "$servers/log_$1",
 "command": ["bash", "-c", "echo \\$SLURMD_NODENAME \\$CUDA_VISIBLE_DEVICES \\$WORD; sleep 6000"]}
END
  mv "$servers/new" "$servers/order_$1_0_$1.json"
}
for node in 0 1; do
  until [[ -e $servers/node_$node.json ]]; do sleep 0.1; done
  order "$node"
done
until [[ -s $servers/log_0 && -s $servers/log_1 ]]; do sleep 0.1; done
echo "the trainer is on $SLURMD_NODENAME"
"""


def test_a_server_of_two_nodes_is_started_on_them_by_order_and_ends_with_the_trainer(
    slurm: Slurm, stub, tmp_path: Path
):
    folder = stub(tmp_path, TRAINER)
    (folder / "configs/cluster/g.toml").write_text(CLUSTER)
    sets = [f"model.config={folder}/configs/tiny/qwen2.json", "model.path=/nowhere/hf"]
    stage = ("configs/tiny/dense/1_rl.toml", "--cluster", "g", *(word for one in sets for word in ("--set", one)))
    job = slurm.submit("--nodes=3", "--gpus-per-node=2", "slurm/rl_stage.sh", *stage, cwd=folder)
    said, output = ended(slurm, job, "COMPLETED", folder)
    first, *others = slurm.ask("scontrol", "show", "hostnames", said["NodeList"]).split()
    assert f"the trainer is on {first}" in output and f"rollout servers on {','.join(others)}" in output
    servers = folder / f"runs/slurm-{job}/servers"
    assert [(servers / f"log_{node}").read_text().split() for node in (0, 1)] == [[o, "0,1", "word"] for o in others]
    found = [json.loads((servers / f"node_{node}.json").read_text())["address"] for node in (0, 1)]
    assert found == [slurm.nodes[node] for node in others]
    wait_until("nothing of the job is left", lambda: not slurm.processes(job), 60)
