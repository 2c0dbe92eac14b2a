"""`check` says of a mixture what `run` would, and remembers what it found good."""

import json
from pathlib import Path

import pytest
from check_and_run import answer, stop_at_start
from mixture_run import plain, sampled, write

from r1mega import cli
from r1mega.config.load import load_cluster
from r1mega.config.slurm import needs
from r1mega.preflight.look import look

TABLES = (
    'stage = "mixture"\n[[data]]\nfiles = ["rows.jsonl"]\n[[data]]\nfiles = ["plain.jsonl"]\ndomain = "general"\n'
)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stop_at_start(monkeypatch, tmp_path / "cache")
    write(tmp_path / "rows.jsonl", [sampled(f"Q{i}", "A") for i in range(4)])
    write(tmp_path / "plain.jsonl", [plain("Q1", "A"), plain("Q9", "A")])
    file = tmp_path / "mixture.toml"
    file.write_text(TABLES)
    return file


def said(config: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str]:
    return answer(lambda: cli.check(config, "laptop", list(overrides)), capsys)


def test_a_mixture_that_can_be_made(
    config: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    assert said(config, capsys)[0] == 0
    left_out = "data.1: 2 read, of them 1 read before and left out"
    assert left_out in caplog.text
    caplog.clear()
    monkeypatch.setattr("r1mega.stages.mixture_reading.see", None)  # it is not read again
    assert said(config, capsys)[0] == 0 and left_out in caplog.text


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data.0.num=5"], "data.0.num: 5 rows are asked for, and of the 4 that were read 4 are left"),
        (["data.1.share=0.9"], "data.1.share: 36 rows are asked for (0.9 of a set of 40)"),
        (["data.0.num=2", "data.0.share=0.5"], "data.0: give num (so many rows) or share"),
        (["data.0.share=0.7", "data.1.share=0.7"], "data: the shares sum to 1.4"),
        (["data.0.share=0.1", "data.1.share=0.7"], "data: every table has a share, and they sum to 0.8"),
        (["data.0.share=1"], "data: the shares sum to 1, which leaves nothing for the tables without one"),
        (["data.1.domain=chemistry"], "data.1.domain"),
        (['data.1.files=["rows.jsonl"]'], "is named 2 times; its rows would all be doubles"),
        (['data.1.files=["./rows.jsonl", "plain.jsonl"]'], "data.0.files and data.1.files: "),
        (['data.0.files=["rows.csv"]'], "rows are read from *.jsonl and *.parquet files"),
        (['data.0.files=["folder.jsonl"]'], "is a folder: name the files in it"),
        (["data.0.files=[]"], "data.0.files"),
        (['decontaminate.files=["rows.jsonl"]'], "is searched, and searched for"),
        (["undecided=keep"], "undecided: has no effect without review"),
        (["model.path=somewhere"], "model"),
        (["data.0.num=0"], "data.0.num"),
    ],
)
def test_what_cannot_be_made_is_refused(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, overrides: list[str], told: str
):
    (config.parent / "folder.jsonl").mkdir()
    monkeypatch.chdir(config.parent)  # paths of --set count from here
    cluster = str(Path(__file__).parents[2] / "configs/cluster/laptop.toml")
    code, message = answer(lambda: cli.check(config, cluster, overrides), capsys)
    assert code == 2 and told in message, message


def test_files_that_are_to_come_are_noted_and_a_run_refuses(config: Path, capsys: pytest.CaptureFixture[str]):
    (config.parent / "rows.jsonl").unlink()
    code, told = said(config, capsys)
    assert code == 0 and "data.0.files: " in told and "not there yet" in told
    code, told = answer(lambda: cli.run(config, "laptop", config.parent / "run", []), capsys)
    assert code == 2 and "rows.jsonl: not there yet" in told


def test_what_an_earlier_stage_left_out_is_read_by_check_too(config: Path, capsys: pytest.CaptureFixture[str]):
    (config.parent / "summary.json").write_text(json.dumps({"stage": "rejection"}))
    (config.parent / "decisions.jsonl").write_text("[]\n")
    code, told = said(config, capsys)
    assert code == 2 and "decisions.jsonl, line 1: no object with domain and outcome" in told


def test_it_takes_no_gpu_and_no_model(config: Path):
    seen = look(config, "h800_v3", starting=True)
    assert seen.num_ranks == 1 and seen.spec is None and seen.absent == ()
    asked = needs(load_cluster("h800_v3"), trains=seen.recipe.trains, serves=seen.recipe.serves)
    assert asked.options == "--nodes=1 --ntasks-per-node=1 --cpus-per-task=1"
