"""Rows as turns: what says that a turn is not learnt is heard, what is not known is refused, falsy or not."""

import json
from pathlib import Path
from typing import Any

import pytest

from r1mega.data.conversations import Source
from r1mega.data.turns import MARKS, conversation
from r1mega.errors import DataError

ASKED = {"role": "user", "content": "2 + 2?"}
ANSWERED = {"role": "assistant", "content": "4"}


def turns(**of_first_answer: Any) -> dict[str, Any]:
    first = {"role": "assistant", "content": "5", **of_first_answer}
    return {"messages": [ASKED, first, {"role": "user", "content": "Look again."}, ANSWERED]}


@pytest.mark.parametrize("name", MARKS)
def test_a_turn_that_is_marked_as_not_to_be_learnt_is_not(name: str):
    for value in (0, 0.0, False):
        found = conversation(turns(**{name: value}), "a row")
        assert found.not_learnt == {1}
        assert [set(m) for m in found.messages] == [{"role", "content"}] * 4
    for value in (1, 1.0, True, None):
        assert conversation(turns(**{name: value}), "a row").not_learnt == frozenset()


@pytest.mark.parametrize("value", [0.5, 2, -1, "", "0", "false", [], {}, float("nan")])
def test_a_mark_that_is_neither_yes_nor_no_is_refused(value: Any):
    with pytest.raises(DataError, match=r"a row: message 1: field 'weight' is .*: turns are learnt or not"):
        conversation(turns(weight=value), "a row")


@pytest.mark.parametrize("value", [0, False, "", [], {}, 0.0, "x", [1]])
def test_a_field_of_a_turn_that_is_not_known_is_refused_whatever_its_value(value: Any):
    for name in ("mask", "name", "reasoning_content", "train_detail"):
        with pytest.raises(DataError, match=rf"a row: message 1: unknown field '{name}': only role and content"):
            conversation(turns(**{name: value}), "a row")
    if value == []:  # no tool was called
        assert conversation(turns(tool_calls=value), "a row").not_learnt == frozenset()
    else:
        with pytest.raises(DataError, match="unknown field 'tool_calls'"):
            conversation(turns(tool_calls=value), "a row")


def test_marks_that_contradict_each_other_or_nothing_is_left_by_are_refused():
    with pytest.raises(DataError, match="message 1: 'train' and 'weight' contradict each other"):
        conversation(turns(weight=0, train=True), "a row")
    with pytest.raises(DataError, match="message 0: 'loss' asks for the user's turn to be learnt"):
        conversation({"messages": [{**ASKED, "loss": True}, ANSWERED]}, "a row")
    assert conversation({"messages": [{**ASKED, "loss": False}, ANSWERED]}, "a row").not_learnt == frozenset()
    with pytest.raises(DataError, match="a row: no turn of it is to be learnt: leave the row out"):
        conversation({"messages": [ASKED, {**ANSWERED, "weight": 0}]}, "a row")
    row = {"prompt": "2 + 2?", "response": "4"}
    with pytest.raises(DataError, match="a row: field 'weight' says that nothing of it is to be learnt"):
        conversation({**row, "weight": 0}, "a row")
    with pytest.raises(DataError, match="a row: field 'train' is 'yes': turns are learnt or not"):
        conversation({**row, "train": "yes"}, "a row")
    assert conversation({**row, "weight": 1.0}, "a row").messages == (ASKED, ANSWERED)


def test_a_system_column_is_the_system_turn():
    system = {"role": "system", "content": "Answer in Roman numerals."}
    text = system["content"]
    for row in (
        {"system": text, "prompt": "2 + 2?", "response": "4"},
        {"system": text, "messages": [ASKED, ANSWERED]},
        {"system": text, "messages": [system, ASKED, ANSWERED]},  # said twice, once meant
    ):
        assert conversation(row, "a row").messages == (system, ASKED, ANSWERED)
    marked = conversation({"system": text, **turns(weight=0)}, "a row")
    assert (marked.messages[0], marked.not_learnt) == (system, {2})
    with pytest.raises(DataError, match="field 'system' and message 0 are two different system turns"):
        conversation({"system": text, "messages": [{**system, "content": "Be brief."}, ASKED, ANSWERED]}, "a row")
    for value in ("", " ", 0, False, ["x"]):
        with pytest.raises(DataError, match="field 'system' must be text and not empty, or null"):
            conversation({"system": value, "prompt": "a", "response": "b"}, "a row")
    with pytest.raises(DataError, match="field 'system': half a character"):
        conversation({"system": "\ud83d", "prompt": "a", "response": "b"}, "a row")


@pytest.mark.parametrize("form", [{"messages": [ASKED, ANSWERED]}, {"prompt": "2 + 2?", "response": "4"}])
def test_what_the_model_is_told_beside_the_turns_is_not_dropped(form: dict[str, Any]):
    for name in ("tools", "functions", "documents", "history", "system_prompt", "chat_template_kwargs"):
        for value in ([{"name": "add"}], "x", {}, ""):
            with pytest.raises(DataError, match=rf"a row: field '{name}' tells the model something"):
                conversation({**form, name: value}, "a row")
    for nothing in ({"tools": None}, {"tools": []}, {"source": 0, "id": ""}):
        assert conversation({**form, **nothing}, "a row").messages == (ASKED, ANSWERED)


def test_context_beside_a_prompt_is_not_dropped_and_one_beside_messages_is_theirs():
    for name in ("instruction", "input", "context"):
        with pytest.raises(DataError, match=rf"field '{name}' tells the model something"):
            conversation({"prompt": "a", "response": "b", name: "c"}, "a row")
        assert conversation({"messages": [ASKED, ANSWERED], name: "2 + 2?"}, "a row").messages == (ASKED, ANSWERED)


def test_a_prompt_beside_messages_must_be_one_of_them():
    row = {"messages": [ASKED, ANSWERED], "prompt": "2 + 2?", "response": "4"}
    assert conversation(row, "a row").messages == (ASKED, ANSWERED)
    for other in ("3 + 3?", "", ["2 + 2?"]):
        with pytest.raises(DataError, match="a row: `messages` has no turn that is its field 'prompt'"):
            conversation({**row, "prompt": other}, "a row")


def test_columns_of_tables_are_heard_as_fields_are(tmp_path: Path):
    """Tables write null wherever one of their rows has a field."""
    import pyarrow
    from pyarrow import parquet

    file = tmp_path / "a.parquet"
    marked = [{**turn, "weight": 0.0 if turn["content"] == "5" else None} for turn in turns()["messages"]]
    for value, kind in ((1, pyarrow.float64()), (0.0, pyarrow.float64()), (False, pyarrow.bool_())):
        rows = [{**m, "weight": value if m["weight"] == 0.0 else None} for m in marked]
        message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string()), ("weight", kind)])
        columns = {
            "messages": pyarrow.array([rows], pyarrow.list_(message)),
            "system": ["Be brief."],
            "tools": pyarrow.array([None], pyarrow.string()),
        }
        parquet.write_table(pyarrow.table(columns), file)
        (found,) = Source([file], "", "")
        assert found.messages[0] == {"role": "system", "content": "Be brief."}
        assert found.not_learnt == (frozenset() if value == 1 else {2})
    rows = [{"prompt": "2 + 2?", "response": "4", "tools": json.dumps([])}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    with pytest.raises(DataError, match=r"a.parquet, row 1: field 'tools' tells the model something"):
        list(Source([file], "", ""))
