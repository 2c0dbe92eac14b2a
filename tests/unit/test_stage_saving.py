"""What a stage leaves on its way when ranks or runs are lost: exports are made up, dead ranks not waited for."""

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from r1mega.config.training import Save
from r1mega.errors import CheckpointError, RanksLostError
from r1mega.recipe.load import load
from r1mega.runtime.run_dir import RunDir

if TYPE_CHECKING:
    from r1mega.formats.hf_folder import HFFolder
    from r1mega.trainer.checkpoint.publishing import collect_parts
    from r1mega.weights import hf_io
    from r1mega.weights.saves import Saves

BASE = Path(__file__).parents[2] / "configs/tiny/r1_zero/0_base.toml"


@pytest.fixture(autouse=True, scope="module")
def megatron(mesh):
    """Imported after the mesh, and not while other tests are collected."""
    global HFFolder, Saves, collect_parts, hf_io
    from r1mega.formats.hf_folder import HFFolder
    from r1mega.trainer.checkpoint.publishing import collect_parts
    from r1mega.weights import hf_io
    from r1mega.weights.saves import Saves


def test_an_export_that_a_kill_took_is_made_up_where_the_run_resumes(make_policy, tmp_path: Path):
    policy = make_policy(mtp="joint")
    run = RunDir(tmp_path, *load(BASE, "laptop"), resume=False)
    with Saves(policy, run, Save(every_steps=1, hf_every=2), None) as saves:
        for step in (0, 1, 4):
            saves.make_up(step)
    assert [p.name for p in (run.path / "hf_steps").iterdir()] == ["step_4"]
    assert not HFFolder(run.hf_step(4)).repetition_faults()
    (run.hf_step(4) / "seen").touch()
    with Saves(policy, run, Save(every_steps=1, hf_every=2), None) as saves:
        saves.make_up(4)
    assert (run.hf_step(4) / "seen").exists()  # what is there is left as it is
    with Saves(policy, run, Save(every_steps=1, hf_every=0), None) as saves:
        saves.make_up(6)
    assert not run.hf_step(6).exists()
    run.close()


def test_no_later_checkpoint_stands_before_an_export_has_ended(make_policy, tmp_path: Path, monkeypatch):
    """Or a kill in between would lose the export: the run resumes behind its step."""
    policy = make_policy(mtp="joint")
    run = RunDir(tmp_path, *load(BASE, "laptop"), resume=False)
    write, stood = hf_io._write_all, list[bool]()

    def slow(*args: Any) -> None:
        time.sleep(0.5)
        stood.append(run.checkpoint(3).exists())
        write(*args)

    monkeypatch.setattr(hf_io, "_write_all", slow)
    with Saves(policy, run, Save(every_steps=1, hf_every=2), None) as saves:
        saves.export_if_due(2)
        saves.checkpoint(3, {"step": 3})
        assert run.hf_step(2).exists()
    assert stood == [False] and run.checkpoint(3).exists()
    run.close()


def test_a_rank_is_waited_for_while_it_writes_and_not_for_ever(tmp_path: Path):
    (tmp_path / "part_00000.json").write_text(json.dumps({}))
    polls = []

    def gone() -> bool:
        polls.append(0)
        if len(polls) < 30:  # longer than the limit: rank 2 still writes
            with (tmp_path / "__2_0.distcp").open("ab") as file:
                file.write(b"more")
        return False

    with pytest.raises(RanksLostError, match=r"waited for ranks \[1, 2\]: gone, or .*timeout_s = 0.3 s"):
        collect_parts(tmp_path, 3, gone, silence_s=0.3)
    assert len(polls) >= 30


def test_a_rank_too_slow_for_the_first_one_has_lost_it_and_made_no_mistake(make_policy, tmp_path: Path, monkeypatch):
    """The first rank has given the checkpoint up, and its folder is gone under the hands of the other."""
    from r1mega.trainer.checkpoint import checkpointer as saving

    policy = make_policy(mtp="joint")
    checkpointer = saving.Checkpointer(policy)
    write_part = saving.write_part

    def slowly(folder: Path, rank: int, contents) -> None:
        shutil.rmtree(folder)
        write_part(folder, rank, contents)

    def full(folder: Path, rank: int, contents) -> None:
        shutil.rmtree(folder)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "write_part", slowly)
    with pytest.raises(CheckpointError, match="No such file or directory"):  # nobody else takes the first one's away
        checkpointer.save(tmp_path / "step_1", {})
    policy.mesh = dataclasses.replace(policy.mesh, rank=1)
    said = r"step_2: could not be saved \(the first rank waits for this one's part no longer\)"
    with pytest.raises(RanksLostError, match=said):
        checkpointer.save(tmp_path / "step_2", {})
    monkeypatch.setattr(saving, "write_part", full)
    with pytest.raises(CheckpointError, match="No space left"):  # its own fault all the same
        checkpointer.save(tmp_path / "step_3", {})
    assert list(tmp_path.iterdir()) == []
