"""The nemo_run launcher on a real Slurm: what NeMo-Run submits ends, comes back and waits as scripts of slurm/ do."""

import contextlib
import dataclasses
import getpass
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nemo_env
import pytest
import rotation
from emulated_slurm import Slurm, wait_until

from r1mega.errors import ConfigError
from r1mega.launchers.job import JobState, Launcher, LaunchOptions, Phase, StageJob, Submitted
from r1mega.launchers.record import LaunchRecord
from r1mega.launchers.registry import launcher
from r1mega.launchers.tree import states
from r1mega.runtime import process

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/nemo_run.md").read_text(encoding="utf-8")
DRY, SUBMIT, SHOW, BY_SSH, HERE = re.findall(r"^r1mega (.*)$", GUIDE, re.M)
"""The guide's commands, on a chain of two stages that need no model."""
CHAIN = """
[[stages]]
name = "one"
config = "mix.toml"
[[stages]]
name = "two"
config = "mix.toml"
set = { "seed" = 5 }
reads = { "data.0.files" = ["one/conversations.jsonl"] }
"""
MIX = 'stage = "mixture"\n[[data]]\nfiles = ["rows.jsonl"]\ndomain = "math"\n'
ROW = {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]}
TRAINER = """
trap 'sleep 0.5; echo saved; exit 143' USR1
echo "run: $*"
[[ ! -f again ]] || exit 0
touch up
while true; do sleep 0.1; done
"""


@pytest.fixture(autouse=True)
def nemo_home(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    monkeypatch.setenv("NEMORUN_HOME", str(tmp_path / "nemo"))


def through_nemo_run(folder: Path) -> Launcher:
    return launcher("nemo_run", LaunchOptions(folder, (f"python={nemo_env.python()}",)))


def job(folder: Path, script: str, name: str, *arguments: str, after: tuple[str, ...] = ()) -> StageJob:
    run_dir = Path("runs") / name
    line = ("a.toml", "--cluster", "c", "--run-dir", str(run_dir), "--set", "wandb.project=a b $HOME", *arguments)
    options = ("--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1")
    return StageJob(name, f"slurm/{script}.sh", line, (), run_dir, folder / run_dir / "logs", options, after)


def held(job: StageJob) -> StageJob:
    return dataclasses.replace(job, options=(*job.options, "--hold"))


def output(through: Launcher, submitted: Submitted) -> str:
    return through.logs(submitted)[0].read_text()


def rl_is_asked_to_leave_and_comes_back(slurm: Slurm, make: Callable[..., Path], tmp_path: Path) -> None:
    """The notice reaches the script through NeMo-Run's, the trainer saves, and the job's second start ends well."""
    folder = make(tmp_path, TRAINER, config="configs/tiny/r1_zero/1_rl.toml")
    through = through_nemo_run(folder)
    (submitted,) = through.submit([job(folder, "rl_stage", "it")], earlier={})
    wait_until("the trainer runs", (folder / "up").exists, 300)
    asked = slurm.job(submitted.id)
    assert (asked["Requeue"], asked["TimeLimit"], asked["JobName"]) == ("1", "01:00:00", "r1mega.it")
    (folder / "again").touch()
    slurm.ask("scancel", "--batch", "--signal=USR1", submitted.id)
    said = slurm.wait_for_state(submitted.id, "COMPLETED", "FAILED", timeout_s=300)
    printed = output(through, submitted)
    assert (said["JobState"], said["Restarts"], said["ExitCode"]) == ("COMPLETED", "1", "0:0"), printed
    assert printed.count("saved\n") == 1 and printed.count("rl_stage: ") > 4
    assert "wandb.project=a b $HOME" in printed
    assert through.states([submitted]) == [JobState(Phase.DONE, "", 0)]


def sft_refuses_and_what_waits_for_it_is_cancelled(slurm: Slurm, make: Callable[..., Path], tmp_path: Path) -> None:
    """An exit code is the script's; NeMo-Run's dependency, and one on a job of an earlier submission, hold."""
    folder = make(tmp_path, "echo typo; exit 2", config="configs/tiny/sft/1_qwen2.toml")
    through = through_nemo_run(folder)
    jobs = [job(folder, "sft_stage", "first", "--set", "seed=1"), job(folder, "sft_stage", "next", after=("first",))]
    first, later = through.submit([held(jobs[0]), jobs[1]], earlier={})
    # What waits for a job of an earlier submission: alone, and beside one of its own.
    others = [
        job(folder, "sft_stage", "third", after=("first",)),
        job(folder, "sft_stage", "fourth"),
        job(folder, "sft_stage", "fifth", after=("fourth", "first")),
    ]
    others[1] = held(others[1])
    third, fourth, fifth = through.submit(others, earlier={"first": first})
    depends = {each.job.name: slurm.job(each.id)["Dependency"] for each in (later, third, fifth)}
    on = {name: {part.split("(")[0] for part in text.split(",")} for name, text in depends.items()}
    assert on["next"] == on["third"] == {f"afterok:{first.id}"}
    assert on["fifth"] == {f"afterok:{first.id}", f"afterok:{fourth.id}"}
    found = through.states([first, later])
    assert [state.phase for state in found] == [Phase.WAITING] * 2 and "for those before it" in found[1].reason
    through.cancel([fifth, fourth])
    slurm.ask("scontrol", "release", first.id)
    for each in (later, third):
        slurm.wait_for_state(each.id, "CANCELLED", timeout_s=300)
    assert slurm.job(first.id)["Restarts"] == "0"
    found = through.states([first, later, third, fourth])
    assert [state.phase for state in found] == [Phase.FAILED, *[Phase.CANCELLED] * 3], output(through, first)
    assert found[0].exit_code == 2 and "typo" in output(through, first)


def where_one_is_refused_none_is_submitted(slurm: Slurm, make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make(tmp_path, "exit 0")
    first, second = job(folder, "sft_stage", "given"), job(folder, "sft_stage", "refused", after=("given",))
    second = dataclasses.replace(second, options=("--partition=nodeless",))
    with pytest.raises(ConfigError, match=r"(?s)NeMo-Run did not submit: sbatch.*invalid partition"):
        through_nemo_run(folder).submit([held(first), second], earlier={})
    queued = slurm.ask("squeue", "--noheader", "--states=all", "--name=r1mega.given", "--Format=State:|").split()
    assert queued and set(queued) == {"CANCELLED|"}


@contextlib.contextmanager
def ssh_server(folder: Path, slurm_conf: str) -> Iterator[str]:
    """One that lets this user in by a key of its own; yields how `--with` names it."""
    if absent := [name for name in ("/usr/sbin/sshd", "ssh-keygen", "rsync") if shutil.which(name) is None]:
        reason = f"no SSH server is here ({', '.join(absent)}); `make system-deps` installs it"
        (pytest.fail if os.environ.get("CI") or os.environ.get("R1MEGA_CI") else pytest.skip)(reason)
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "user"):
        subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name), check=True)
    port, config, known = process.free_port(), folder / "sshd_config", folder / "known_hosts"
    config.write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        f"StrictModes no\nPermitRootLogin prohibit-password\nPidFile none\nSetEnv SLURM_CONF={slurm_conf}\n"
    )
    # rsync takes the `ssh` of PATH, which would ask whether this host is the one that is meant.
    (folder / "bin").mkdir()
    (folder / "bin/ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -oUserKnownHostsFile={known} "$@"\n')
    (folder / "bin/ssh").chmod(0o755)
    host = (folder / "host.pub").read_text().split()
    known.write_text(f"[127.0.0.1]:{port} {host[0]} {host[1]}\n")
    os.environ["PATH"] = f"{folder}/bin:{os.environ['PATH']}"
    command = ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)]
    server = process.spawn(command, environment=dict(os.environ), log_file=folder / "sshd.log")
    try:
        wait_until("sshd listens", lambda: not process.port_is_free(port), 60)
        yield f"host=127.0.0.1 --with port={port} --with identity={folder}/user"
    finally:
        process.stop_group(server, grace_s=5)


def chain(make: Callable[[Path], Path], folder: Path) -> Path:
    """A checkout whose configs/tiny/r1/pipeline.toml is CHAIN."""
    folder = make(folder)
    configs = folder / "configs/tiny/r1"
    for name, text in {"pipeline.toml": CHAIN, "mix.toml": MIX, "rows.jsonl": json.dumps(ROW) + "\n"}.items():
        (configs / name).write_text(text)
    (folder / ".venv-launch").symlink_to(nemo_env.python().parents[1])
    return folder


def r1mega(folder: Path, line: str) -> str:
    command = (sys.executable, "-m", "r1mega.cli", *shlex.split(line))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def phases(folder: Path) -> dict[str, Phase]:
    record = LaunchRecord.read(folder / "runs/tiny/r1/pipeline")
    assert record is not None
    return {name: state.phase for name, (_, state) in states(record).items()}


def launched(folder: Path) -> dict[str, str]:
    """Ids of the jobs by stage."""
    record = json.loads((folder / "runs/tiny/r1/pipeline/launch.json").read_text())["launches"][-1]
    assert record["launcher"] == "nemo_run"
    return {row["name"]: row["id"] for row in record["jobs"]}


def a_chain_runs_and_ends(slurm: Slurm, make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = chain(make, tmp_path / "checkout")
    assert "--kill-on-invalid-dep=yes" in r1mega(folder, DRY)
    r1mega(folder, SUBMIT)
    jobs = launched(folder)
    assert list(jobs) == ["one", "two"]
    said = slurm.wait_for_state(jobs["two"], "COMPLETED", "FAILED", "CANCELLED", timeout_s=300)
    logs = "\n".join(file.read_text() for file in (folder / "runs/tiny/r1/pipeline/.jobs").glob("*.out"))
    assert (said["JobState"], said["TimeLimit"]) == ("COMPLETED", "00:30:00"), logs
    assert [line.split()[2] for line in r1mega(folder, SHOW).splitlines()[1:]] == ["done", "done"]
    summary = json.loads((folder / "runs/tiny/r1/pipeline/summary.json").read_text())
    assert list(summary["stages"]) == ["one", "two"]


def a_chain_runs_on_this_machine(slurm: Slurm, make: Callable[[Path], Path], tmp_path: Path) -> None:
    """Its second stage fails; mended and launched again it goes on from there."""
    folder = chain(make, tmp_path / "checkout")
    reads = (folder / "configs/tiny/r1/pipeline.toml").read_text()
    (folder / "configs/tiny/r1/pipeline.toml").write_text(reads.replace('{ "seed" = 5 }', '{ "data.0.num" = 50 }'))
    r1mega(folder, HERE)
    wait_until("the chain's end", lambda: phases(folder) == {"one": Phase.DONE, "two": Phase.FAILED}, 300)
    (log,) = (folder / "runs/tiny/r1/pipeline/.jobs").glob("nemo_run-*.log")
    ends = re.compile(r"Job (\w+)-\w+\s+finished:\s+(\w+)")
    wait_until(
        "NeMo-Run's end", lambda: ends.findall(log.read_text()) == [("one", "SUCCEEDED"), ("two", "FAILED")], 60
    )
    (folder / "configs/tiny/r1/pipeline.toml").write_text(reads)
    r1mega(folder, HERE)
    assert list(launched(folder)) == ["two"]
    wait_until("the chain's end", lambda: phases(folder) == dict.fromkeys(("one", "two"), Phase.DONE), 300)
    assert (folder / "runs/tiny/r1/pipeline/summary.json").is_file()


def a_chain_runs_through_ssh(slurm: Slurm, make: Callable[[Path], Path], tmp_path: Path) -> None:
    """Submitted from one checkout, run in another; what it wrote comes back."""
    here, there = (chain(make, tmp_path / name) for name in ("here", "there"))
    with ssh_server(tmp_path, slurm.environment["SLURM_CONF"]) as login:
        line = BY_SSH.replace("host=login1", login).replace("user=me", f"user={getpass.getuser()}")
        r1mega(here, line.replace("root=/home/me/r1mega", f"root={there}") + " --only one")
        one = launched(here)["one"]
        slurm.wait_for_state(one, "COMPLETED", "FAILED", "CANCELLED", timeout_s=300)
        copied = r1mega(here, f"{SHOW} --logs one").strip()
        assert copied == f"{here}/runs/tiny/r1/pipeline/.jobs/one-{one}.out"
        assert "done: runs/tiny/r1/pipeline/one" in Path(copied).read_text()
        assert "cancelled: nothing, all are over" in r1mega(here, f"{SHOW} --cancel")
        assert phases(here)["one"] is Phase.DONE
    assert (there / "runs/tiny/r1/pipeline/one/summary.json").is_file()
    assert not (here / "runs/tiny/r1/pipeline/one").exists() and (there / "runs/.nemo-run/pipeline").is_dir()


ROWS = {
    "chain": a_chain_runs_and_ends,
    "here": a_chain_runs_on_this_machine,
    "ssh": a_chain_runs_through_ssh,
    "rl": rl_is_asked_to_leave_and_comes_back,
    "sft": sft_refuses_and_what_waits_for_it_is_cancelled,
    "refused": where_one_is_refused_none_is_submitted,
}


@pytest.mark.parametrize("what", rotation.rows("through NeMo-Run", rotating=ROWS, take=2))
def test_it_runs_and_ends(what: str, slurm: Slurm, stub, make_checkout, tmp_path: Path):
    ROWS[what](slurm, make_checkout if what in ("chain", "here", "ssh") else stub, tmp_path)
