"""Which run of W&B a run directory is, in which group, and at which number its rows go on."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_runtime_wandb import alone, begin, write_samples

from r1mega.config.watching import Wandb
from r1mega.runtime import wandb_folder, wandb_parts, wandb_process
from r1mega.runtime.events import Events
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


def test_of_a_long_file_no_row_is_read_but_those_that_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of ten rows the first, the fourth and the seventh; the others, which are no JSON, would be a fault."""
    begin(tmp_path)
    monkeypatch.setattr(wandb_folder, "MOST_EVENTS", 2)
    monkeypatch.setattr("wandb.Table", lambda **table: table)
    rows = [json.dumps({"text": f"{i}\x85\u2028"}, ensure_ascii=False) if i in (0, 3, 6) else "{" for i in range(10)]
    (tmp_path / "samples/step_0.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    judged = [json.dumps({"id": f"q{i}", "samples": []}) if i in (0, 3, 6) else "{" for i in range(10)]
    (tmp_path / "results.jsonl").write_text("".join(f"{row}\n" for row in judged))
    for step in range(3):
        Events(tmp_path).say("hacking", "reward rises", step=step)
    logged: list[dict[str, Any]] = []
    run = SimpleNamespace(log=lambda row, step, commit: logged.append(row), summary={})
    settings = {"transcripts": 3, "transcripts_every": 1, "references": False, "alerts": False}
    folder = wandb_folder.ShownFolder(tmp_path, run, wandb_parts.PartsState("id"), settings, lambda: 0)
    assert folder.look(last=True) == []
    found = {row["kind"]: row for row in logged}
    texts, answers = found["transcripts"]["transcripts"], found["judged_answers"]["judged_answers"]
    assert [row[texts["columns"].index("text")][:1] for row in texts["data"]] == ["0", "3", "6"]
    assert [row[answers["columns"].index("id")] for row in answers["data"]] == ["q0", "q3", "q6"]
    counts = {kind: (row[f"{kind}/shown"], row[f"{kind}/of"]) for kind, row in found.items()}
    assert counts == {"transcripts": (3, 10), "judged_answers": (3, 10), "events": (2, 3)}


def test_a_row_is_answered_before_the_folder_is_looked_at(monkeypatch: pytest.MonkeyPatch):
    """Whoever waits for the answer gives up after a minute, which a slow file system may take for a look."""
    answers, known = io.StringIO(), list[str]()

    class Session:
        mode = "offline"

        def __init__(self, wanted: dict[str, Any]) -> None: ...

        def log(self, row: dict[str, Any]) -> None: ...

        def look_if_due(self) -> list[str]:
            known.append(answers.getvalue())
            return ["slow"] if len(known) == 2 else []

        def finish(self, exit_code: int, *, preempted: bool) -> list[str]:
            return []

    monkeypatch.setattr(wandb_process, "WandbSession", Session)
    asked = [{}, {"row": {"step": 1}}, {"finish": 0, "preempted": False}]
    wandb_process._serve(iter(asked), answers)
    assert [text.count("\n") for text in known] == [1, 2]
    assert [json.loads(line) for line in answers.getvalue().splitlines()] == [
        {"mode": "offline"}, {}, {"said": ["slow"]},
    ]  # fmt: skip
