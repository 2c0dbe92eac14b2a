"""What the scripts of slurm/ decide, on a real Slurm with a trainer of three lines in place of r1mega."""

import json
import re
import time
from pathlib import Path

import pytest
from emulated_slurm import Slurm, ended, wait_until

SCRIPT, RL_SCRIPT = "slurm/sft_stage.sh", "slurm/rl_stage.sh"
_MISSED = "until ls runs/*/logs/first_loss >&/dev/null; do sleep 0.1; done; echo typo; exit 2"
TRAINERS = {
    "crash": ('echo "run: $*" >> runs.txt; [[ $(wc -l < runs.txt) == 2 ]] || kill -KILL $$', 1),
    "first": ("[[ $RANK == 0 ]] && exec sleep 6000; echo the disk is full; exit 2", 2),
    "missed 75": (f"[[ $RANK == 1 ]] || exit 75; {_MISSED}", 2),
    "missed 134": (f"[[ $RANK == 1 ]] || exit 134; {_MISSED}", 2),
    "hang": ("[[ ! -f again ]] || exit 0; [[ $RANK == 0 ]] || exec sleep 6000; touch again; exit 75", 2),
}
"""Jobs that end by themselves and wait most of their time: what stands for the trainer, and how many ranks it has."""


@pytest.fixture(scope="module")
def jobs(slurm: Slurm, stub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, Path]]:
    """All of TRAINERS as jobs beside each other, a node each: their numbers and folders."""
    found = {}
    for name, (trainer, num_ranks) in TRAINERS.items():
        folder = stub(tmp_path_factory.mktemp(name.replace(" ", "_")), trainer, num_ranks)
        arguments = ("--nodes=1", SCRIPT, "a.toml", "--set", "wandb.project=a b", "--cluster", "c")
        found[name] = (slurm.submit(*arguments, cwd=folder), folder)
    return found


def test_refuses_a_folder_that_is_no_checkout(slurm: Slurm, tmp_path: Path, make_checkout):
    script = make_checkout(tmp_path / "checkout") / RL_SCRIPT
    job = slurm.submit(script, cwd=tmp_path)
    said, output = ended(slurm, job, "FAILED", tmp_path)
    assert (said["ExitCode"], said["Restarts"]) == ("2:0", "0")
    assert output == f"rl_stage: {tmp_path} is no checkout of r1mega: submit from the repository's root\n"


def test_asks_for_the_environment(slurm: Slurm, tmp_path: Path, make_checkout):
    folder = make_checkout(tmp_path / "checkout")
    (folder / ".venv").unlink()
    job = slurm.submit("--export=ALL,VIRTUAL_ENV=,CONDA_PREFIX=", RL_SCRIPT, cwd=folder)
    said, output = ended(slurm, job, "FAILED", folder)
    assert said["ExitCode"] == "2:0"
    assert output == f"rl_stage: {folder} has no .venv: run `make env` first\n"


def test_a_mistake_is_told_and_not_requeued(slurm: Slurm, tmp_path: Path, make_checkout):
    folder = make_checkout(tmp_path / "checkout")  # with the real r1mega
    base = "configs/tiny/r1_zero/0_base.toml"
    jobs = {
        "did you mean 'num_steps'": slurm.submit(SCRIPT, base, "--set", "numsteps=3", cwd=folder),
        "cannot be used as a run directory": slurm.submit(SCRIPT, base, "--run-dir", "pyproject.toml/x", cwd=folder),
    }
    for message, job in jobs.items():
        said, output = ended(slurm, job, "FAILED", folder)
        assert (said["ExitCode"], said["Restarts"]) == ("2:0", "0")
        assert message in output and "Not requeued" in output
        assert "Traceback" not in output


def test_a_crash_is_requeued_with_the_same_arguments(slurm: Slurm, jobs):
    job, folder = jobs["crash"]
    said, _ = ended(slurm, job, "COMPLETED", folder)
    assert said["Restarts"] == "1"
    runs = (folder / "runs.txt").read_text().splitlines()
    assert len(runs) == 2 and runs[0] == runs[1]
    assert runs[0].startswith("run: -m r1mega.cli run a.toml --set wandb.project=a b --cluster c ")
    assert runs[0].endswith(f" --run-dir runs/slurm-{job} --resume")
    assert (folder / f"runs/slurm-{job}/logs/crashes.txt").read_text() == f"job {job} start 0 exit code 137\n"


def test_the_rank_that_fails_first_decides(slurm: Slurm, jobs):
    """The other one hangs, and is ended by srun, which then knows another exit code."""
    job, folder = jobs["first"]
    said, output = ended(slurm, job, "FAILED", folder)
    assert (said["ExitCode"], said["Restarts"]) == ("2:0", "0")
    assert "rank 1 failed first, with exit code 2" in output and "\n  the disk is full\n" in output


@pytest.mark.parametrize("lost", [75, 134])
def test_a_rank_that_fails_counts_though_another_has_missed_it_before(slurm: Slurm, jobs, lost: int):
    """Rank 0's code is there first: not the user's mistake, and so it would be requeued."""
    job, folder = jobs[f"missed {lost}"]
    said, output = ended(slurm, job, "FAILED", folder)
    assert (said["ExitCode"], said["Restarts"]) == ("2:0", "0")
    assert "rank 1 failed first, with exit code 2" in output and "\n  typo\n" in output
    logs = folder / f"runs/slurm-{job}/logs"
    assert [(logs / name).read_text() for name in ("first_loss", "first_failure")] == [f"0 {lost}\n", "1 2\n"]


def test_a_rank_that_hangs_is_a_crash_for_the_one_that_waited_for_it(slurm: Slurm, jobs):
    """srun ends the one that hangs with SIGTERM, which is no wish that the run leave."""
    job, folder = jobs["hang"]
    said, _ = ended(slurm, job, "COMPLETED", folder)
    assert said["Restarts"] == "1"
    logs = folder / f"runs/slurm-{job}/logs"
    assert (logs / "crashes.txt").read_text() == f"job {job} start 0 exit code 75\n"
    assert not (logs / "first_loss").exists()  # of the first start


def test_gives_up_after_ten_crashes(slurm: Slurm, stub, tmp_path: Path):
    folder = stub(tmp_path, "exit 1")
    job = slurm.submit("--hold", SCRIPT, "a.toml", "--cluster", "c", "--run-dir", "here", cwd=folder)
    crashes = folder / "here/logs/crashes.txt"
    crashes.parent.mkdir(parents=True)
    crashes.write_text(f"job {job} start 1 exit code 1\n" * 10 + f"job {job}1 start 1 exit code 1\n")
    slurm.ask("scontrol", "release", str(job))
    said, output = ended(slurm, job, "FAILED", folder)
    assert (said["ExitCode"], said["Restarts"]) == ("1:0", "0")
    assert "crash 11 of this job: given up" in output


WAITS = """
trap 'sleep 0.5; echo saved; exit 143' TERM USR1
[[ ! -f again ]] || exit 0
touch up
while true; do sleep 0.1; done
"""


def test_sigusr1_before_the_time_limit_saves_and_requeues(slurm: Slurm, stub, tmp_path: Path):
    folder = stub(tmp_path, WAITS)
    job = slurm.submit("--nodes=1", SCRIPT, "a.toml", "--cluster", "c", cwd=folder)
    wait_until("the trainer runs", (folder / "up").exists, 300)
    (folder / "again").touch()
    slurm.ask("scancel", "--batch", "--signal=USR1", str(job))
    said, output = ended(slurm, job, "COMPLETED", folder)
    assert said["Restarts"] == "1"
    assert output.count("saved\n") == 1
    assert re.search(r"SIGUSR1, 3[56]\d\d s before the time limit: the trainer is told to save and leave", output)


def test_a_preempted_job_is_requeued_and_a_cancelled_one_is_not(slurm: Slurm, stub, tmp_path: Path):
    folder = stub(tmp_path, WAITS)
    job = slurm.submit(SCRIPT, "a.toml", "--cluster", "c", cwd=folder)
    wait_until("the trainer runs", (folder / "up").exists, 300)
    (folder / "up").unlink()
    its_nodes = slurm.job(job)["NodeList"]  # on others, other tests' jobs may be
    slurm.submit("--partition=high", f"--nodelist={its_nodes}", "--exclusive", "--wrap=true", cwd=tmp_path)
    wait_until("the trainer runs again", (folder / "up").exists, 300)
    assert slurm.job(job)["Restarts"] == "1"
    slurm.ask("scancel", str(job))
    said, output = ended(slurm, job, "CANCELLED", folder)
    assert output.count("saved\n") == 2
    time.sleep(1)
    assert said["Restarts"] == "1" and slurm.job(job)["JobState"] == "CANCELLED"
    assert "preempted (exit code 143): requeued" in output


def test_ranks_and_server_have_their_places(slurm: Slurm, stub, tmp_path: Path):
    """Three ranks on the first two of three nodes; what rank 0 orders is started on the third."""
    trainer = """
echo "$RANK $WORLD_SIZE $LOCAL_RANK $SLURMD_NODENAME $MASTER_ADDR $MASTER_PORT"
if ((RANK == 0)); then
  echo "$*" > arguments
  servers=$(sed -n 's/.*cluster.rollout.attendants=\\([^ ]*\\).*/\\1/p' <<<"$*")
  until [[ -e $servers/node_0.json ]]; do sleep 0.1; done
  # As rollout/attendant.py does, in a file that is whole or absent.
  cat >"$servers/new" <<END
{"number": 1, "environment": {"FROM_RANK": "$RANK"}, "log": "$PWD/server",
 "command": ["bash", "-c", "echo \\$SLURMD_NODENAME \\$FROM_RANK; sleep 6000"]}
END
  mv "$servers/new" "$servers/order_0_0_0.json"
  until [[ -s server ]]; do sleep 0.1; done
fi
"""
    folder = stub(tmp_path, trainer, num_ranks=3, config="configs/tiny/r1_zero/1_rl.toml")
    shared = ("--cluster", "c", "--set", f"model.config={folder}/configs/tiny/deepseek_v3.json")
    job = slurm.submit("--nodes=3", RL_SCRIPT, "a.toml", *shared, cwd=folder)
    _, output = ended(slurm, job, "COMPLETED", folder)
    logs = [folder / f"runs/slurm-{job}/logs/rank_{rank}.log" for rank in (1, 2)]
    ranks = [
        next(line for line in output.splitlines() if line.startswith("0 3 ")),
        *(log.read_text() for log in logs),
    ]
    first, second, third = slurm.nodes
    assert [rank.split() for rank in ranks] == [
        ["0", "3", "0", first, "127.0.0.2", "23456"],
        ["1", "3", "1", first, "127.0.0.2", "23456"],
        ["2", "3", "0", second, "127.0.0.2", "23456"],
    ]
    assert (folder / "server").read_text().split() == [third, "0"]
    arguments = (folder / "arguments").read_text()
    assert "cluster.address=127.0.0.2 " in arguments
    node = json.loads((folder / f"runs/slurm-{job}/servers/node_0.json").read_text())
    assert node["address"] == "127.0.0.4"
