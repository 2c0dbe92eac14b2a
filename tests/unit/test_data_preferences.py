"""Rows of pairs and labelled answers in the forms that are met, and every faulty one by its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from r1mega.data.preferences import Example, labelled, pair, source
from r1mega.errors import DataError

USER = {"role": "user", "content": "2 + 2?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


WANTED = Example((USER,), ("4", "5"), None, "f, line 1")
EARLIER = (USER, said("4"), {"role": "user", "content": "And 3?"})
TWO = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
PAIRS: dict[str, tuple[dict[str, Any], Example]] = {
    "texts": ({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, WANTED),
    "a question": ({"question": "2 + 2?", "chosen": "4", "rejected": "5", "prompt": None}, WANTED),
    "turns and texts": ({"messages": [USER], "chosen": "4", "rejected": "5"}, WANTED),
    "turns and answers": ({"prompt": [USER], "chosen": [said("4")], "rejected": [said("5")]}, WANTED),
    "whole conversations": ({"chosen": [USER, said("4")], "rejected": [USER, said("5")]}, WANTED),
    "the question repeated": (
        {"prompt": "2 + 2?", "chosen": [USER, said("4")], "rejected": [USER, said("5")]},
        WANTED,
    ),
    "an empty answer is read": ({**TWO, "rejected": " "}, Example((USER,), ("4", " "), None, "f, line 1")),
    "several turns": (
        {"chosen": [*EARLIER, said("3")], "rejected": [*EARLIER, said("x")], "prompt": "And 3?"},
        Example(EARLIER, ("3", "x"), None, "f, line 1"),
    ),
    "a system turn": (
        {"system": "Be brief.", "prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        Example((SYSTEM, USER), ("4", "5"), None, "f, line 1"),
    ),
    "a gap": ({**TWO, "gap": 2}, Example((USER,), ("4", "5"), 2.0, "f, line 1")),
    "two scores": (
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "chosen_score": 8.5, "rejected_score": 7},
        Example((USER,), ("4", "5"), 1.5, "f, line 1"),
    ),
    "scores by their other names": (
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "score_chosen": 3, "score_rejected": 3, "gap": 0},
        Example((USER,), ("4", "5"), 0.0, "f, line 1"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", PAIRS)
def test_forms_of_pairs(form: str):
    row, wanted = PAIRS[form]
    assert pair(row, "f, line 1") == wanted


def test_what_a_pair_is_told_apart_by():
    assert pair({"messages": [SYSTEM, *EARLIER], "chosen": "3", "rejected": "x"}, "w").questions == [
        "2 + 2?",
        "And 3?",
    ]
    assert pair({"system": "Go.", "prompt": "a", "chosen": "3", "rejected": "x"}, "w").beginning == "Go."


FAULTS: dict[str, Any] = {
    "a row is an object, not list": [],
    "needs `chosen` and `rejected`; its fields are 'prompt', 'chosen'": {"prompt": "a", "chosen": "b"},
    "needs one of 'prompt', 'question', 'messages', which says what was asked; its fields are 'chosen', 'rejected'": {
        "chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "c",
    },
    "it has 'prompt', 'question'": {**TWO, "question": "2 + 2?"},
    "prompt must not be empty": {**TWO, "prompt": " "},
    "prompt is a text or a list of messages, not int": {**TWO, "prompt": 3},
    "are both texts or both lists of messages, not str and list": {**TWO, "rejected": [said("5")]},
    "rejected ends with the user's turn": {"chosen": [USER, said("4")], "rejected": [USER]},
    "part at message 0, before their last turns": {
        "chosen": [USER, said("4")], "rejected": [{"role": "user", "content": "3?"}, said("5")],
    },
    "part at message 1, before their last turns": {"chosen": [*EARLIER, said("4")], "rejected": [USER, said("5")]},
    "'prompt' is not what the messages begin with": {
        "prompt": "3?", "chosen": [USER, said("4")], "rejected": [USER, said("5")],
    },
    "chosen: message 1: role 'bot'; known: system, user, assistant": {
        "chosen": [USER, {"role": "bot", "content": "4"}], "rejected": [USER, said("5")],
    },
    "chosen: message 1: unknown field 'tool_calls'": {
        "chosen": [USER, {**said("4"), "tool_calls": [1]}], "rejected": [USER, said("5")],
    },
    "messages: message 0: content must not be empty": {
        "messages": [{"role": "user", "content": ""}], "chosen": "4", "rejected": "5",
    },
    "messages: ends with the assistant's turn": {"messages": [USER, said("4")], "chosen": "4", "rejected": "5"},
    "chosen: half a character, '\\ud83d', at 0": {**TWO, "chosen": "\ud83d"},
    "gap is -1: the rejected answer was found better": {**TWO, "gap": -1},
    "chosen_score - rejected_score is -2": {**TWO, "chosen_score": 1, "rejected_score": 3},
    "has 'chosen_score' and not the other answer's score": {**TWO, "chosen_score": 1},
    "they contradict each other": {**TWO, "gap": 1, "chosen_score": 3, "rejected_score": 1},
    "gap must be a number of at most 1,000,000, not nan": {**TWO, "gap": float("nan")},
    "gap must be a number of at most 1,000,000, not '2'": {**TWO, "gap": "2"},
    "gap must be a number of at most 1,000,000, not 1e+39": {**TWO, "gap": 1e39},  # no number of fp32
    "gap must be a number of at most 1,000,000, not 1000": {**TWO, "gap": 10**400},  # nor of Python's float
    "rejected_score must be a number of at most 1,000,000, not -inf": {
        **TWO, "chosen_score": 1, "rejected_score": float("-inf"),
    },
    "two different system turns": {"system": "a", "messages": [SYSTEM, USER], "chosen": "4", "rejected": "5"},
}  # fmt: skip


@pytest.mark.parametrize("message", FAULTS)
def test_a_faulty_pair_is_named(message: str):
    with pytest.raises(DataError) as raised:
        pair(FAULTS[message], "f, line 7")
    assert str(raised.value).startswith("f, line 7") and message in str(raised.value)


def test_forms_of_labelled_answers():
    wanted = Example((USER,), ("4",), 1.0, "w")
    assert labelled({"prompt": "2 + 2?", "response": "4", "safe": True}, "w") == wanted
    assert labelled({"messages": [USER], "response": "4", "safe": 1}, "w") == wanted
    assert labelled({"messages": [USER, said("4")], "safe": 1.0, "prompt": "2 + 2?"}, "w") == wanted
    assert labelled({"prompt": "2 + 2?", "response": "4", "fine": 0}, "w", "fine") == Example(
        (USER,), ("4",), 0.0, "w"
    )


@pytest.mark.parametrize(
    ("message", "row"),
    [
        ("has no 'safe': true or 1", {"prompt": "a", "response": "b"}),
        ("has None as 'safe'", {"prompt": "a", "response": "b", "safe": None}),
        ("has 0.5 as 'safe'", {"prompt": "a", "response": "b", "safe": 0.5}),
        ("has 'yes' as 'safe'", {"prompt": "a", "response": "b", "safe": "yes"}),
        (f"has '{'y' * 59}... (90,002 characters) as 'safe'", {"prompt": "a", "response": "b", "safe": "y" * 90_000}),
        (
            "needs `response`, or `messages` that end with it; its fields are 'prompt', 'safe'",
            {"prompt": "a", "safe": 1},
        ),
        ("messages end with the user's turn", {"messages": [USER], "safe": 1}),
        ("needs one of 'prompt'", {"messages": [said("4")], "safe": 1}),
    ],
)
def test_a_faulty_labelled_answer_is_named(message: str, row: dict[str, Any]):
    with pytest.raises(DataError) as raised:
        labelled(row, "f, line 7")
    assert str(raised.value).startswith("f, line 7") and message in str(raised.value)


def test_pairs_of_files_and_of_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    import datasets
    import pyarrow
    from pyarrow import parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"prompt": f"{i}?", "chosen": "a", "rejected": "b", "gap": 1.5, "votes": [1, 2]} for i in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = [{"chosen": [USER, said("4")], "rejected": [USER, said("5")], "extra": 1}]
    parquet.write_table(pyarrow.Table.from_pylist(whole), tmp_path / "b.parquet")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.jsonl").write_text(json.dumps(rows[0]) + "\n")
    caplog.set_level("INFO", "r1mega.data.row_source")
    files = [tmp_path / "a.jsonl", tmp_path / "b.parquet"]
    found = source("pairwise", "safe", files, str(tmp_path / "set"), "train")
    assert len(found) == 5
    read = list(found)
    assert [row.value for row in read] == [1.5, 1.5, 1.5, None, 1.5]
    assert read[3].where == f"{tmp_path / 'b.parquet'}, row 1" and read[4].asked[0]["content"] == "0?"
    assert f"{tmp_path / 'a.jsonl'}: fields that are passed over: 'votes'" in caplog.text
    parquet.write_table(pyarrow.Table.from_pylist([{"chosen": "a"}]), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="needs columns `chosen` and `rejected`; its columns are 'chosen'"):
        list(source("pairwise", "safe", [tmp_path / "c.parquet"], "", "train"))
    with pytest.raises(DataError, match=r"needs a column `fine` \(data.label names"):
        list(source("pointwise", "fine", [tmp_path / "c.parquet"], "", "train"))
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match=r"preference pairs are read from \*.jsonl and \*.parquet files"):
        list(source("pairwise", "safe", [tmp_path / "a.txt"], "", "train"))
