"""slurm/job.sh: what a job says of preemption, when it is near its end, which of its starts came to nothing."""

import subprocess
from pathlib import Path

import pytest

from r1mega.runtime.events import read

ROOT = Path(__file__).parents[2]
SLURM = """
JOB=7 SLURM_JOB_PARTITION=batch
say() { echo "$*"; }
requeue() { echo "requeue: $1"; }
sleep() { CLOCK=$((CLOCK + $1)); echo "sleep $1"; }
scontrol() {
  case "$*" in
    'show config') echo "PreemptType             = $TYPE" ;;
    'show --oneliner partition batch') echo "PartitionName=batch GraceTime=$GRACE MaxNodes=9 PreemptMode=$MODE" ;;
    'show hostnames n[1-2]') printf 'n1\nn2\n' ;;
    'show hostnames n2') printf 'n2\n' ;;
    'show --oneliner node n1') echo "NodeName=n1 State=$STATE ThreadsPerCore=1" ;;
    'show --oneliner job 7') echo "JobId=7 JobState=RUNNING TimeLimit=1 EndTime=$END PreemptTime=$PREEMPTED" ;;
    *) echo "no answer to $*" >&2; return 1 ;;
  esac
}
date() { if [[ $1 == +%s ]]; then echo $CLOCK; else command date -u "$@"; fi; }
SLURM_JOB_NODELIST=n[1-2]
CLOCK=0 TYPE=preempt/partition_prio MODE=REQUEUE GRACE=60 END=Unknown PREEMPTED=None
source "$ROOT/slurm/job.sh"
"""
"""Slurm and the clock (seconds since 1970), and what slurm/rl_stage.sh has beside them."""


def bash(lines: str, folder: Path) -> str:
    environment = {"PATH": "/usr/bin:/bin", "ROOT": str(ROOT), "TZ": "UTC"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", SLURM + lines], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done
    return done.stdout


@pytest.mark.parametrize(
    "state, took, said",
    [
        ("", "", "preemption would leave 60 s to end a step and save (GraceTime of partition batch)\n"),
        ("", "60", "preemption would leave 60 s to end a step and save (GraceTime of partition batch)\n"),
        (
            "",
            "61",
            "GraceTime=60 of partition batch is too short for a save: to end a step and save took this run 61 s",
        ),
        ("", "unfinished", "that this run was asked to leave it was killed before it had saved"),
        ("GRACE=0", "", "partition batch preempts without grace (GraceTime=0), so nothing is saved then"),
        (
            "GRACE=0 MODE=CANCEL",
            "",
            "nor does such a job come back (PreemptMode=CANCEL): submit again with --run-dir run",
        ),
        ("MODE=OFF", "61", ""),
        ("MODE=SUSPEND,GANG", "61", ""),
        ("TYPE=preempt/none", "61", ""),
        ("TYPE=preempt/qos", "", "jobs are preempted by QOS here: the GraceTime of `sacctmgr show qos`"),
    ],
)
def test_what_a_preemption_leaves_is_said_at_the_start(tmp_path: Path, state: str, took: str, said: str):
    if took:
        (tmp_path / "run/logs").mkdir(parents=True)
        (tmp_path / "run/logs/leaving_s").write_text(f"{took}\n")
    told = bash(f"{state or ':'}\nsay_grace run", tmp_path)
    assert said in told if said else told == ""


def test_a_job_is_requeued_shortly_before_its_end_which_may_move(tmp_path: Path):
    told = bash("END=1970-01-01T00:01:40\nwatch_end 15", tmp_path)  # 100 s
    naps = ["sleep 30", "sleep 30", "sleep 25"]
    assert told.splitlines() == [
        *naps, "15 s before the end of the job the trainer has not left", "requeue: the time limit"
    ]  # fmt: skip
    moved = 'END=1970-01-01T00:00:40\nsay() { echo "$*"; exit; }\n'
    moved += (
        "sleep() { CLOCK=$((CLOCK + $1)); ((CLOCK != 25)) || END=1970-01-01T01:00:00; ((CLOCK < 99)) || exit 0; }"
    )
    assert bash(f"{moved}\nwatch_end 15", tmp_path) == ""  # `scontrol update` has given it an hour


def test_a_job_is_requeued_in_time_by_a_slurm_that_does_not_answer_for_a_while(tmp_path: Path):
    silent = """
eval "$(declare -f scontrol | sed 's/^scontrol/answers/')"
scontrol() { ((CLOCK != 60)) && answers "$@"; }
sleep() { CLOCK=$((CLOCK + $1)); echo "sleep $1"; ((CLOCK < 300)) || exit 0; }
"""
    told = bash(f"END=1970-01-01T00:01:40\n{silent}\nwatch_end 15", tmp_path)
    assert told.splitlines()[:3] == ["sleep 30", "sleep 30", "sleep 25"] and "requeue: the time limit" in told


def test_slurm_itself_requeues_what_it_preempts_at_the_end_of_the_grace(tmp_path: Path):
    near = "END=1970-01-01T00:00:10 PREEMPTED=1970-01-01T00:00:01"
    assert bash(f"{near}\nwatch_end 15", tmp_path) == ""
    assert "requeue: the time limit" in bash(f"{near} MODE=CANCEL\nwatch_end 15", tmp_path)


def test_a_job_without_an_end_is_not_requeued(tmp_path: Path):
    forever = "sleep() { CLOCK=$((CLOCK + $1)); ((CLOCK < 1000)) || { echo awake; exit 0; }; }"
    assert bash(f"{forever}\nwatch_end 15", tmp_path) == "awake\n"


def test_starts_are_counted_until_one_leaves_something(tmp_path: Path):
    logs = tmp_path / "run/logs"

    def start(job: int = 7) -> str:
        return bash(f"JOB={job}; idle_starts run", tmp_path).strip()

    assert [start() for _ in range(3)] == ["0", "1", "2"]
    (logs / "rank_1.log").write_text("a log is nothing to go on from")
    (tmp_path / "run/checkpoints/.step_1.tmp").mkdir(parents=True)  # nor is half a checkpoint
    assert [start(), start(job=71)] == ["3", "0"]  # another job has its own count
    (tmp_path / "run/checkpoints/step_1").mkdir()
    assert [start(), start()] == ["0", "1"]
    (tmp_path / "run/journal").mkdir()
    for answers in (1, 2):
        (tmp_path / "run/journal/version_1.jsonl").write_text("answer\n" * answers)
        assert [start(), start()] == ["0", "1"]
    (tmp_path / "run/summary.json").touch()
    assert start() == "0"
    assert len((logs / "starts.txt").read_text().splitlines()) == 12


@pytest.mark.parametrize(
    "state, lost", [("DOWN", True), ("DOWN*", True), ("IDLE+NOT_RESPONDING", True), ("ALLOCATED", False)]
)
def test_a_node_of_the_last_start_that_is_down_is_told(tmp_path: Path, state: str, lost: bool):
    """One that another job has now is none that was lost."""
    bash("idle_starts run", tmp_path)
    told = bash(f"STATE={state} SLURM_JOB_NODELIST=n2; idle_starts run; lost_nodes run", tmp_path)
    assert (f"n1, which the last start had, is {state}" in told) is lost
    assert [(e.kind, e.text.split(",")[0]) for e in read(tmp_path / "run")] == [("node-lost", "n1")] * lost
    assert bash("JOB=8 SLURM_JOB_NODELIST=n2; idle_starts run; lost_nodes run", tmp_path) == "0\n"


def test_a_start_that_follows_no_requeue_of_the_scripts_own_is_told(tmp_path: Path):
    (tmp_path / "run/logs").mkdir(parents=True)
    bash("requeued_by_others run", tmp_path)  # the first start
    for start, own in ((1, "7 0"), (2, "7 0"), (3, "8 2")):
        (tmp_path / "run/logs/requeued").write_text(f"{own}\n")
        bash(f"SLURM_RESTART_COUNT={start}; requeued_by_others run", tmp_path)
    told = [(event.kind, event.text) for event in read(tmp_path / "run")]
    assert told == [("requeued", f"by Slurm or by an operator: start {start} of job 7") for start in (2, 3)]
