"""Which run of W&B a run directory is, in which group, and at which number its rows go on."""

import json
from pathlib import Path
from types import SimpleNamespace

from test_runtime_wandb import alone, begin, write_samples

from r1mega.config.watching import Wandb
from r1mega.runtime import wandb_folder, wandb_parts
from r1mega.runtime.mirror import group_of

__all__ = ["alone"]  # a fixture


def test_the_group_is_the_settings_or_the_environments_or_the_chains(tmp_path: Path, monkeypatch):
    begin(tmp_path / "chain/run")
    assert group_of(tmp_path / "chain/run", Wandb()) == "chain-0a1b2c3d"
    assert group_of(tmp_path / "chain", Wandb()) is None  # a stage alone
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    assert group_of(tmp_path / "chain/run", Wandb()) == "mine"
    assert group_of(tmp_path / "chain/run", Wandb(group="ours")) == "ours"


def test_an_earlier_version_left_an_id_and_rows_without_numbers_of_ours(tmp_path: Path):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/r1mega_id").write_text("abc123")
    (tmp_path / "metrics.jsonl").write_text("{}\n" * 7)
    state = wandb_parts.PartsState.of(tmp_path)
    assert (state.id, state.next_row) == ("abc123", 7)


def test_a_copied_run_directory_is_another_run(tmp_path: Path):
    begin(tmp_path / "run")
    state = wandb_parts.PartsState.of(tmp_path / "run")
    state.next_row = 5
    state.save(tmp_path / "run")
    assert wandb_parts.PartsState.of(tmp_path / "run").next_row == 5
    (tmp_path / "run/run.json").write_text(json.dumps({"run": "ffff000011112222"}))
    copy = wandb_parts.PartsState.of(tmp_path / "run")
    assert (copy.id, copy.next_row, copy.parts) == ("ffff000011112222", 0, 0)


def test_numbers_go_on_behind_those_that_a_crash_took(tmp_path: Path):
    state = wandb_parts.PartsState("id")
    numbers = wandb_parts.RowNumbers(state, tmp_path)
    assert [numbers.take() for _ in range(3)] == [0, 1, 2]
    (tmp_path / "run.json").write_text("{}")
    after = wandb_parts.PartsState.of(tmp_path)  # nobody has given back what is left
    assert after.next_row == wandb_parts.BLOCK
    numbers.give_back()
    assert state.next_row == 3


def test_a_rollout_is_shown_when_it_is_whole(tmp_path: Path):
    """A file is written anew while models score its answers; a row of a later step says that it is done."""
    begin(tmp_path / "run")
    shown: list[int] = []
    run = SimpleNamespace(log=lambda row, step, commit: shown.append(row["step"]))
    settings = {"transcripts": 3, "transcripts_every": 2, "references": False, "alerts": False}
    state = wandb_parts.PartsState("id")
    folder = wandb_folder.ShownFolder(tmp_path / "run", run, state, settings, lambda: 0)
    for written, newest, expected in ((0, -1, []), (2, 1, [0]), (2, 2, [0]), (3, 3, [0, 2]), (4, 4, [0, 2])):
        write_samples(tmp_path / "run", written)
        folder.step = newest
        assert folder.look() == [] and shown == expected
    assert folder.look(last=True) == [] and shown == [0, 2, 4]
    state.table = 1000  # a hundredth of the steps taken is more than two
    for written in (1004, 1009, 1010):
        write_samples(tmp_path / "run", written)
    assert folder.look(last=True) == [] and shown == [0, 2, 4, 1010]
