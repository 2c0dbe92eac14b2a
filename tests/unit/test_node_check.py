"""The check of nodes as it runs, each node being a process here; some have a fault planted in them."""

import json
import sys
import time
from pathlib import Path

from r1mega.config.environment import Checks
from r1mega.runtime import node_check
from r1mega.runtime.events import read
from r1mega.runtime.node_check import NodeCheck, _rounds

PLANTED = """
import sys, time
ours = time.time
argv = " ".join(sys.orig_argv)
if sys.orig_argv[-1] == "skewed":
    time.time = lambda: ours() + 100
if "node_warmup" in argv and "{fails}" == "yes":
    sys.exit("no torch here")
"""
STEP = """#!/usr/bin/env bash
node=$1
shift
case $node in
  absent) echo "srun: error: Unable to create step" && exit 1 ;;
  frozen) exec sleep 600 ;;
  fails) export PYTHONPATH=$PWD/fails:${PYTHONPATH-} ;;
  *) export PYTHONPATH=$PWD/planted:${PYTHONPATH-} ;;
esac
exec "$@"
"""


def step(folder: Path) -> list[str]:
    """What starts the probe of a node, which does what its name says."""
    for name, fails in (("planted", "no"), ("fails", "yes")):
        (folder / name).mkdir()
        (folder / name / "sitecustomize.py").write_text(PLANTED.replace("{fails}", fails))
    (folder / "step").write_text(STEP.replace("$PWD", str(folder)))
    (folder / "step").chmod(0o755)
    return [str(folder / "step"), "{node}", sys.executable]


def test_the_others_sum_a_tensor_without_a_node_whose_clock_is_off(tmp_path):
    check = NodeCheck(tmp_path / "run", ("a", "skewed", "c"), Checks(), gpus=0, address="127.0.0.1")
    faults = check.run(step(tmp_path))
    record = json.loads((tmp_path / "run/logs/nodes.json").read_text())
    assert list(faults) == ["skewed"], record
    assert faults["skewed"][0].startswith("its clock is 100.0 s ahead of the others'")
    found = {name: node["all_reduce"] for name, node in record["nodes"].items()}
    assert [found[name]["phase"] for name in ("a", "skewed", "c")] == ["done", "told", "done"]
    assert list(found["a"]["links"]) == ["c"] and list(found["c"]["links"]) == ["a"] and check.why == ""
    assert record["nodes"]["a"]["report"]["code"] == record["nodes"]["c"]["report"]["code"] != ""


def test_one_that_cannot_take_part_is_named_at_once(tmp_path):
    began = time.monotonic()
    check = NodeCheck(tmp_path / "run", ("a", "fails"), Checks(), gpus=0, address="127.0.0.1")
    assert check.run(step(tmp_path)) == {
        "fails": ["cannot take part in the all-reduce: its process ended with code 1"]
    }
    assert time.monotonic() - began < 60 < Checks().all_reduce_s


def test_bad_nodes_are_printed_for_the_script_and_written_down(tmp_path, capfd):
    cluster = tmp_path / "c.toml"
    cluster.write_text('device = "cpu"\n[environment.checks]\nreport_s = 600\n')
    words = ["--run-dir", str(tmp_path / "run"), "--cluster", str(cluster), "--address", "127.0.0.1", "--gpus", "0"]
    limit = ["--set", "cluster.environment.checks.report_s=6", "--nodes", "a,absent,frozen", "--"]
    assert node_check.main([*words, *limit, *step(tmp_path)]) == 0
    said = capfd.readouterr().out.splitlines()
    limit_said = "has not answered within 6 s (environment.checks.report_s)"
    assert said[0] == f"node absent: {limit_said}; its step says: srun: error: Unable to create step"
    assert said[1] == f"node frozen: {limit_said}"
    assert said[-1] == "bad=absent,frozen"
    events = read(tmp_path / "run")
    assert [(event.kind, event.figures["node"]) for event in events] == [
        ("node-left-out", "absent"), ("node-left-out", "frozen")
    ]  # fmt: skip


def test_a_stranger_that_does_not_know_the_word_is_not_listened_to(tmp_path):
    import socket

    check = NodeCheck(tmp_path, ("a",), Checks(), gpus=0, address="127.0.0.1")
    with check._listening() as port, socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        line.sendall(b'{"token": "guess", "node": "a"}\n')
        assert line.recv(1) == b""


def test_on_a_ring_all_neighbours_meet_once_and_nobody_two_at_a_time():
    for nodes in range(2, 9):
        rounds = _rounds(nodes)
        met = [
            {frozenset((node, other[turn])) for node, other in enumerate(rounds) if other[turn] is not None}
            for turn in (0, 1)
        ]
        for turn in (0, 1):
            assert len(set().union(*met[turn], set())) == 2 * len(met[turn])  # each node in one pair
        links = {frozenset((node, node + 1)) for node in range(nodes - 1)}
        links |= {frozenset((0, nodes - 1))} if nodes % 2 == 0 and nodes > 2 else set()
        assert met[0] | met[1] == links and not met[0] & met[1]
