"""A real training on two emulated nodes, taken away in every way that Slurm has, ends as the undisturbed one does.

How long each took to go on is written to the file that R1MEGA_RECOVERIES names, for docs/measurements.
"""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import pytest
from emulated_slurm import Slurm, ended, wait_until

from r1mega.runtime.events import read

sys.path.append(str(Path(__file__).parents[1] / "pipeline"))
sys.path.append(str(Path(__file__).parents[2] / "tools/bench"))
import harness
from holding import hold_after_step

ROOT = Path(__file__).parents[2]
SOAK = bool(os.environ.get("R1MEGA_SOAK"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not SOAK, reason="trains a dozen times: make test-soak"),
]

NUM_STEPS, SAVED_EVERY, HELD_AT = 12, 4, 6
SETTINGS = (
    f"num_steps={NUM_STEPS}", f"save.every_steps={SAVED_EVERY}", "wandb.mode=disabled", "cluster.trainer.threads=8",
    "cluster.trainer.least_dp=1",
)  # fmt: skip
"""A rank has all CPUs of an emulated node to itself, so that one node holds one rank."""
START_S = 600


@dataclass
class Recovery:
    """How long a run took to go on."""

    what: str
    started_s: float
    """From the disturbance to the start of the job's next batch script, by Slurm's clock, in whole seconds."""
    resumed_s: float
    """From the disturbance until the run has read its run directory again, by events.jsonl."""
    repeated_steps: int
    """Optimiser steps that were done and not saved; -1: it took one more, and saved that."""
    ranks: tuple[int, int]
    """Data-parallel ranks before and after."""
    load: float
    """Of the machine, when it had ended: the mean number of processes that would run, over five minutes."""


@pytest.fixture(scope="module")
def recoveries() -> Iterator[list[Recovery]]:
    found: list[Recovery] = []
    measured = [ROOT / "slurm" / name for name in ("stage.sh", "job.sh", "rank.sh")]
    written = harness.provenance(["torch", "megatron-core"], measured)  # before anything changes
    yield found
    if file := os.environ.get("R1MEGA_RECOVERIES"):
        about = (
            "A pretraining of 12 steps on two emulated nodes of one machine, disturbed after step 6; checkpoints "
            "every 4. Slurm's wait for a requeued job's credential is 5 s here, and 120 s where nobody changed it."
        )
        Path(file).write_text(
            json.dumps({"about": about, **written, "runs": [asdict(one) for one in found]}, indent=2) + "\n"
        )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, make_checkout: Callable[[Path], Path]) -> Path:
    return make_checkout(tmp_path_factory.mktemp("recoveries") / "checkout")


def submit(slurm: Slurm, checkout: Path, hook: Path | None, *options: str) -> int:
    path = ":".join(filter(None, [str(hook) if hook else "", os.environ.get("PYTHONPATH", "")]))
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    script = ("slurm/sft_stage.sh", "configs/tiny/r1_zero/0_base.toml", "--cluster", "laptop2", *sets)
    return slurm.submit("--nodes=1-2", f"--export=ALL,PYTHONPATH={path}", *options, *script, cwd=checkout)


def losses(run_dir: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]


@pytest.fixture(scope="module")
def undisturbed(slurm: Slurm, checkout: Path) -> list[tuple[int, float]]:
    third = list(slurm.nodes)[2]
    job = submit(slurm, checkout, None, f"--exclude={third}")
    ended(slurm, job, "COMPLETED", checkout)
    found = losses(checkout / f"runs/slurm-{job}")
    assert [step for step, _ in found] == list(range(1, NUM_STEPS + 1))
    return found


def trainers(slurm: Slurm, job: int) -> list[int]:
    """Process ids of the ranks, in the order of their start."""
    found = slurm.processes(job).items()
    return sorted(pid for pid, (_, command) in found if command.split()[1:4] == ["-m", "r1mega.cli", "run"])


@contextmanager
def preempted(slurm: Slurm, job: int, checkout: Path) -> Iterator[None]:
    nodes = slurm.job(job)["NodeList"]
    slurm.submit("--partition=high", f"--nodelist={nodes}", "--exclusive", "--wrap=true", cwd=checkout)
    yield


@contextmanager
def too_slow(slurm: Slurm, job: int, checkout: Path) -> Iterator[None]:
    """Preempted, and its ranks do not come to save within the grace time."""
    for pid in trainers(slurm, job):
        os.kill(pid, signal.SIGSTOP)
    with preempted(slurm, job, checkout):
        yield


@contextmanager
def near_its_time_limit(slurm: Slurm, job: int, checkout: Path) -> Iterator[None]:
    slurm.ask("scancel", "--batch", "--signal=USR1", str(job))
    yield


@contextmanager
def requeued(slurm: Slurm, job: int, checkout: Path) -> Iterator[None]:
    slurm.ask("scontrol", "requeue", str(job))
    yield


@contextmanager
def killed(slurm: Slurm, job: int, checkout: Path) -> Iterator[None]:
    os.kill(trainers(slurm, job)[-1], signal.SIGKILL)
    yield


@contextmanager
def node_down(slurm: Slurm, job: int, checkout: Path, which: int = 1) -> Iterator[None]:
    node = list(slurm.nodes)[which]
    with slurm.configured("ReturnToService=0"):
        slurm.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=its power is gone")
        try:
            yield
        finally:
            slurm.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")


@contextmanager
def first_node_down(slurm: Slurm, job: int, checkout: Path) -> Iterator[None]:
    slurm.ask("scontrol", "update", f"JobId={job}", "Comment=the batch script is on it")
    with node_down(slurm, job, checkout, which=0):
        yield


WAYS = {
    "preempted, GraceTime=60": (preempted, ["--partition=batch"], 0),
    "preempted, GraceTime=3, no save within it": (too_slow, ["--partition=short"], 2),
    "preempted, GraceTime=0": (preempted, ["--partition=brief"], 2),
    "asked to leave before the time limit": (near_its_time_limit, [], 0),
    "scontrol requeue": (requeued, [], 2),
    "a rank SIGKILLed": (killed, [], 2),
    "a node DOWN, one is left": (node_down, [], 2),
    "the first node DOWN, one is left": (first_node_down, [], 2),
}
"""Disturbance -> what does it, options of sbatch, and how many steps are lost at most: all since the checkpoint of
step 4, or none where the run could save."""


@pytest.mark.parametrize("what", WAYS)
def test_a_run_goes_on_and_ends_as_if_nothing_had_been(
    slurm: Slurm,
    checkout: Path,
    undisturbed: list[tuple[int, float]],
    recoveries: list[Recovery],
    tmp_path: Path,
    what: str,
):
    disturb, options, most = WAYS[what]
    held, _ = hold_after_step(HELD_AT, tmp_path)
    third = list(slurm.nodes)[2]
    job = submit(slurm, checkout, held.parent, f"--exclude={third}", *options)
    wait_until("the run stands still", held.exists, START_S)
    run_dir = checkout / f"runs/slurm-{job}"
    since = time.time()
    with disturb(slurm, job, checkout):
        said, printed = ended(slurm, job, "COMPLETED", checkout)
    assert said["Restarts"] == "1", printed
    back = [event for event in read(run_dir) if event.kind == "resumed" and event.time > since]
    step = int(re.findall(r"^resumed from .*step_(\d+)", printed, re.M)[-1])
    ranks = [int(number) for number in re.findall(r": (\d) trainer rank\(s\) on", printed)]
    began = datetime.fromisoformat(said["StartTime"]).timestamp()
    took, load = round(back[0].time - since, 1), round(os.getloadavg()[1], 1)
    recoveries.append(Recovery(what, round(began - since), took, HELD_AT - step, (ranks[0], ranks[-1]), load))
    assert HELD_AT - step <= most, "the last checkpoint, or a new one"
    assert ranks == [2, 1 if "one is left" in what else 2]
    found = losses(run_dir)
    assert [one for one, _ in found] == list(range(1, NUM_STEPS + 1))
    if ranks[-1] == 2:
        assert found == undisturbed
    else:
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in undisturbed], rel=1e-4)
