"""People's decisions on rows, applied while a set is put together: edited rows stand for those they were made of."""

import json
from pathlib import Path

import pytest
from mixture_run import card, mixed, plain, read, said, sampled, set_of, signature, write

from r1mega.errors import DataError

ROWS = [sampled(f"Q{i}", f"A{i}") for i in range(6)]
TABLES = '[[data]]\nfiles = ["rows.jsonl"]\n'
QUEUE = 'review = ["queue.jsonl"]\n'


def line(number: int, decision: str, answer: str = "") -> dict[str, str]:
    row = ROWS[number]
    question, was = (turn["content"] for turn in row["messages"])
    told = {"decision": decision, "reviewer": "ann", "note": ""}
    return {"sha256": row["sha256"], "question": question, "answer": answer or was, **told}


def test_decisions_are_applied_and_counted(tmp_path: Path):
    write(tmp_path / "rows.jsonl", ROWS)
    decided = [line(0, "accept"), line(1, "edit", "A better A1"), line(2, "reject"), line(3, "edit", "A4")]
    write(tmp_path / "queue.jsonl", [*decided, line(5, "")])
    write(tmp_path / "plain.jsonl", [plain("Q3", "A4")])
    tables = QUEUE + 'undecided = "drop"\n' + TABLES + '[[data]]\nfiles = ["plain.jsonl"]\ndomain = "general"\n'
    run_dir = mixed(tmp_path, tables)
    rows = {row["messages"][0]["content"]: row for row in set_of(run_dir)}
    assert {q: row["messages"][1]["content"] for q, row in rows.items()} == {
        "Q0": "A0", "Q1": "A better A1", "Q3": "A4", "Q4": "A4",
    }  # fmt: skip
    edited = rows["Q1"]
    assert edited["sha256"] == signature(edited) and edited["provenance"]["from"] == [ROWS[1]["sha256"]]
    assert edited["provenance"]["review"]["original"] == ROWS[1]["messages"]
    assert rows["Q4"] == ROWS[4]
    told = card(run_dir)
    assert told["outcomes"] == {
        "kept": 4, "rejected": 1, "undecided": 1, "held_out": 0, "control_token": 0, "contaminated": 0, "double": 1,
        "enough": 0, "not_drawn": 0,
    }  # fmt: skip
    assert told["reviewed"] == {"edited": 2, "accepted": 1}
    assert told["review"]["reviewers"] == {"ann": {"accepted": 1, "edited": 2, "rejected": 1, "undecided": 1}}
    assert "What people would say of 1 rows: none of them was reviewed." in told["not_known"]
    verdicts = "Whether 2 answers are right as people edited them: the verdicts are of what stood there before."
    assert verdicts in told["not_known"]
    assert [said([row]) for row in read(run_dir / "rejected.jsonl")] == [[("Q2", "A2")], [("Q5", "A5")]]


def test_an_edit_is_looked_at_as_the_row_it_makes(tmp_path: Path):
    ten = "one two three four five six seven eight nine ten"
    write(tmp_path / "eval.jsonl", [{"question": ten}])
    write(tmp_path / "rows.jsonl", [ROWS[0], (bad := sampled("Q1", f"So {ten}."))])
    told = {"sha256": bad["sha256"], "question": "Q1", "decision": "edit", "reviewer": "", "note": ""}
    write(tmp_path / "queue.jsonl", [line(0, "edit", f"Yes, {ten}"), {**told, "answer": "Other words."}])
    run_dir = mixed(tmp_path, QUEUE + TABLES + '[decontaminate]\nfiles = ["eval.jsonl"]\n')
    assert said(set_of(run_dir)) == [("Q1", "Other words.")]
    assert [hit["place"]["line"] for hit in read(run_dir / "contaminated.jsonl")] == [1]


@pytest.mark.parametrize(
    ("decided", "told"),
    [
        ([line(0, "")], r"queue\.jsonl, line 1: no decision"),
        ([line(0, "edit")], r'line 1: decision "edit", and the answer is the one that was there'),
        ([{**line(0, "accept"), "sha256": "ab"}], r"line 1: no row has sha256 'ab'"),
        ([{**line(0, "accept"), "decision": "accpet"}], r"decision 'accpet'"),
    ],
)
def test_decisions_that_do_not_fit_are_refused(tmp_path: Path, decided, told: str):
    write(tmp_path / "rows.jsonl", ROWS)
    write(tmp_path / "queue.jsonl", decided)
    with pytest.raises(DataError, match=told):
        mixed(tmp_path, QUEUE + TABLES)
    assert not (tmp_path / "run/conversations.jsonl").exists()


def test_a_decision_on_a_row_of_parquet(tmp_path: Path):
    """Of an imported row, as an earlier set has signed it."""
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"prompt": ["Hello", "Bye"], "response": ["Hi", "Bye"]}), tmp_path / "a.parquet")
    tables = '[[data]]\nfiles = ["a.parquet"]\ndomain = "general"\n'
    first = set_of(mixed(tmp_path, tables, name="first"))
    hello = next(row for row in first if row["messages"][0]["content"] == "Hello")
    told = {"question": "Hello", "answer": "Hello to you", "decision": "edit", "reviewer": "", "note": ""}
    (tmp_path / "queue.jsonl").write_text(json.dumps({"sha256": hello["sha256"], **told}))
    rows = set_of(mixed(tmp_path, QUEUE + tables, name="second"))
    assert sorted(said(rows)) == [("Bye", "Bye"), ("Hello", "Hello to you")]
