"""`r1mega check` of a reward model's data: every row is read as the run reads it, and what is left out is said."""

import json
from pathlib import Path
from typing import Any

import pytest
from check_and_run import answer, stop_at_start, write_model

from r1mega import cli
from r1mega.data.constraint_language import WORDS
from r1mega.data.split import HELD_OUT

CONFIG = """
stage = "reward_model"
objective = "pairwise"
scope = "summary"
batch_size = 2
model = { path = "model" }
data = { files = ["rows.jsonl"], max_tokens = 100, too_long = "drop" }
batch = { chunk_tokens = 200 }
optimizer = { lr = 1e-3 }
save = { every_steps = 1 }
"""
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|endoftext|>{% endfor %}"
LABELS = ("objective=pointwise", "scope=response")


def pair(chosen: str, rejected: str, asked: str = "why?", **more: Any) -> dict[str, Any]:
    return {"prompt": asked, "chosen": chosen, "rejected": rejected, **more}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stop_at_start(monkeypatch, tmp_path / "cache")
    (tmp_path / "model").mkdir()
    (write_model(tmp_path / "model") / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "rm.toml").write_text(CONFIG)
    return tmp_path


def check(folder: Path, capsys: Any, rows: list[dict[str, Any]], *overrides: str) -> tuple[int, str]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return answer(lambda: cli.check(folder / "rm.toml", "laptop", list(overrides)), capsys)


def test_what_is_left_out_is_said_and_said_again(folder: Path, capsys: Any, caplog: Any):
    rows = [
        pair("a", "b"), pair("a", "b"), pair("b", "a"), pair("c", ""), pair("<think>d", "e"), pair("f", "f"),
        pair("g" * 90, "h"),
    ]  # fmt: skip
    for _ in range(2):  # the second time from what was kept
        caplog.clear()
        assert check(folder, capsys, rows) == (0, "")
        assert (
            "data: 7 read, of them 1 too long and dropped, 1 with an empty answer and left out, 1 with an answer "
            "that has no summary and left out, 1 with two answers that are read alike and left out, 1 read before "
            "and left out, 1 judged the other way round elsewhere and kept" in caplog.text
        )


def test_faults_are_those_of_the_run(folder: Path, capsys: Any):
    code, said = check(folder, capsys, [pair("a", "b"), {"prompt": "x", "chosen": "a"}])
    assert code == 2 and f"data: {folder / 'rows.jsonl'}, line 2: needs `chosen` and `rejected`" in said
    code, said = check(folder, capsys, [pair("a", "b"), pair("g" * 90, "h")], "data.too_long=error")
    assert code == 2 and "line 2: an answer is read in 1" in said and "more than data.max_tokens = 100" in said
    code, said = check(folder, capsys, [pair("a", "b", gap=1), pair("a", "c")], "margin=gap")
    assert code == 2 and 'line 2: has no gap, which margin = "gap" needs' in said
    code, said = check(folder, capsys, [pair("a", " ")])
    assert code == 2 and "of the 1 rows that were read all are left out: 1 empty" in said
    code, said = check(folder, capsys, [{"prompt": "x", "response": "a", "safe": 1}], *LABELS)
    assert code == 2 and "all 1 answers are safe" in said
    code, said = check(folder, capsys, [{"prompt": "x", "response": "a"}], *LABELS)
    assert code == 2 and "line 1: has no 'safe'" in said


def test_a_folder_is_no_file(folder: Path, capsys: Any):
    """Nor a traceback; of conversations the same function reads."""
    code, said = check(folder, capsys, [pair("a", "b")], f"data.files=['{folder / 'model'}']")
    assert code == 2 and said == f"cannot read {folder / 'model'}: Is a directory: name a file that can be read"


def test_rows_to_validate_on_are_read_too(folder: Path, capsys: Any):
    (folder / "other.jsonl").write_text(json.dumps(pair("a", "a", "when?")) + "\n")
    own = (f"validation.files=['{folder / 'other.jsonl'}']", "validation.every_steps=1")
    code, said = check(folder, capsys, [pair("a", "b")], *own)
    assert code == 2 and said.count("validation: nothing to learn from or to validate on") == 1
    share = ("validation.share=0.5", "validation.every_steps=1")
    code, said = check(folder, capsys, [pair("a", "b")], *share)
    assert code == 2 and "none on its side of validation.share" in said
    assert check(folder, capsys, [pair("a", "b", f"why {i}?") for i in range(12)], *share) == (0, "")


def test_rows_to_validate_on_whose_questions_are_trained_on_are_left_out(folder: Path, capsys: Any, caplog: Any):
    own = folder / "own.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in (pair("c", "d"), pair("c", "d", "when?"))))
    settings = (f"validation.files=['{own}']", "validation.every_steps=1")
    assert check(folder, capsys, [pair("a", "b"), pair("b", "c")], *settings) == (0, "")
    assert "validation: 2 read, of them 1 asked in training and left out" in caplog.text
    rows = [pair("a", "b"), pair("a", "b", "when?")]
    code, said = check(folder, capsys, rows, *settings)
    assert code == 2 and f"all 2 pairs to validate on ask questions that are trained on, the first at {own}" in said


def test_questions_of_the_held_out_side_are_left_out(folder: Path, capsys: Any, caplog: Any):
    """Of both sources that make questions, alone or among other words; decided by the law's own hash."""
    held = [p for i in range(2, 10) for w in WORDS if (p := f"Write {i} words, with {w}.") in HELD_OUT][:3]
    sums = (f"State the final answer to the following arithmetic problem: {i} + 1 =" for i in range(99))
    held += [text for text in sums if text in HELD_OUT][:2]
    free = next(p for w in WORDS if (p := f"Write 4 words, with {w}.") not in HELD_OUT)
    asked = [*held[:4], f"Please: {held[4]} Thanks.", free, "why?"]
    rows = [pair("a", "b", text) for text in asked]
    assert check(folder, capsys, rows) == (0, "")
    assert "data: 7 read, of them 5 of the held-out side and left out" in caplog.text
    rows = [{"prompt": text, "response": f"{i}", "safe": i % 2} for i, text in enumerate([*asked, "x"])]
    assert check(folder, capsys, rows, *LABELS) == (0, "")
    assert "data: 8 read, of them 5 of the held-out side and left out" in caplog.text
    code, said = check(folder, capsys, [pair("a", "b", held[0])])
    assert code == 2 and "all 1 rows ask questions of the held-out side" in said


def test_too_few_rows_for_the_steps_are_said(folder: Path, capsys: Any, caplog: Any):
    rows = [pair("a", "b", f"why {i}?") for i in range(5)]
    warm = ("optimizer.warmup_steps=3",)
    code, said = check(folder, capsys, rows, *warm)  # batches of 2
    assert code == 2 and "optimizer.warmup_steps: 3 leaves no step at the full learning rate; the stage has 3" in said
    assert check(folder, capsys, rows, *warm, "num_epochs=2") == (0, "") and "batch_size" not in caplog.text
    assert check(folder, capsys, rows, "batch_size=6") == (0, "")
    assert "batch_size: 6 is more than the 5 rows there are: a step takes all of them" in caplog.text


def test_a_row_whose_turns_the_template_refuses_is_named(folder: Path, capsys: Any):
    (folder / "model/chat_template.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + TEMPLATE
    )
    code, said = check(folder, capsys, [pair("a", "b"), pair("a", "c", system="Be brief.")])
    assert code == 2 and f"data: {folder / 'rows.jsonl'}, line 2: " in said and "no system turns" in said


def test_a_tokenizer_without_a_template_is_refused(folder: Path, capsys: Any):
    (folder / "model/chat_template.jinja").unlink()
    code, said = check(folder, capsys, [pair("a", "b")])
    assert code == 2 and "has no chat template: set chat_template to a Jinja file" in said
    (folder / "own.jinja").write_text(TEMPLATE)
    assert check(folder, capsys, [pair("a", "b")], f"chat_template={folder / 'own.jinja'}") == (0, "")
