"""What a job does that Slurm is about to end: time limits, preemption, starts that come to nothing."""

import os
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from emulated_slurm import Slurm, ended, wait_until

pytestmark = pytest.mark.slow

SCRIPT = "slurm/sft_stage.sh"
RUN = (SCRIPT, "a.toml", "--cluster", "c")
SAVES = """
[[ ! -f again ]] || exit 0
trap 'until [[ -f may_save ]]; do sleep 0.1; done; touch again; echo "saved after USR1"; exit 143' USR1
trap 'sleep 0.5; touch again; echo "saved after TERM"; exit 143' TERM
touch up
while true; do sleep 0.1; done
"""
DEAF = '[[ ! -f up ]] || exit 0; trap "" USR1 TERM; touch up; exec sleep 6000'


def started(slurm: Slurm, folder: Path, *options: str) -> int:
    job = slurm.submit("--nodes=1", *options, *RUN, cwd=folder)
    wait_until("the trainer runs", (folder / "up").exists, 300)
    return job


def output(folder: Path, job: int) -> str:
    return (folder / f"slurm-{job}.out").read_text()


def preempt(slurm: Slurm, job: int, folder: Path) -> None:
    its_nodes = slurm.job(job)["NodeList"]
    slurm.submit("--partition=high", f"--nodelist={its_nodes}", "--exclusive", "--wrap=true", cwd=folder)


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An environment in which programs sleep for a hundredth of what they are asked to; Slurm's clock is another."""
    program = tmp_path_factory.mktemp("hasty") / "sleep"
    program.write_text('#!/bin/bash\nexec /bin/sleep "$(awk -v s="$1" \'BEGIN { print s / 100 }\')"\n')
    program.chmod(0o755)
    return f"--export=ALL,PATH={program.parent}:{os.environ['PATH']}"


@pytest.fixture(scope="module")
def jobs(
    slurm: Slurm, stub: Callable[..., Path], hasty: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[int, Path]]:
    """Three jobs beside each other, and their folders.

    long: its time limit comes within the twenty minutes' margin that it has asked for. deaf: it asks for no margin,
    for a signal that nobody hears; its end is near, and its trainer hears nothing either. idle: it is asked to
    leave at every start, as by a margin longer than its time limit, and one such start is allowed.
    """
    trainers = {"long": SAVES, "deaf": DEAF, "idle": "exit 143"}
    folders = {name: stub(tmp_path_factory.mktemp(name), trainer) for name, trainer in trainers.items()}
    script = folders["idle"] / "slurm/job.sh"
    text = script.read_text()
    assert "MAX_IDLE_STARTS=10 " in text
    script.write_text(text.replace("MAX_IDLE_STARTS=10 ", "MAX_IDLE_STARTS=1 ") + "kill -USR1 $$\n")
    numbers = {"idle": slurm.submit(*RUN, "--run-dir", "here", cwd=folders["idle"])}
    numbers["long"] = started(slurm, folders["long"], hasty, "--time=120", "--signal=B:USR1@1200")
    slurm.ask("scontrol", "update", f"JobId={numbers['long']}", "TimeLimit=20")
    numbers["deaf"] = started(slurm, folders["deaf"], hasty, "--signal=B:CONT@1")
    end = datetime.now() + timedelta(seconds=20)
    slurm.ask("scontrol", "update", f"JobId={numbers['deaf']}", f"EndTime={end:%FT%T}")
    return {name: (number, folders[name]) for name, number in numbers.items()}


def test_a_save_has_the_margin_that_the_job_asked_for(slurm: Slurm, jobs: dict[str, tuple[int, Path]]):
    job, folder = jobs["long"]
    notice = wait_until("the notice", lambda: re.search(r"SIGUSR1, (\d+) s before", output(folder, job)), 120)
    assert 1100 < int(notice[1]) <= 1200
    with pytest.raises(AssertionError, match="left"):  # 90 s of its own clock have passed after 0.9 s
        wait_until("left", lambda: slurm.job(job)["JobState"] != "RUNNING", 3)
    (folder / "may_save").touch()
    said, printed = ended(slurm, job, "COMPLETED", folder)
    assert said["Restarts"] == "1" and printed.count("saved after USR1") == 1
    assert re.search(r"before the time limit \(exit code 143\): requeued", printed)


def test_a_job_without_a_margin_is_requeued_before_its_end(slurm: Slurm, jobs: dict[str, tuple[int, Path]]):
    job, folder = jobs["deaf"]
    said, printed = ended(slurm, job, "COMPLETED", folder)
    assert said["Restarts"] == "1"
    assert re.search(
        r"1\d s before the end of the job the trainer has not left\n.* the time limit: requeued", printed
    )


def test_starts_that_come_to_nothing_are_counted(slurm: Slurm, jobs: dict[str, tuple[int, Path]]):
    job, folder = jobs["idle"]
    said, printed = ended(slurm, job, "FAILED", folder)
    assert (said["ExitCode"], said["Restarts"]) == ("2:0", "2")
    assert printed.count("the last 2 starts of this job came to nothing") == 1
    assert "--run-dir here goes on with this run" in printed


def test_a_preempted_job_has_the_grace_time_of_its_partition(
    slurm: Slurm, stub: Callable[..., Path], tmp_path: Path, hasty: str
):
    """Told by the user's signal, where Slurm sends it, by SIGTERM, and not at all."""
    folders = {}
    for how in ("signal", "plain", "none"):
        (tmp_path / how).mkdir()
        folders[how] = stub(tmp_path / how, SAVES)
        (folders[how] / "may_save").touch()
    (folders["none"] / "trainer.sh").write_text(DEAF)
    options = {"signal": [hasty], "plain": [], "none": ["--partition=brief"]}
    jobs = {how: started(slurm, folders[how], *options[how]) for how in options}
    with slurm.configured("SlurmctldParameters=preempt_send_user_signal"):
        preempt(slurm, jobs["signal"], tmp_path)
        wait_until("it is requeued", lambda: slurm.job(jobs["signal"])["Restarts"] == "1", 60)
    for how in ("plain", "none"):
        preempt(slurm, jobs[how], tmp_path)
    printed = {}
    for how, job in jobs.items():
        said, printed[how] = ended(slurm, job, "COMPLETED", folders[how])
        assert said["Restarts"] == "1", printed[how]
        assert "time limit" not in printed[how]
    assert re.search(r"SIGUSR1, preempted, (60|5\d) s before the end of the grace time", printed["signal"])
    # Slurm's SIGTERM and the script's SIGUSR1 reach the trainer within moments of each other, either of them first.
    for how, saved in (("signal", "saved after USR1"), ("plain", "saved after (USR1|TERM)")):
        assert printed[how].count("saved after") == len(re.findall(saved, printed[how])) == 1
        assert len(re.findall(r"preempted \(exit code 143\): requeued", printed[how])) == 1
        assert "preemption would leave 60 s to end a step and save (GraceTime of partition batch)" in printed[how]
        took = folders[how] / f"runs/slurm-{jobs[how]}/logs/leaving_s"
        assert 0 <= int(took.read_text()) <= 60
    assert "partition brief preempts without grace (GraceTime=0), so nothing is saved then" in printed["none"]
    assert "saved" not in printed["none"].replace("nothing is saved", "")
