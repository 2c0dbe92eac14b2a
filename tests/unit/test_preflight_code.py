"""Questions of code as `check` and `run` see them: rows without tests, and machines without a sandbox."""

import json
from pathlib import Path

import pytest
from check_and_run import ROOT, both, stop_at_start

from r1mega.recipe import asking
from r1mega.rewards import code

RL = ROOT / "configs/tiny/r1_zero/1_rl.toml"
SETTINGS = (
    "model.config=configs/tiny/qwen2.json", "model.path=/nowhere/hf", "rollout.num_prompts=4",
    "prompt.template=r1_zero",
    "evaluation.questions.0.num=10", "batch.chunk_tokens=1024", "sampling.max_new_tokens=64",
)  # fmt: skip
ENTRY = {"language": "cpp", "tests": [{"stdin": "", "stdout": "1"}]}


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stop_at_start(monkeypatch, tmp_path / "cache")
    for module in (asking, code):
        monkeypatch.setattr(module, "fault_of_this_machine", lambda **_: None)


def questions(tmp_path: Path, entry: dict, verifier: str = "code", *, column: bool = False) -> list[str]:
    file = tmp_path / "code.jsonl"
    rows = [{"question": f"Print {n}.", "entry": entry, "judge": verifier} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    of = "verifier_column='judge'" if column else f"verifier='{verifier}'"
    return [*SETTINGS, f"questions=[{{kind='jsonl',path='{file}',entry='entry',domain='code',{of}}}]"]


def test_rows_with_tests_are_good_without_a_truth(tmp_path: Path, capsys):
    checked, ran = both(RL, questions(tmp_path, ENTRY), tmp_path / "run", capsys)
    assert checked[0] == 0 and "model.path: /nowhere/hf is not there yet" in checked[1]
    assert ran[0] == 2 and "model.path: /nowhere/hf is not there yet" in ran[1]


@pytest.mark.parametrize(
    ("entry", "verifier", "fault"),
    [
        ({}, "code", "line 1: tests should be a list"),
        ({"tests": [{"stdin": ""}]}, "code", "stdout should be a text"),
        (ENTRY, "code_fix", "line 1: there is no program to mend"),
    ],
)
def test_rows_that_cannot_be_judged_are_refused_with_their_place(entry, verifier, fault, tmp_path: Path, capsys):
    checked, ran = both(RL, questions(tmp_path, entry, verifier), tmp_path / "run", capsys)
    assert checked == ran and checked[0] == 2
    assert "question(s) of code that cannot be judged" in checked[1] and fault in checked[1]


@pytest.mark.parametrize("column", [False, True])
def test_without_a_sandbox_code_is_refused_by_check_and_run(column: bool, tmp_path: Path, capsys, monkeypatch):
    for module in (asking, code):
        monkeypatch.setattr(module, "fault_of_this_machine", lambda **_: "no bwrap: `make system-deps`")
    checked, ran = both(RL, questions(tmp_path, ENTRY, column=column), tmp_path / "run", capsys)
    assert checked == ran and checked[0] == 2 and "no bwrap: `make system-deps`" in checked[1]
