"""Two ranks on two hosts whose own names mean themselves: they train, and push to a server on the other host."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import two_hosts
from two_hosts import Host

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs/tiny/r1_zero"
BASE = ("num_steps=3", "documents_per_step=16", "data.num_documents=400", "optimizer.warmup_steps=2",
        "save.every_steps=3", "wandb.mode=disabled", "cluster.trainer.threads=1")  # fmt: skip
RL = ("num_steps=1", "rollout.num_prompts=4", "rollout.num_minibatches=1", "objective.group_size=4",
      "sampling.max_new_tokens=16", "evaluation.questions.0.num=8", "evaluation.every_steps=1", "save.every_steps=1",
      "optimizer.warmup_steps=0", "questions.0.num=64", "objective.constant_groups=keep", "wandb.mode=disabled",
      "cluster.trainer.threads=1")  # fmt: skip
LIMIT_S = 1200.0


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    two_hosts.needed()
    with two_hosts.two_hosts(tmp_path_factory.mktemp("hosts")) as both:
        yield both


def run(config: str, run_dir: Path, *settings: str) -> list[str]:
    sets = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, "-m", "r1mega.cli", "run", str(TINY / config), "--run-dir", str(run_dir), *sets]


def start(hosts: tuple[Host, Host], command: list[str], **options: Any) -> list[subprocess.Popen[Any]]:
    """A rank on each host, as torchrun or srun starts it; rank 0's host is called by its own name there."""
    ranks = []
    for rank, (host, first) in enumerate(zip(hosts, ("twin1", "twin1-lan"), strict=True)):
        place = {"MASTER_ADDR": first, "MASTER_PORT": "29555", "PYTHONPATH": str(ROOT)}
        environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0"} | place
        given = {name: value[rank] for name, value in options.items()}
        ranks.append(subprocess.Popen(host.command(*command), env=environment, cwd=ROOT, text=True, **given))
    return ranks


def on_both(hosts: tuple[Host, Host], command: list[str], folder: Path) -> None:
    """Both ranks must come to their end."""
    logs = [folder / f"printed_{rank}" for rank in (0, 1)]
    with logs[0].open("w") as first, logs[1].open("w") as second:
        ranks = start(hosts, command, stdout=(first, second), stderr=(first, second))
    try:
        codes = [rank.wait(LIMIT_S) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)


def rows(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["kind"] == kind]


@pytest.mark.slow
@pytest.mark.vllm
def test_two_hosts_train_and_push_to_a_server_on_the_other(hosts: tuple[Host, Host], tmp_path: Path):
    base, alone, rl = (tmp_path / name for name in ("base", "alone", "rl"))
    on_both(hosts, run("0_base.toml", base, *BASE, "cluster.trainer.dp=2"), tmp_path)
    done = subprocess.run(run("0_base.toml", alone, *BASE), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The same training as that of one process: equal up to rounding.
    losses = [[row["loss"] for row in rows(path, "train")] for path in (base, alone)]
    assert len(losses[0]) == 3 and losses[0] == pytest.approx(losses[1], abs=2e-5)
    launch = ", ".join(f'"{word}"' for word in hosts[1].command())
    settings = (*RL, f"model.path={base / 'hf'}", "cluster.trainer.dp=2",
                "cluster.rollout.host=twin2-lan", f"cluster.rollout.launch=[{launch}]")  # fmt: skip
    on_both(hosts, run("1_rl.toml", rl, *settings), tmp_path)
    (train,) = rows(rl, "train")
    # The engine has what was pushed to it: its log-probabilities are the policy's.
    assert 0 < train["mismatch/max_untied"] < 1e-4
    assert [row["step"] for row in rows(rl, "eval")] == [0, 1]


MEETS = """
import datetime, torch, torch.distributed as dist
from r1mega.config.cluster import TrainerLayout
from r1mega.trainer import meeting
meeting.meet(TrainerLayout(), "gloo")
hasty = dist.new_group(timeout=datetime.timedelta(seconds=2), backend="gloo")
x = torch.ones(1)
dist.all_reduce(x)
print("sum", x.item(), flush=True)
input()
try:
    dist.all_reduce(x, group=hasty)
except RuntimeError as error:
    print(error, flush=True)
"""


def test_two_hosts_meet_and_wait_no_longer_than_they_may(hosts: tuple[Host, Host]):
    """Each is then cut off from the other, which no packet tells it."""
    pipes = (subprocess.PIPE, subprocess.PIPE)
    ranks = start(hosts, [sys.executable, "-c", MEETS], stdin=pipes, stdout=pipes)
    try:
        assert [rank.stdout and rank.stdout.readline() for rank in ranks] == ["sum 2.0\n", "sum 2.0\n"]
        hosts[1].run("ip", "link", "set", "cable", "down")
        said = [rank.communicate("\n")[0] for rank in ranks]
    finally:
        hosts[1].run("ip", "link", "set", "cable", "up")
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert all("Timed out waiting 2000ms" in text for text in said), said


WATCHED = """
import os, pathlib, sys, torch, torch.distributed as dist
from r1mega.config.cluster import TrainerLayout
from r1mega.config.watchdog import Watchdog
from r1mega.runtime import heartbeat, watchdog
from r1mega.trainer import meeting
settings = Watchdog(beat_s=0.25, silence_s=60)
with watchdog.guarded(pathlib.Path(sys.argv[1]), int(os.environ["RANK"]), 2, settings):
    meeting.meet(TrainerLayout(), "gloo")
    x = torch.ones(1)
    dist.all_reduce(x)
    heartbeat.phase("update", 4)
    print("sum", x.item(), flush=True)
    input()
    with heartbeat.waiting("the other ranks", 3.0, "collective_timeout_s"):
        dist.all_reduce(x)
"""


def test_two_hosts_that_are_cut_off_from_each_other_blame_the_network(hosts: tuple[Host, Host], tmp_path: Path):
    """They share a file system still, which is how the watchdog knows that both are there, and both wait."""
    pipes = (subprocess.PIPE, subprocess.PIPE)
    ranks = start(hosts, [sys.executable, "-c", WATCHED, str(tmp_path)], stdin=pipes, stdout=pipes, stderr=pipes)
    try:
        assert [rank.stdout and rank.stdout.readline() for rank in ranks] == ["sum 2.0\n", "sum 2.0\n"]
        hosts[1].run("ip", "link", "set", "cable", "down")
        for rank in ranks:
            assert rank.stdin
            rank.stdin.write("\n")
            rank.stdin.flush()
        said = [rank.communicate(timeout=LIMIT_S)[1] for rank in ranks]
    finally:
        hosts[1].run("ip", "link", "set", "cable", "up")
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [rank.returncode for rank in ranks] == [75, 75], said
    assert "rank 0 on twin1 " in said[0] or "rank 1 on twin2 " in said[0]
    for rank in (0, 1):
        assert "and so do all the others, all in phase update: the network between them is cut" in said[rank]
        assert " in all_reduce\n" in (tmp_path / f"logs/stacks/rank_{rank}.txt").read_text()
