"""Jobs on Slurm: lines that submit them, and what Slurm's commands say of them.

Recorded of Slurm 22.05 are jobs 1 to 3 and 5 to 7, and the messages on stderr; the others follow its manual.
"""

import os
import runpy
import subprocess
from pathlib import Path

import pytest

from r1mega.errors import ConfigError
from r1mega.launchers.job import JobState, LaunchOptions, Phase, StageJob, Submitted
from r1mega.launchers.registry import launcher
from r1mega.launchers.slurm import SlurmLauncher, refuse_options

ROOT = Path(__file__).parents[2]


SQUEUE = """\
3|CANCELLED|DependencyNeverSatisfied|0|0|
1|COMPLETED|None|0|0|
2|FAILED|NonZeroExitCode|512|0|
6|FAILED|JobLaunchFailure|9|0|
5|PENDING|JobHeldUser|0|0|
8|PENDING|Dependency|0|2|
9|PENDING|DependencyNeverSatisfied|0|0|
7|RUNNING|None|0|0|
10|COMPLETING|NonZeroExitCode|512|3|
11|CANCELLED|None|15|0|
12|TIMEOUT|TimeLimit|0|0|
13|NODE_FAIL|NodeDown|1|0|
14|POWER_UP_NODE|None|0|0|
"""
SACCT = "20|COMPLETED|0:0\n21|FAILED|2:0\n22|CANCELLED by 1000|0:15\n23|PREEMPTED|0:0\n24|OUT_OF_MEMORY|0:125\n"
STATES = {
    "1": JobState(Phase.DONE, "", 0),
    "2": JobState(Phase.FAILED, "exit code 2", 2),
    "3": JobState(Phase.CANCELLED, "what it needs did not end well"),
    "5": JobState(Phase.WAITING, "JobHeldUser"),
    "6": JobState(Phase.FAILED, "exit code 137", 137),
    "7": JobState(Phase.RUNNING),
    "8": JobState(Phase.WAITING, "for those before it, start 3"),
    "9": JobState(Phase.CANCELLED, "what it needs did not end well"),
    "10": JobState(Phase.RUNNING, "start 4"),
    "11": JobState(Phase.CANCELLED, "it was cancelled", 143),
    "12": JobState(Phase.FAILED, "its time limit came before it had left", 0),
    "13": JobState(Phase.FAILED, "a node of it failed, exit code 129", 129),
    "14": JobState(Phase.UNCLEAR, "Slurm says POWER_UP_NODE"),
    "20": JobState(Phase.DONE, "", 0),
    "21": JobState(Phase.FAILED, "exit code 2", 2),
    "22": JobState(Phase.CANCELLED, "it was cancelled", 143),
    "23": JobState(Phase.CANCELLED, "it was preempted and not requeued"),
    "24": JobState(Phase.FAILED, "it took more memory than its nodes gave it, exit code 253", 253),
}
NO_ACCOUNTING = "echo 'Slurm accounting storage is disabled' >&2; exit 1"


def job(folder: Path, name: str, *after: str) -> StageJob:
    words = ("a b.toml", "--cluster", "c", "--run-dir", str(folder / name), "--set", 'x="y"')
    return StageJob(
        name, "slurm/chain_stage.sh", words, (), folder / name, folder / ".jobs", ("--nodes=2", "--time=9"), after
    )


def submitted(folder: Path, *ids: str) -> list[Submitted]:
    return [Submitted(job(folder, f"s{id}"), "slurm", id) for id in ids]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes programs of shell lines, which are the only ones on PATH beside the shell's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(**lines: str) -> None:
        for name, line in lines.items():
            (folder / name).write_text(f"#!/bin/bash\n{line}\n")
            (folder / name).chmod(0o755)

    return make


def says(text: str) -> str:
    return f"/bin/cat <<'END'\n{text}END"


def test_what_slurm_remembers_and_what_its_accounting_does(tmp_path: Path, programs):
    programs(squeue=f'echo "$@" > {tmp_path}/asked\n{says(SQUEUE)}', sacct=says(SACCT))
    jobs = submitted(tmp_path, *STATES)
    assert dict(zip(STATES, SlurmLauncher(tmp_path).states(jobs), strict=True)) == STATES
    asked = (tmp_path / "asked").read_text().split()
    assert asked[:3] == ["--noheader", "--states=all", f"--jobs={','.join(STATES)}"]


def test_a_job_that_nobody_remembers_is_known_by_what_its_script_has_left(tmp_path: Path, programs):
    programs(squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", sacct=NO_ACCOUNTING)
    (tmp_path / ".jobs").mkdir()
    left = "job 1 start 0 exit code 143\njob 1 start 1 exit code 0\njob 2 start 0 exit code 2\njob 11 start 0 exit"
    (tmp_path / ".jobs/exits.txt").write_text(left)
    told = SlurmLauncher(tmp_path).states(submitted(tmp_path, "1", "2", "11"))
    assert told[:2] == [JobState(Phase.DONE, "", 0), JobState(Phase.FAILED, "exit code 2", 2)]
    assert told[2].phase is Phase.UNKNOWN and told[2].reason.startswith(
        "Slurm does not know it any more, and its script"
    )
    programs(squeue="echo 'Unable to contact slurm controller' >&2; exit 1")
    (state,) = SlurmLauncher(tmp_path).states(submitted(tmp_path, "3"))
    assert "Slurm cannot be asked (Unable to contact slurm controller)" in state.reason
    assert state.phase is Phase.UNCLEAR and not state.phase.is_over


def test_without_slurm_an_exit_code_with_which_jobs_are_requeued_is_no_end(tmp_path: Path, programs):
    (tmp_path / ".jobs").mkdir()
    left = "job 1 start 0 exit code 143\njob 2 start 0 exit code 2\njob 3 start 0 exit code 0\n"
    (tmp_path / ".jobs/exits.txt").write_text(left)
    told = SlurmLauncher(tmp_path).states(submitted(tmp_path, "1", "2", "3"))
    assert [one.phase for one in told] == [Phase.UNCLEAR, Phase.FAILED, Phase.DONE]
    assert told[0].reason.endswith("a start of it ended with exit code 143")


def test_what_a_user_has_set_for_squeue_and_sacct_hides_no_job(tmp_path: Path, programs, monkeypatch):
    for name in ("SQUEUE_PARTITION", "SACCT_FORMAT", "SLURM_CONF"):
        monkeypatch.setenv(name, "x")
    show = "echo ${SQUEUE_PARTITION-}${SACCT_FORMAT-}${SLURM_CONF-}"
    programs(squeue=f"{show} >>{tmp_path}/set", sacct=f"{show} >>{tmp_path}/set")
    SlurmLauncher(tmp_path).states(submitted(tmp_path, "1"))
    assert (tmp_path / "set").read_text() == "x\nx\n"


def test_cells_of_squeue_may_be_padded(tmp_path: Path, programs):
    programs(squeue=says("  1       |RUNNING    |None  |0   |0   |\n"))
    assert SlurmLauncher(tmp_path).states(submitted(tmp_path, "1")) == [JobState(Phase.RUNNING)]


def checkout(folder: Path) -> SlurmLauncher:
    (folder / "slurm").mkdir()
    (folder / "slurm/chain_stage.sh").touch()
    return SlurmLauncher(folder)


SBATCH = """
printf '%s\\n' "$@" -- >> sbatch.txt
case "$*" in *--job-name=d*) echo 'sbatch: error: Invalid partition' >&2; exit 1 ;; esac
n=$(/usr/bin/wc -l < number 2>/dev/null || echo 0); echo >> number; echo "10$n;cluster"
"""


def test_jobs_wait_for_those_that_they_come_after(tmp_path: Path, programs):
    programs(sbatch=SBATCH, scancel=f'echo "$@" > {tmp_path}/cancelled')
    (tmp_path / "number").touch()
    slurm = checkout(tmp_path)
    old = Submitted(job(tmp_path, "old"), "slurm", "77")
    jobs = [job(tmp_path, "a"), job(tmp_path, "b", "a", "old")]
    assert [one.id for one in slurm.submit(jobs, earlier={"old": old})] == ["100", "101"]
    first, second, _ = (tmp_path / "sbatch.txt").read_text().split("--\n")
    words = ["a b.toml", "--cluster", "c", "--run-dir", f"{tmp_path}/a", "--set", 'x="y"']
    output = f"--output={tmp_path}/.jobs/a-%j.out"
    head = ["--parsable", "--job-name=a", output, "--nodes=2", "--time=9"]
    assert first.splitlines() == [*head, "slurm/chain_stage.sh", *words]
    assert second.splitlines()[5:8] == [
        "--dependency=afterok:100:77", "--kill-on-invalid-dep=yes", "slurm/chain_stage.sh"
    ]  # fmt: skip
    assert (tmp_path / ".jobs").is_dir()
    with pytest.raises(ConfigError, match=r"did not take job d; 1 job\(s\) before it.*: sbatch: error: Invalid part"):
        slurm.submit([job(tmp_path, "c"), job(tmp_path, "d", "c")], earlier={})
    assert (tmp_path / "cancelled").read_text() == "--quiet 102\n"


def test_what_is_missing_or_refused_is_one_message(tmp_path: Path, programs):
    slurm = SlurmLauncher(tmp_path)
    with pytest.raises(ConfigError, match=r"sbatch: not on PATH: launch where Slurm's commands are.*--dry-run"):
        slurm.submit([job(tmp_path, "a")], earlier={})
    programs(sbatch=SBATCH)
    with pytest.raises(ConfigError, match=r"has no slurm/chain_stage.sh: launch from the root of a checkout"):
        slurm.submit([job(tmp_path, "a")], earlier={})
    with pytest.raises(ConfigError, match=r"scancel 1: scancel: No such file"):
        slurm.cancel(submitted(tmp_path, "1"))
    with pytest.raises(ConfigError, match="the slurm launcher has no settings"):
        launcher("slurm", LaunchOptions(tmp_path, ("time=3",)))
    refuse_options(["--time=24:00:00", "--hold", "--comment=a b\nc"])
    for option in (
        "-p high",
        "time=3",
        "--time 3",
        "--dependency=afterok:3",
        "--output=x",
        "--wrap=true",
        "--array",
        "--out=x",
        "--clusters=b",
    ):
        with pytest.raises(ConfigError, match=f"^--sbatch {option}"):
            refuse_options([option])


def test_the_script_of_a_dry_run_submits_the_same(tmp_path: Path, programs):
    """Run by hand, it calls sbatch with the same words."""
    programs(sbatch=SBATCH)
    slurm = checkout(tmp_path)
    jobs = [job(tmp_path, "a"), job(tmp_path, "b", "a", "gone")]
    (file,) = slurm.render(jobs, tmp_path / "dry")
    (tmp_path / "number").touch()
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/bin:/usr/bin"}
    subprocess.run(["/bin/bash", str(file)], cwd=tmp_path, env=environment, check=True)
    by_hand = (tmp_path / "sbatch.txt").read_text()
    for name in ("sbatch.txt", "number"):
        (tmp_path / name).write_text("")
    slurm.submit([jobs[0], job(tmp_path, "b", "a")], earlier={})
    assert by_hand == (tmp_path / "sbatch.txt").read_text()


def test_full_size_stages_are_submitted_as_their_golden_files_say(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    goldens = ROOT / "tests/unit/goldens/launch"
    tool = runpy.run_path(str(ROOT / "tools/sbatch_lines.py"))
    written = tool["lines"]()
    assert {file.name for file in goldens.iterdir()} == set(written)
    for name, text in written.items():
        assert text == (goldens / name).read_text(), f"{name}: python tools/sbatch_lines.py writes it anew"
    assert sum(map(len, tool["stages"]().values())) > 20
