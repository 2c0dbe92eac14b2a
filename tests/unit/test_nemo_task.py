"""What NeMo-Run is given of a job, against what was worked out by hand, and what it writes of it (a golden file)."""

import re
import subprocess
from pathlib import Path

import nemo_env
import pytest

from r1mega.errors import ConfigError
from r1mega.launchers.job import LaunchOptions, StageJob, Submitted
from r1mega.launchers.nemo_run import NemoDriver, NemoRun, NemoRunSettings
from r1mega.launchers.nemo_task import become, executor_arguments, head_options, slurm_task
from r1mega.launchers.registry import launcher

ROOT = Path(__file__).parents[2]
GOLDENS = Path(__file__).parent / "goldens/nemo_run"
HEAD = """#!/usr/bin/env bash
# What it does.
#SBATCH --time=01:00:00
#SBATCH --job-name=r1mega --signal=B:USR1@120  # as early as that

#SBATCH --comment="two words"
##SBATCH --partition=no
#SBATCH --exclusive
set -euo pipefail
#SBATCH --qos=late
"""


def job(**other) -> StageJob:
    return StageJob(
        **{
            "name": "rl", "script": "slurm/rl_stage.sh", "arguments": ("a.toml", "--set", "x=it's $HOME"), "here": (),
            "run_dir": Path("runs/rl"), "logs": Path("runs/rl/logs"), "options": ("--nodes=10",), **other,
        }
    )  # fmt: skip


def test_options_at_a_scripts_head_are_those_that_sbatch_heeds():
    assert head_options(HEAD) == [
        "--time=01:00:00", "--job-name=r1mega", "--signal=B:USR1@120", "--comment=two words", "--exclusive",
    ]  # fmt: skip


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "slurm").glob("*_stage.sh")))
def test_no_script_of_slurm_has_an_option_that_is_lost(script):
    text = (ROOT / "slurm" / script).read_text()
    assert head_options(text) == re.findall(r"^#SBATCH (\S+)$", text, flags=re.M) != []
    assert {"--signal=B:USR1@120", "--requeue", "--open-mode=append"} <= set(head_options(text))


def test_options_are_arguments_of_the_executor_or_go_with_it():
    options = (
        "--nodes=2", "--time=01:00:00", "--time=24:00:00", "--exclusive", "--mem=0", "--requeue", "--nodes=2-4",
        "--ntasks-per-node=8", "--mail-type=END", "--account=a", "--comment=a=b c",
    )  # fmt: skip
    assert executor_arguments(options) == {
        "account": "a", "job_name_prefix": "r1mega.", "poll_estimated_start_time": False, "nodes": "2-4",
        "time": "24:00:00", "exclusive": True, "mem": "0", "ntasks_per_node": 8, "comment": "a=b c",
        "additional_parameters": {"requeue": True, "mail_type": "END"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--no-requeue", "NeMo-Run submits with --requeue, always"),
        ("--chdir=/x/nemo_run/y", "name that path otherwise"),
    ],
)
def test_what_nemo_run_would_change_is_refused(option, said):
    with pytest.raises(ConfigError, match=said):
        executor_arguments([option])


def test_the_batch_script_becomes_the_one_of_the_job(tmp_path):
    """By bash itself: the same process, every argument as it was, where NeMo-Run replaces its text too."""
    root = tmp_path / "a b" / "nemo_run"
    root.mkdir(parents=True)
    (root / "s.sh").write_text('echo "$$" "$PWD" "$SLURM_SUBMIT_DIR" "$#" "$@"\nexit 7\n')
    line = become(str(root), "s.sh", ["x y", "it's $HOME", "/nemo_run/z", "'/nemo_run'", ""])
    assert "/nemo_run" not in line
    shell = f"echo $$\nset -evx\nset +e\n{line}\necho never\n"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    first, then = done.stdout.splitlines()
    assert (done.returncode, then) == (7, f"{first} {root} {root} 5 x y it's $HOME /nemo_run/z '/nemo_run' ")


def test_a_job_waits_for_those_of_its_own_experiment_and_for_earlier_ones():
    earlier = {name: Submitted(job(name=name), "nemo_run", id) for name, id in (("old", "7"), ("older", "6"))}
    task = slurm_task(job(after=("own", "old", "done")), HEAD, "/r", {"rl", "own"}, earlier)
    made = task.pop("executor")
    assert task == {
        "name": "rl", "after": ["own"], "earlier": ["7"],
        "script": {"path": "slurm/rl_stage.sh", "args": ["a.toml", "--set", "'x=it'\"'\"'s $HOME'"]},
    }  # fmt: skip
    assert made["additional_parameters"] == {
        "kill_on_invalid_dep": "yes", "output": "runs/rl/logs/rl-%j.out", "dependency": "afterok:7",
    }  # fmt: skip
    assert (made["nodes"], made["signal"], made["exclusive"]) == (10, "B:USR1@120", True)
    assert made["setup_lines"] == become("/r", "slurm/rl_stage.sh", ("a.toml", "--set", "x=it's $HOME"))
    alone = slurm_task(job(), HEAD, "/r", {"rl"}, earlier)
    assert "dependency" not in alone["executor"]["additional_parameters"] and alone["earlier"] == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("executr=local", "did you mean 'executor'"),
        ("executor=kubernetes", "'slurm' or 'local'"),
        ("host=login1", "host needs user and root as well"),
        ("user=me", "user: of a login node, and no host is given"),
        ("python=nowhere/python", "nowhere/python is not there.*`make env-launch`"),
    ],
)
def test_settings_that_cannot_be_are_refused(given, said):
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        launcher("nemo_run", LaunchOptions(ROOT, (given,)))


def test_a_driver_that_says_nothing_is_told_with_its_last_words(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "No module named nemo_run" >&2\nexit 1\n')
    python.chmod(0o755)
    with pytest.raises(ConfigError, match=r"(?s)nemo_driver.py ended with exit code 1:\n  No module named nemo_run"):
        NemoRun(NemoDriver(python, ROOT, NemoRunSettings()), ROOT).submit([job(logs=tmp_path)], earlier={})


def test_on_another_host_paths_are_those_of_its_checkout(tmp_path):
    settings = NemoRunSettings(host="login1", user="me", root="/far/r1mega")
    driver = NemoDriver(Path("python"), tmp_path, settings)
    assert driver.there(tmp_path.resolve() / "runs/rl/logs") == Path("runs/rl/logs")
    assert driver.there(Path("/data/runs")) == Path("/data/runs")
    assert driver.tunnel(["runs/a b/logs"]) == {
        "host": "login1", "user": "me", "port": 22, "identity": None, "job_dir": "/far/r1mega/runs/.nemo-run",
        "pre_command": "cd /far/r1mega && mkdir -p 'runs/a b/logs'",
    }  # fmt: skip
    assert NemoDriver(Path("python"), tmp_path, NemoRunSettings()).tunnel(["runs"]) is None


def test_what_nemo_run_hands_to_sbatch(tmp_path, monkeypatch):
    """The whole batch script, as NeMo-Run itself writes it, is the golden file's."""
    monkeypatch.setenv("NEMORUN_HOME", str(tmp_path / "nemo"))
    settings = NemoRunSettings(host="login1", user="me", root="/home/me/r1mega")  # a dry run logs in nowhere
    through = NemoRun(NemoDriver(nemo_env.python(), ROOT, settings), ROOT)
    jobs = [job(options=("--nodes=10", "--ntasks-per-node=8", "--cpus-per-task=8", "--partition=batch"))]
    (written,) = through.render(jobs, tmp_path / "rl.launch")
    assert written == tmp_path / "rl.launch/rl.sh"
    assert written.read_text() == (GOLDENS / "rl.txt").read_text()
    assert sorted(path.name for path in written.parent.iterdir()) == ["rl.sh"]
