"""`check` of questions that lie elsewhere, or in tables of several kinds, as `run` reads them."""

import json
from pathlib import Path

import pytest
from check_and_run import ROOT, answer, both, stop_at_start
from own_questions import TRAINED, own

from r1mega import cli
from r1mega.data.sources.jsonl import JSONL

RL = ROOT / "configs/tiny/r1_zero/1_rl.toml"
NOT_THERE = "model.config=configs/tiny/qwen2.json", "model.path=/nowhere/hf", "rollout.num_prompts=4"


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stop_at_start(monkeypatch, tmp_path / "cache")


def rows(file: Path, num: int) -> Path:
    file.parent.mkdir(exist_ok=True)
    lines = [json.dumps({"task": "gcd", "question": text, "truth": "3"}) for text in TRAINED[:num]]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_a_dataset_on_the_hub_is_said_and_what_is_here_is_looked_at(tmp_path: Path, capsys):
    file = rows(tmp_path / "own.jsonl", 3)
    hub = "{kind='dataset',name='owner/name',split='test',verifier='math'}"
    here = "{kind='jsonl',path='%s',verifier_column='%s'}"
    for column, code, said in (("task", 0, ""), ("tsk", 2, "no column 'tsk' (did you mean 'task'?)")):
        override = f"questions=[{hub},{here % (file, column)}]"
        found = answer(lambda override=override: cli.check(RL, "laptop", [*NOT_THERE, override]), capsys)
        assert found[0] == code and said in found[1], found
        if not code:
            line = "questions.0: 'owner/name', split 'test', is on the hub or in its cache: not looked at here"
            assert line in found[1]


def test_what_was_found_good_is_remembered_until_a_row_changes(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    reads: list[int] = []
    read = JSONL.read
    monkeypatch.setattr(JSONL, "read", lambda self, seed: reads.append(1) or read(self, seed))
    override = own(rows(tmp_path / "own.jsonl", 6))
    for times in (1, 1, 2):  # read, remembered, and read anew where a row has changed
        if times == 2:
            rows(tmp_path / "own.jsonl", 7)
        assert answer(lambda: cli.check(RL, "laptop", [*NOT_THERE, override]), capsys)[0] == 0
        assert len(reads) == times


def test_a_weight_that_a_source_cannot_fill_is_refused_before_anything_starts(tmp_path: Path, capsys):
    file = rows(tmp_path / "own.jsonl", 3)
    table = f"{{kind='jsonl',path='{file}',verifier_column='task',weight=2}}"
    sums = "{kind='reasoning_gym',family='chain_sum',num=20}"
    for num_prompts, code in ((4, 0), (6, 2)):  # 2/3 of them
        overrides = [*NOT_THERE, f"questions=[{table},{sums}]", f"rollout.num_prompts={num_prompts}"]
        checked, ran = both(RL, overrides, tmp_path / "run", capsys)
        assert checked[0] == code and ran[0] == 2  # which has no weights either
        if code:
            assert checked == ran and "share of a rollout's 6 prompts is 4, and it has 3 question(s)" in checked[1]


def test_an_evaluation_asks_a_file_whole_and_refuses_it_in_training(tmp_path: Path, capsys):
    mine, bench = rows(tmp_path / "own.jsonl", 9), rows(tmp_path / "bench.jsonl", 2)
    held_out = f"evaluation.questions=[{{kind='jsonl',path='{bench}',verifier_column='task'}}]"
    checked, ran = both(RL, [*NOT_THERE, own(mine), held_out], tmp_path / "run", capsys)
    assert checked == ran and checked[0] == 2
    assert f"{mine}, line 2 asks what the evaluation asks in {bench}, line 2" in checked[1]
    checked, _ = both(RL, [*NOT_THERE, own(mine, duplicates="drop"), held_out], tmp_path / "run", capsys)
    assert checked[0] == 0 and "not there yet" in checked[1]


def test_truths_that_are_matched_word_for_word_alone_are_said_by_line(tmp_path: Path, capsys, caplog):
    file = tmp_path / "own.jsonl"
    truths = ("3", "\\foo{3}", "\\frac{1}{2}", "Monday", "B")
    lines = [json.dumps({"question": text, "truth": truth}) for text, truth in zip(TRAINED, truths, strict=False)]
    file.write_text("\n".join(lines))
    override = f"questions=[{{kind='jsonl',path='{file}',verifier='math'}}]"
    assert answer(lambda: cli.check(RL, "laptop", [*NOT_THERE, override]), capsys)[0] == 0
    (said,) = [record.getMessage() for record in caplog.records if "truth(s)" in record.getMessage()]
    assert said.startswith("1 truth(s) that an answer matches only where it says the same")
    assert "line 2: truth '\\\\foo{3}' of verifier math: it is not read as mathematics" in said
