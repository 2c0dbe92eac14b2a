"""What people decide on rows: every law of a queue, by rows and lines written by hand."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from r1mega.data.lines import values
from r1mega.data.review import ReviewLine, apply_review, queue_lines, read_queue
from r1mega.data.signed_rows import Row, is_intact, signed
from r1mega.errors import DataError


def row(i: int, answer: str = "", **provenance: Any) -> Row:
    messages = [
        {"role": "user", "content": f"What is {i} + 1?"},
        {"role": "assistant", "content": answer or f"<think>\n{i} and one more\n</think>\n\nIt is {i + 1}."},
    ]
    return signed({"messages": messages, "provenance": {"question": {"id": str(i)}, "from": [], **provenance}})


ROWS = [row(i) for i in range(6)]


def line(of: Row, decision: str = "accept", answer: str | None = None, **more: str) -> ReviewLine:
    question, said = (turn["content"] for turn in of["messages"])
    return ReviewLine(of["sha256"], question, said if answer is None else answer, decision, **more)


def test_rows_go_out_as_lines_without_a_decision():
    found = [one.to_json() for one in queue_lines((one, "there") for one in ROWS)]
    assert found[2] == {
        "sha256": ROWS[2]["sha256"], "question": "What is 2 + 1?",
        "answer": "<think>\n2 and one more\n</think>\n\nIt is 3.", "decision": "", "reviewer": "", "note": "",
    }  # fmt: skip
    assert [one["sha256"] for one in found] == [one["sha256"] for one in ROWS]
    assert list(queue_lines([(ROWS[0], "a"), (ROWS[1], "b"), (ROWS[0], "c")], reviewer="ann"))[1:] == [
        line(ROWS[1], "", reviewer="ann", where="b")
    ]


def test_a_drawn_queue_follows_from_seed_and_content():
    def drawn(seed: int, rows: list[Row]) -> list[str]:
        return [one.sha256 for one in queue_lines(((one, "there") for one in rows), num=3, seed=seed)]

    def first(seed: int) -> set[str]:
        by_hash = sorted(ROWS, key=lambda one: hashlib.sha256(f"{seed}/{one['sha256']}".encode()).hexdigest())
        return {one["sha256"] for one in by_hash[:3]}

    order = [one["sha256"] for one in ROWS]
    for seed in range(4):
        found = drawn(seed, ROWS)
        assert set(found) == first(seed) == set(drawn(seed, ROWS[::-1])) and found == sorted(found, key=order.index)
    assert len({tuple(drawn(seed, ROWS)) for seed in range(4)}) > 1
    assert len(list(queue_lines(((one, "there") for one in ROWS), num=9))) == 6


def test_a_conversation_is_shown_with_its_roles():
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hi."), ("user", "2 + 2?"), ("assistant", "4")]
    talk = signed({"messages": [{"role": role, "content": said} for role, said in turns]})
    (found,) = queue_lines([(talk, "there")])
    assert found.question == "[system]\nBe brief.\n\n[user]\nHi\n\n[assistant]\nHi.\n\n[user]\n2 + 2?"
    assert found.answer == "4"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({**ROWS[0], "more": 1}, r"f\.jsonl, line 3: is not what it was when it was written"),
        ({"messages": ROWS[0]["messages"]}, "line 3: has no sha256 of its own"),
        ({"prompt": "a", "response": "b"}, "line 3: is no row with `messages`"),
        (7, "line 3: is no row with"),
        (signed({"messages": [{"role": "user", "content": "a"}]}), "line 3: ends with the user's turn"),
    ],
)
def test_rows_that_nobody_can_decide_on_are_refused(bad: Any, said: str):
    with pytest.raises(DataError, match=said):
        list(queue_lines([(ROWS[1], "f.jsonl, line 2"), (bad, "f.jsonl, line 3")]))


# ---- back ----------------------------------------------------------------------------------------------------------


def test_every_decision_has_its_effect():
    queue = [
        line(ROWS[0], reviewer="ann"),
        line(ROWS[1], "edit", "<think>\nlook\n</think>\n\nTwo.", reviewer="ann", note="shorter"),
        line(ROWS[2], "reject", reviewer="bob", note="nonsense"),
        line(ROWS[3], "", reviewer="bob"),
    ]
    found = apply_review(ROWS, queue, undecided="keep")
    accepted, edited, *rest = found.rows
    assert rest == ROWS[3:] and [json.dumps(one) for one in rest] == [json.dumps(one) for one in ROWS[3:]]
    assert accepted["messages"] == ROWS[0]["messages"]
    assert accepted["provenance"] == {
        "question": {"id": "0"},
        "from": [ROWS[0]["sha256"]],
        "review": {"reviewer": "ann", "decision": "accepted", "note": ""},
    }
    assert edited["messages"] == [
        {"role": "user", "content": "What is 1 + 1?"},
        {"role": "assistant", "content": "<think>\nlook\n</think>\n\nTwo."},
    ]
    assert edited["provenance"] == {
        "question": {"id": "1"},
        "from": [ROWS[1]["sha256"]],
        "review": {"reviewer": "ann", "decision": "edited", "note": "shorter", "original": ROWS[1]["messages"]},
    }
    (rejected,) = found.rejected
    assert rejected["messages"] == ROWS[2]["messages"] and rejected["provenance"]["from"] == [ROWS[2]["sha256"]]
    assert rejected["provenance"]["review"] == {"reviewer": "bob", "decision": "rejected", "note": "nonsense"}
    assert all(is_intact(one) for one in (*found.rows, *found.rejected))
    numbers = {name: num for name, num in found.counts.items() if num}
    assert numbers == {"accepted": 1, "edited": 1, "rejected": 1, "undecided_kept": 1, "not_in_queue": 2}
    assert found.reviewers == {"ann": {"accepted": 1, "edited": 1}, "bob": {"rejected": 1, "undecided": 1}}
    assert [row(i) for i in range(6)] == ROWS, "what was handed in is not written to"


def test_undecided_lines_are_refused_unless_it_is_said_what_becomes_of_them():
    queue = [line(ROWS[0]), line(ROWS[1], "", where="q, line 2"), line(ROWS[2], "", where="q, line 3")]
    with pytest.raises(DataError, match=r"q, line 2: no decision, nor in 1 more: decide .*, or say what"):
        apply_review(ROWS, queue)
    found = apply_review(ROWS, queue, undecided="drop")
    assert found.rows[1:] == ROWS[3:] and [one["provenance"]["review"]["decision"] for one in found.rejected] == [
        "undecided", "undecided",
    ]  # fmt: skip
    assert found.counts["undecided_dropped"] == 2 and found.counts["rejected"] == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (line(ROWS[0], answer="changed"), 'decision "accept", and the answer was changed: write "edit"'),
        (line(ROWS[0], answer=ROWS[0]["messages"][1]["content"] + " "), r"changed \(in white space alone\)"),
        (line(ROWS[0], "reject", "changed"), 'decision "reject", and the answer was changed'),
        (line(ROWS[0], "", "changed"), 'decision "", and the answer was changed'),
        (line(ROWS[0], "edit"), 'decision "edit", and the answer is the one that was there'),
        (line(ROWS[0], "edit", " "), 'decision "edit" with an empty answer'),
        (line(ROWS[0], "edit", "half \ud800"), "half a character"),
        (ReviewLine(ROWS[0]["sha256"], "Another?", "x", "edit"), "the question was changed"),
        (line(row(99)), "no row has sha256 '[0-9a-f]{64}'$"),
    ],
)
def test_a_line_that_does_not_fit_is_refused_with_its_place(wrong: ReviewLine, said: str):
    lines = [line(ROWS[1]), ReviewLine(**{**wrong.to_json(), "where": "queue.jsonl, line 7"})]
    with pytest.raises(DataError, match=f"queue.jsonl, line 7: .*{said}"):
        apply_review(ROWS, lines, undecided="keep")


def test_all_faults_are_told_at_once():
    changed = {**ROWS[5], "messages": ROWS[4]["messages"]}
    queue = [
        line(ROWS[0], answer="changed", where="q, line 1"),
        line(ROWS[1], where="q, line 2"),
        line(ROWS[1], "reject", where="q, line 3"),
        line(row(99), where="q, line 4"),
    ]
    with pytest.raises(DataError, match="4 faults of a review, of which nothing was applied") as refused:
        apply_review([*ROWS[:5], changed], queue, where="rows.jsonl")
    assert re.findall(r"^  (.*?):", str(refused.value), re.M) == [
        "q, line 3", "q, line 1", "rows.jsonl, row 6", "q, line 4",
    ]  # fmt: skip
    assert "q, line 3: is about the same row as q, line 2" in str(refused.value)


def test_a_queue_of_rows_that_were_reviewed_already_is_named_as_such():
    queue = [line(ROWS[0], where="q, line 1")]
    once = apply_review(ROWS, queue).rows
    with pytest.raises(DataError, match=r"q, line 1: no row has sha256 .*; it has been reviewed already"):
        apply_review(once, queue)
    again = apply_review(once, [line(once[0], "edit", "Other.")]).rows
    assert again[0]["provenance"]["from"] == [once[0]["sha256"]] and again[1:] == once[1:]


def test_line_ends_that_a_spreadsheet_writes_are_no_change_and_are_counted():
    there = ROWS[0]["messages"][1]["content"].replace("\n", "\r\n")
    found = apply_review(ROWS, [line(ROWS[0], answer=there)])
    assert found.rows[0]["messages"] == ROWS[0]["messages"] and found.counts["line_ends"] == 1
    found = apply_review(ROWS, [line(ROWS[0], "edit", "One.\r\nTwo.")])
    assert found.rows[0]["messages"][1]["content"] == "One.\nTwo." and found.counts["line_ends"] == 1
    own = row(1, "a\r\nb")
    with pytest.raises(DataError, match="white space alone"):
        apply_review([own], [line(own, answer="a\nb")])


# ---- as an editor leaves it ----------------------------------------------------------------------------------------

TEXTS = {
    "lines": lambda rows: "".join(json.dumps(one) + "\n" for one in rows),
    "no last line end, and blank ones": lambda rows: "\n\n".join(json.dumps(one) for one in rows),
    "indented": lambda rows: "\n".join(json.dumps(one, indent=2, sort_keys=True) for one in rows),
    "windows": lambda rows: "\ufeff" + "\r\n".join(json.dumps(one, ensure_ascii=False) for one in rows),
    "list": lambda rows: json.dumps(rows),
    "indented list": lambda rows: "\n " + json.dumps(rows, indent=1) + "\n",
}


@pytest.mark.parametrize("form", TEXTS)
def test_a_queue_is_read_however_its_lines_are_broken(form: str, tmp_path: Path):
    rows = [line(ROWS[0], note='é "[{,\u2028'), line(ROWS[1], "edit", "[1, 2],"), line(ROWS[2], "")]
    file = tmp_path / "queue.jsonl"
    file.write_bytes(TEXTS[form]([one.to_json() for one in rows]).encode("utf-8"))
    found = read_queue(file)
    assert [one.to_json() for one in found] == [one.to_json() for one in rows]
    lines = file.read_text(encoding="utf-8").split("\n")
    for one in found:
        at = re.fullmatch(rf"{re.escape(str(file))}, line (\d+)", one.where)
        assert at is not None and "{" in lines[int(at[1]) - 1]
    if "indented" not in form and form != "list":
        assert all(one.sha256 in lines[int(one.where.rsplit(" ", 1)[1]) - 1] for one in found)


def test_empty_cells_are_no_text_and_spaces_around_a_decision_are_none(tmp_path: Path):
    file = tmp_path / "queue.jsonl"
    cells = {**line(ROWS[0], " accept ", reviewer=" ann ").to_json(), "note": None}
    open_ = {**line(ROWS[1]).to_json(), "decision": None}
    del open_["reviewer"]
    file.write_text(json.dumps(cells) + json.dumps(open_))
    assert [(one.decision, one.reviewer, one.note) for one in read_queue(file)] == [
        ("accept", "ann", ""),
        ("", "", ""),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"sha256": "a"}', "line 2: field 'question' is missing"),
        ("[[1]]", "line 2: a line is an object, not list"),
        ("7", "line 2: a line is an object, not int"),
        (json.dumps({**line(ROWS[0], "acept").to_json()}), r"line 2: decision 'acept' \(did you mean 'accept'\?\)"),
        (json.dumps({**line(ROWS[0]).to_json(), "Note": "x"}), r"line 2: unknown field 'Note' \(did you mean 'note'"),
        (json.dumps({**line(ROWS[0]).to_json(), "note": 3}), "line 2: field 'note' is text, not 3"),
        ('{"a": 1,', "line 2: not JSON"),
        ('{"a":\n 1,\n x}', "line 4: not JSON"),
        ("[1 2]", "line 2: not JSON"),
        ("[] 1", "line 2: not JSON"),
        ('{"a": 1, "a": 2}', "line 2: field 'a' is given twice"),
        (b"\xff", "line 2: byte 2, 0xff, is not UTF-8"),
    ],
)
def test_a_file_that_is_no_queue_is_refused_with_the_line(text: str | bytes, said: str, tmp_path: Path):
    file = tmp_path / "queue.jsonl"
    file.write_bytes(b"\n" + (text if isinstance(text, bytes) else text.encode()))
    with pytest.raises(DataError, match=said) as refused:
        read_queue(file)
    assert str(file) in str(refused.value)


def test_values_follow_each_other_without_anything_between(tmp_path: Path):
    file = tmp_path / "values"
    for text in ("", "[]", " [ ] "):
        file.write_text(text)
        assert list(values(file, "values")) == []
    file.write_text('{"a": []}{"b": 1}\n[2]')
    assert [value for value, _ in values(file, "values")] == [{"a": []}, {"b": 1}, [2]]
    with pytest.raises(DataError, match="cannot read values from"):
        list(values(tmp_path, "values"))
