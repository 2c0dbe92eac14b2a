"""A chain's stages are told how to hand their server on, and none is left when nobody needs it any more."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from r1mega.pipeline import chain as chains
from r1mega.pipeline.graph import Pipeline, load_pipeline
from r1mega.pipeline.kept import FOLDER, Keeping, ServerOfChain
from r1mega.pipeline.plan import ALL, PipelineRun
from r1mega.rollout.kept import RECORD, Keeper
from r1mega.runtime import env, files, process
from r1mega.runtime.process import Identity

DEMO = Path(__file__).parents[2] / "configs/tiny/r1_zero/demo.toml"
"""base, anneal, rl, control, control_eval: the third and the last have a server."""


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DEMO.parents[3])


def left_by_a_stage(keeper: Keeper) -> subprocess.Popen[bytes]:
    """What a stage leaves: a process under a guard of the chain's, and its record."""
    child = process.spawn(
        [sys.executable, "-c", "import time; time.sleep(600)"], environment=process.child_environment(),
        log_file=None, owner=keeper.owner,
    )  # fmt: skip
    guard = Identity.of(child.pid)
    assert guard is not None
    files.make_folder(keeper.folder)
    files.write_json(keeper.folder / RECORD, {"guard": list(guard)})
    return child


def run(demo: Pipeline, run_dir: Path, monkeypatch: pytest.MonkeyPatch, stage: Any) -> None:
    def ended(plan: Any, chain: Any, starts: Any, *, tries_left: int) -> bool:
        stage(plan.node.name)
        return True

    monkeypatch.setattr(chains, "_ended", ended)
    monkeypatch.setattr(chains.artefacts, "record_outputs", lambda *_: None)
    monkeypatch.setattr(chains, "summarise", lambda *_: None)
    monkeypatch.setattr(PipelineRun, "of", without_handed_over(PipelineRun.of))
    chains.run_chain(PipelineRun(demo, "laptop", run_dir, (), ALL), resume=False)


def without_handed_over(of: Any) -> Any:
    """The stages' seconds are not there: they did not run."""
    return lambda self, node, **options: of(self, node.model_copy(update={"same_seconds_as": ""}), **options)


def test_stages_are_told_of_the_chain_and_the_last_server_ends_with_the_last_stage_that_needs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen, children = dict[str, Any](), list[subprocess.Popen[bytes]]()

    def stage(name: str) -> None:
        keeper = Keeper.told()
        assert keeper is not None
        seen[name] = (keeper.owner.pid, keeper.folder, keeper.room, keeper.record() is not None)
        if name == "rl":
            children.append(left_by_a_stage(keeper))

    demo = load_pipeline(DEMO).model_copy(update={"server": ServerOfChain(max_model_len=99)})
    run(demo, tmp_path / "run", monkeypatch, stage)
    told = (os.getpid(), tmp_path / "run" / FOLDER, 99)
    assert {name: row[:3] for name, row in seen.items()} == dict.fromkeys(seen, told)
    # It waits while control trains, since control_eval comes; after that it is ended.
    assert [name for name, row in seen.items() if row[3]] == ["control", "control_eval"]
    assert children[0].wait(60) is not None and env.kept_server() is None


def test_a_server_that_no_later_stage_needs_ends_before_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ended: list[bool] = []

    def stage(name: str) -> None:
        keeper = Keeper.told()
        assert keeper is not None
        if name == "rl":
            left_by_a_stage(keeper)
        if name == "control":
            ended.append(keeper.record() is None)

    demo = load_pipeline(DEMO)
    run(demo.model_copy(update={"stages": demo.stages[:4]}), tmp_path / "run", monkeypatch, stage)
    assert ended == [True]


def test_a_chain_that_fails_or_is_stopped_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    children: list[subprocess.Popen[bytes]] = []

    def stage(name: str) -> None:
        keeper = Keeper.told()
        assert keeper is not None
        children.append(left_by_a_stage(keeper))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(load_pipeline(DEMO), tmp_path / "run", monkeypatch, stage)
    assert children[0].wait(60) is not None and env.kept_server() is None


def test_where_it_is_off_nobody_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[Any] = []
    demo = load_pipeline(DEMO).model_copy(update={"server": ServerOfChain(keep=False)})
    run(demo, tmp_path / "run", monkeypatch, lambda name: told.append(env.kept_server()))
    assert told == [None] * 5


def test_what_an_earlier_chain_has_left_in_the_folder_is_ended(tmp_path: Path):
    mine = Identity.of(os.getpid())
    assert mine is not None
    child = left_by_a_stage(Keeper(mine, tmp_path / FOLDER))
    with Keeping(tmp_path, ServerOfChain()):
        assert child.wait(60) is not None
