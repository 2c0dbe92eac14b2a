"""How a chain's stages start: in forks of a process that has imported everything, which end as processes of their own
do, or by themselves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from r1mega.pipeline import starting
from r1mega.pipeline.starting import Starts
from r1mega.runtime.preloaded import Preloaded, PreloadError

SLEEPER = """
import __main__, os, pathlib, signal, subprocess, sys, time
if __name__ != "__main__":
    __main__.PROGRAM = "sleeper"
else:
    folder = pathlib.Path(sys.argv[1])
    if sys.argv[2:]:
        sys.exit(int(sys.argv[2]))
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    (folder / "left").write_text(str(left.pid))
    signal.signal(signal.SIGTERM, lambda *_: ((folder / "asked").touch(), sys.exit(143)))
    (folder / "pid.tmp").write_text(str(os.getpid()))
    (folder / "pid.tmp").rename(folder / "pid")
    print(os.environ["R1MEGA_TEST"], os.getcwd(), flush=True)
    time.sleep(300)
"""
"""A program in place of r1mega's: it sleeps until it is asked to leave, or leaves with a code."""
OWNER = """
import os, pathlib, sys, time
from r1mega.runtime.preloaded import Preloaded
preloaded = Preloaded(["sleeper"], os.environ)
preloaded.start([sys.argv[1]], {**os.environ, "R1MEGA_TEST": "5"}, pathlib.Path("/"), sys.stdout, sys.stderr)
time.sleep(300)
"""


def until(true: Any) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def ended(pid: Path) -> bool:
    try:
        return Path(f"/proc/{pid.read_text()}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}", "R1MEGA_TEST": "3"}


def test_a_fork_ends_as_a_process_does_and_what_it_leaves_ends_with_it(tmp_path: Path, environment: dict[str, str]):
    with (tmp_path / "said").open("w+") as said, Preloaded(["sleeper"], environment) as preloaded:
        child = preloaded.start([str(tmp_path)], {**environment, "R1MEGA_TEST": "5"}, Path("/"), said, said)
        until((tmp_path / "pid").exists)
        assert child.poll() is None and child.pid == int((tmp_path / "pid").read_text())
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 143 and (tmp_path / "asked").exists()
        assert (tmp_path / "said").read_text() == "5 /\n"
        until(lambda: ended(tmp_path / "left"))
        assert preloaded.start([str(tmp_path), "3"], environment, Path("/"), said, said).wait(60) == 3
        killed = preloaded.start([str(tmp_path)], environment, Path("/"), said, said)
        killed.kill()
        assert killed.wait(60) == -signal.SIGKILL
        with pytest.raises(PreloadError, match=r"\['LANG_OF_TESTS'\] may be read while modules are imported"):
            preloaded.start([str(tmp_path)], {**environment, "LANG_OF_TESTS": "x"}, Path("/"), said, said)


def test_a_fork_is_asked_to_leave_where_its_owner_was_killed(tmp_path: Path, environment: dict[str, str]):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], env=environment, stdout=subprocess.DEVNULL)
    until((tmp_path / "pid").exists)
    owner.kill()
    owner.wait()
    until((tmp_path / "asked").exists)
    until(lambda: ended(tmp_path / "pid") and ended(tmp_path / "left"))


def test_a_fork_whose_parent_was_killed_has_ended_as_well(tmp_path: Path, environment: dict[str, str]):
    preloaded = Preloaded(["sleeper"], environment)
    child = preloaded.start([str(tmp_path)], environment, Path("/"), sys.__stdout__, sys.__stderr__)
    preloaded._process.kill()
    assert child.wait(60) == -signal.SIGKILL
    until(lambda: not Path(f"/proc/{child.pid}").exists() or ended_by_id(child.pid))
    with pytest.raises(PreloadError, match=r"it does not answer|it has ended"):
        preloaded.start([str(tmp_path)], environment, Path("/"), sys.__stdout__, sys.__stderr__)
    preloaded.close()


def ended_by_id(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"


def test_imports_that_fail_are_told(environment: dict[str, str]):
    with Preloaded(["no_such_module"], environment) as preloaded, pytest.raises(PreloadError, match="no_such_module"):
        preloaded.start([], environment, Path("/"), sys.__stdout__, sys.__stderr__)


def planned(stage: str = "sft", ranks: int = 1, device: str = "cpu", runs: str = "yes") -> Any:
    recipe = SimpleNamespace(runs=f"r1mega.stages.{stage}:run", samples=stage == "grpo", ranks=lambda machine: ranks)
    machine = SimpleNamespace(device=device, environment=SimpleNamespace(of_trainer={}))
    return SimpleNamespace(runs=runs, recipe=recipe, machine=machine)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How each stage was started; the process to fork has ended when it is asked for the third."""
    found: list[str] = []

    class ThreeTimes:
        def __init__(self, modules: Any, environment: Any) -> None:
            found.append(" ".join(name.rpartition(".")[2] for name in modules if "stages" in name))

        def start(self, *_: Any) -> str:
            if found.count("forked") == 2:
                raise PreloadError("it has ended")
            found.append("forked")
            return "forked"

        def close(self) -> None:
            found.append("closed")

    monkeypatch.setattr(starting, "Preloaded", ThreeTimes)
    monkeypatch.setattr(starting.process, "spawn", lambda *_, **__: found.append("spawned"))
    return found


def test_stages_are_forked_while_that_can_be_and_then_start_by_themselves(started: list[str], caplog: Any):
    plans = [planned("sft"), planned("grpo"), planned("sft", runs="perhaps"), planned("evaluate", runs="no")]
    with Starts(plans) as starts:
        for plan in [*plans, plans[0]]:
            starts.start(plan, ["run"])
    assert started == ["sft grpo", "forked", "forked", "closed", "spawned", "spawned", "spawned"]
    assert [record.message for record in caplog.records] == [
        "stages start by themselves, with imports of their own: no process to fork: it has ended"
    ]


@pytest.mark.parametrize("plans", [[planned()], [planned(), planned(ranks=2)], [planned(), planned(device="cuda")]])
def test_one_stage_alone_several_ranks_and_gpus_start_by_themselves(plans: list[Any], started: list[str]):
    with Starts(plans) as starts:
        for plan in plans:
            starts.start(plan, ["run"])
    assert started == ["spawned"] * len(plans)
