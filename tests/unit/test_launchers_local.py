"""Jobs in this machine's background: what `r1mega` they run here is a script of the test's own."""

import signal
from pathlib import Path

import pytest

from r1mega.errors import ConfigError
from r1mega.launchers.job import LaunchOptions, Phase, StageJob, Submitted
from r1mega.launchers.local import LocalLauncher
from r1mega.launchers.registry import launcher
from r1mega.runtime.process import Identity

RUNS = """
import os, pathlib, signal, sys, time
if "r1mega.cli" in sys.orig_argv:
    what, *words = sys.orig_argv[sys.orig_argv.index("r1mega.cli") + 1 :]
    print("run", what, *words, flush=True)
    if what == "ends":
        os._exit(int(words[0]))
    if what == "killed" and not os.path.exists(words[0]):
        pathlib.Path(words[0]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "waits":
        signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), os._exit(143)))
        pathlib.Path(words[0]).touch()
        time.sleep(600)
    os._exit(0)
"""
"""In place of whatever `python -m r1mega.cli` does: sitecustomize.py."""


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalLauncher:
    root = str(Path(__file__).parents[2])
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(RUNS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{root}")
    return LocalLauncher(tmp_path)


def job(folder: Path, name: str, *here: str, after: tuple[str, ...] = ()) -> StageJob:
    return StageJob(name, "slurm/no.sh", (), here, folder / name, folder / ".jobs", after=after)


def wait(local: LocalLauncher, jobs: list[Submitted], reached) -> list[str]:
    from time import monotonic, sleep

    deadline = monotonic() + 60
    while not reached(states := local.states(jobs)):
        assert monotonic() < deadline, states
        sleep(0.05)
    return [f"{state.phase}: {state.reason}: {state.exit_code}" for state in states]


def over(states) -> bool:
    return all(state.phase.is_over for state in states)


def test_jobs_run_in_turn_and_what_needs_a_failed_one_is_cancelled(local: LocalLauncher, tmp_path: Path):
    jobs = local.submit(
        [
            job(tmp_path, "a", "killed", str(tmp_path / "again")),
            job(tmp_path, "b", "ends", "2", after=("a",)),
            job(tmp_path, "c", "ends", "0", after=("b",)),
            job(tmp_path, "d", "ends", "0", after=("a", "c")),
            job(tmp_path, "e", "ends", "0", after=("a",)),
        ],
        earlier={},
    )
    assert wait(local, jobs, over) == [
        "done: : 0",
        "failed: exit code 2: 2",
        "cancelled: b, which it needs, did not end well: None",
        "cancelled: c, which it needs, did not end well: None",
        "done: : 0",
    ]
    (output,) = local.logs(jobs[0])
    again = tmp_path / "again"
    assert output.read_text().splitlines() == [
        f"run killed {again}", "local: exit code 137; restart 1 of at most 10", f"run killed {again}"
    ]  # fmt: skip
    assert local.logs(jobs[2]) == []


def test_a_job_that_is_cancelled_saves_and_the_next_submission_waits_for_it(local: LocalLauncher, tmp_path: Path):
    up = tmp_path / "up"
    first = local.submit([job(tmp_path, "a", "waits", str(up)), job(tmp_path, "b", "ends", "0")], earlier={})
    wait(local, first, lambda states: states[0].phase is Phase.RUNNING and up.exists())
    later = local.submit([job(tmp_path, "c", "ends", "0", after=("b",))], earlier={"a": first[0], "b": first[1]})
    assert wait(local, later, lambda states: True) == ["waiting: : None"]
    local.cancel(first[:1])
    assert wait(local, [*first, *later], over) == ["cancelled: it was cancelled: 143", "done: : 0", "done: : 0"]
    assert "saved" in local.logs(first[0])[0].read_text()
    local.cancel(first)  # over: nothing to cancel
    assert wait(local, first, over)[1] == "done: : 0"


def test_jobs_whose_process_was_killed_have_failed(local: LocalLauncher, tmp_path: Path):
    import json
    import os

    up = tmp_path / "up"
    jobs = local.submit([job(tmp_path, "a", "waits", str(up)), job(tmp_path, "b", "ends", "0")], earlier={})
    wait(local, jobs, lambda states: up.exists())
    state = json.loads((tmp_path / f".jobs/local-{jobs[0].id}.state.json").read_text())
    os.kill(Identity(*state["process"]).pid, signal.SIGKILL)
    told = "failed: the process that ran it has ended without a word: launch again to go on: None"
    assert wait(local, jobs, over) == [told, told]


def test_what_it_would_run_is_written_as_commands(tmp_path: Path):
    jobs = [job(tmp_path, "a", "run", "a.toml", "--set", "x=[1, 2]")]
    (file,) = LocalLauncher(tmp_path).render(jobs, tmp_path / "dry")
    assert file.read_text().splitlines()[-1] == "r1mega run a.toml --set 'x=[1, 2]' # a"


def test_settings_of_a_launcher_are_refused_where_it_has_none_such(tmp_path: Path):
    for setting in ("max_restarts=many", "retries=3"):
        with pytest.raises(ConfigError, match=r"one setting, max_restarts=N"):
            launcher("local", LaunchOptions(tmp_path, (setting,)))
    with pytest.raises(ConfigError, match=r"--launcher lokal: no such launcher.*did you mean 'local'"):
        launcher("lokal", LaunchOptions(tmp_path))
    assert launcher("local", LaunchOptions(tmp_path, ("max_restarts=0",))).name == "local"
