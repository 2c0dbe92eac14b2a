"""docs/guides/reward_model.md: its rows, its config and its commands do what it says, from pairs to transformers."""

import contextlib
import io
import json
import logging
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judged_data import write_judge_base

from r1mega import cli
from r1mega.data.preference_data import LEFT_OUT
from r1mega.preflight import verdicts
from r1mega.report import figures

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/reward_model.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^r1mega .*$", GUIDE, re.M)
PAIRS, LABELS = re.findall(r"^```jsonl\n(.*?)^```", GUIDE, re.M | re.S)
(CONFIG,) = re.findall(r"^```toml\n# own_rm.toml\n(.*?)^```", GUIDE, re.M | re.S)
(PROGRAM,) = re.findall(r"^```python\n(.*?)^```", GUIDE, re.M | re.S)


@pytest.fixture(scope="module")
def folder(mesh, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what the guide has the reader write, the configs, and a tiny model to begin from."""
    folder = tmp_path_factory.mktemp("guide")
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "runs/tiny/dense/0_base").mkdir(parents=True)
    write_judge_base(folder / "runs/tiny/dense/0_base/hf", "qwen2", mesh)
    (folder / "own_rm.toml").write_text(CONFIG)
    (folder / "own_pairs.jsonl").write_text(PAIRS)
    (folder / "own_labels.jsonl").write_text(LABELS)
    return folder


def said_by(command: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> tuple[int, str, str]:
    quiet = ["--set", "wandb.mode=disabled"] if command.split()[1] == "run" else []
    monkeypatch.setattr(sys, "argv", [*shlex.split(command), *quiet])
    code = 0
    try:
        cli.main()
    except SystemExit as left:
        code = int(left.code or 0)
    out, error = capsys.readouterr()
    return code, out, error


@pytest.fixture
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a command changes of its process is put back; figures have few dots."""
    loggers = logging.getLogger(), logging.getLogger("r1mega")
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    monkeypatch.setitem(figures.STYLE, "figure.dpi", 40)
    with warnings.catch_warnings():
        yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.mark.usefixtures("as_before")
def test_the_commands_run_and_the_model_scores(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(verdicts, "cache_dir", lambda: folder / "cache")
    monkeypatch.setattr(cli.openmp, "restart_with_preload", lambda: None)  # this process is pytest's
    assert [command.split()[1] for command in COMMANDS] == ["check", "run", "report", "check", "check", "run"]
    for command in COMMANDS:
        code, _, error = said_by(command, monkeypatch, capsys)
        assert code == 0, f"{command}: {error}"
    for run, rows in (("own_rm", 4), ("own_harmless", 4)):
        summary = json.loads((folder / "runs" / run / "summary.json").read_text())
        held_out = json.loads((folder / "runs" / run / "data/validation/store.json").read_text())
        assert summary["data"]["rows"] + held_out["rows"] == rows and held_out["documents"] == 1
        named = re.findall(r"^\| (`[\w/`, ]+`) \|", GUIDE, re.M)
        figures = [name for row in named for name in re.findall(r"`([\w/]+)`", row)]
        assert len(figures) == 6
        # One pair has a longer answer on one side alone, and one answer is of one class.
        absent = {"longer_worse/accuracy", "longer_better/accuracy", "margin"}
        assert {name for name in figures if name not in summary["validation_after"]} <= absent
        page = (folder / "runs" / run / "report.html").read_text()
        assert "length_bias" in page or "preference_accuracy" in page
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(PROGRAM, {})
    assert abs(float(said.getvalue())) < 100


def test_what_is_counted_is_named():
    for name in (*LEFT_OUT, "contradicted", "held_out"):
        assert f"`{name}`" in GUIDE, name
