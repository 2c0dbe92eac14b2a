"""What Slurm does to a job in mid-run that is no preemption: a node set DOWN, an operator's requeue, and no grace."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from emulated_slurm import Slurm, ended, wait_until

from r1mega.runtime.events import read

sys.path.append(str(Path(__file__).parents[1]))
import rotation

pytestmark = pytest.mark.slow

TRAINER = """
echo "$RANK of $WORLD_SIZE on $SLURMD_NODENAME" >>ranks_$RANK
[[ ! -f again ]] || exit 0
trap 'exit 143' TERM USR1
touch up_$RANK
while true; do sleep 0.1; done
"""
"""Ranks that wait until they are ended, and leave at once where there is a file `again`."""
SLOW = """
[[ ! -f up_0 ]] || exit 0
trap 'sleep 30; echo saved; exit 143' TERM USR1
touch up_0
while true; do sleep 0.1; done
"""


@contextmanager
def down(slurm: Slurm, node: str) -> Iterator[None]:
    """A node that does not come back before the end; elsewhere here one does as soon as its daemon is heard of."""
    with slurm.configured("ReturnToService=0"):
        slurm.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=its power is gone")
        try:
            yield
        finally:
            slurm.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")


def started(slurm: Slurm, folder: Path, *arguments: str, ranks: int = 2) -> int:
    """A job of ranks on the first nodes, each on one, as it has its CPUs to itself."""
    job = slurm.submit(*arguments[:2], "slurm/sft_stage.sh", "a.toml", "--cluster", "c", *arguments[2:], cwd=folder)
    wait_until("the ranks run", lambda: all((folder / f"up_{rank}").exists() for rank in range(ranks)), 300)
    return job


def a_node_is_lost_and_the_others_go_on(slurm: Slurm, stub: Callable[..., Path], tmp_path: Path) -> None:
    folder, (first, second, third) = stub(tmp_path, TRAINER, num_ranks=2), slurm.nodes
    own_cpus = ("--set", "cluster.trainer.threads=8", "--set", "cluster.trainer.least_dp=1")
    job = started(slurm, folder, "--nodes=1-2", f"--exclude={third}", *own_cpus)
    (folder / "again").touch()
    with down(slurm, second):
        said, printed = ended(slurm, job, "COMPLETED", folder)
    assert said["Restarts"] == "1" and said["NodeList"] == first
    assert (folder / "ranks_0").read_text().splitlines() == [f"0 of 2 on {first}", f"0 of 1 on {first}"]
    assert (folder / "ranks_1").read_text().splitlines() == [f"1 of 2 on {second}"]
    assert "goes on with as few as 1 node(s), where sbatch was given --nodes=1-2" in printed
    assert "fewer nodes than the layout fills: 1 data-parallel rank(s), until a start is granted more" in printed
    lost = [event.text for event in read(folder / f"runs/slurm-{job}") if event.kind == "node-lost"]
    assert len(lost) == 1 and lost[0].startswith(f"{second}, which the last start had, is DOWN")


def a_layout_that_cannot_shrink_waits_for_its_nodes(slurm: Slurm, stub: Callable[..., Path], tmp_path: Path) -> None:
    """It loses the first node, on which the batch script runs."""
    folder, (first, second, third) = stub(tmp_path, TRAINER, num_ranks=2), slurm.nodes
    job = started(slurm, folder, "--nodes=2", f"--exclude={third}", "--set", "cluster.trainer.threads=8")
    (folder / "again").touch()
    with down(slurm, first):
        slurm.wait_for_state(job, "PENDING", timeout_s=60)
        wait_until("it may start again", lambda: "BeginTime" not in slurm.job(job)["Reason"], 60)
        assert slurm.job(job)["JobState"] == "PENDING" and slurm.job(job)["Restarts"] == "1"
    _, printed = ended(slurm, job, "COMPLETED", folder)
    assert (folder / "ranks_1").read_text().splitlines() == [f"1 of 2 on {second}"] * 2
    assert "goes on with as few as 1 node(s)" in printed  # of CPUs, were they enough for both ranks


def a_spare_takes_the_place_of_a_lost_node(slurm: Slurm, stub: Callable[..., Path], tmp_path: Path) -> None:
    folder, (first, second, third) = stub(tmp_path, TRAINER, num_ranks=2), slurm.nodes
    own_cpus = ("--set", "cluster.trainer.threads=8", "--set", "cluster.trainer.least_dp=1")
    other = slurm.submit(f"--nodelist={first}", "--exclusive", "--wrap=sleep 600", cwd=tmp_path)
    slurm.wait_for_state(other, "RUNNING", timeout_s=60)
    job = started(slurm, folder, "--nodes=1-2", "--job-name=spared", *own_cpus)
    (folder / "again").touch()
    slurm.ask("scancel", str(other))
    slurm.wait_for_state(other, "CANCELLED", timeout_s=60)
    with down(slurm, second):
        ended(slurm, job, "COMPLETED", folder)
    assert (folder / "ranks_1").read_text().splitlines() == [f"1 of 2 on {third}"] * 2
    assert (folder / "ranks_0").read_text().splitlines() == [f"0 of 2 on {second}", f"0 of 2 on {first}"]


def an_operators_requeues_are_followed_until_there_are_too_many(
    slurm: Slurm, stub: Callable[..., Path], tmp_path: Path
) -> None:
    """Two starts in a row may come to nothing; a checkpoint after the first one makes it three in all."""
    folder = stub(tmp_path, TRAINER)
    script = folder / "slurm/job.sh"
    text = script.read_text()
    assert "MAX_IDLE_STARTS=10 " in text
    script.write_text(text.replace("MAX_IDLE_STARTS=10 ", "MAX_IDLE_STARTS=1 "))
    job = started(slurm, folder, "--nodes=1", "--job-name=storm", ranks=1)
    for start in (1, 2, 3):
        if start == 1:
            (folder / f"runs/slurm-{job}/checkpoints/step_1").mkdir(parents=True)
        (folder / "up_0").unlink()
        slurm.ask("scontrol", "requeue", str(job))
        if start < 3:
            wait_until("it runs again", (folder / "up_0").exists, 120)
            assert slurm.job(job)["Restarts"] == str(start)
    said, printed = ended(slurm, job, "FAILED", folder)
    assert (said["ExitCode"], said["Restarts"]) == ("2:0", "3")
    assert printed.count("the last 2 starts of this job came to nothing") == 1
    told = [event for event in read(folder / f"runs/slurm-{job}") if event.kind == "crashed"]
    requeued = [event.text for event in read(folder / f"runs/slurm-{job}") if event.kind == "requeued"]
    assert requeued == [f"by Slurm or by an operator: start {start} of job {job}" for start in (1, 2)]
    assert [event.text for event in told] == [
        f"the last 2 starts of job {job} left nothing to go on from: given up, not requeued"
    ]


def a_grace_too_short_for_a_save_is_said_at_the_next_start(
    slurm: Slurm, stub: Callable[..., Path], tmp_path: Path
) -> None:
    folder = stub(tmp_path, SLOW)
    job = started(slurm, folder, "--nodes=1", "--partition=short", ranks=1)
    node = slurm.job(job)["NodeList"]
    slurm.submit("--partition=high", f"--nodelist={node}", "--exclusive", "--wrap=true", cwd=tmp_path)
    said, printed = ended(slurm, job, "COMPLETED", folder)
    assert said["Restarts"] == "1" and "saved\n" not in printed
    assert "preemption would leave 3 s to end a step and save (GraceTime of partition short)" in printed
    assert "it was killed before it had saved: it may go back to its last checkpoint" in printed


CASES = {
    case.__name__.replace("_", " "): case
    for case in (
        a_node_is_lost_and_the_others_go_on,
        an_operators_requeues_are_followed_until_there_are_too_many,
        a_layout_that_cannot_shrink_waits_for_its_nodes,
        a_grace_too_short_for_a_save_is_said_at_the_next_start,
        a_spare_takes_the_place_of_a_lost_node,
    )
}


@pytest.mark.parametrize("case", rotation.rows("what Slurm does to a job in mid-run", rotating=CASES, take=1))
def test_a_job_comes_back(slurm: Slurm, stub: Callable[..., Path], tmp_path: Path, case: str):
    CASES[case](slurm, stub, tmp_path)
