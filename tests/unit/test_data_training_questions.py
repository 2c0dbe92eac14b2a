"""Training questions of one's own: what a file may hold, what is asked twice, what is held out."""

import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from r1mega.data import training_questions as module
from r1mega.data.sources.jsonl import JSONL
from r1mega.data.sources.reasoning_gym import MadeQuestions, Task
from r1mega.data.sources.registry import Sources
from r1mega.data.split import HELD_OUT, TRAINED_ON, what_is_asked
from r1mega.errors import DataError


def read_jsonl(path: Path):
    return JSONL(path=path).read(0)


def training_questions(*paths: Path, duplicates: str, least: int = 1) -> module.TrainingQuestions:
    return read([JSONL(path=p) for p in paths], duplicates=duplicates, least=least)


def read(sources, seed: int = 0, duplicates: Any = "error", least: int = 1) -> module.TrainingQuestions:
    known = ["chain_sum", "products"]
    return module.training_questions(sources, seed, verifiers=known, duplicates=duplicates, least=least)


ROW = {"task": "chain_sum", "question": "1 + 1 =", "truth": "2"}


def on_side(held_out: bool, num: int) -> list[str]:
    """Questions of one side, told by the definition: SHA-256's first 8 bytes, one in eight."""
    found, i = [], 0
    while len(found) < num:
        text = f"{i} + 1 ="
        if (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 8 == 0) == held_out:
            found.append(text)
        i += 1
    return found


TRAINED, HELD = on_side(False, 30), on_side(True, 12)


def write(path: Path, *questions: str | dict[str, Any]) -> Path:
    rows = [q if isinstance(q, dict) else {**ROW, "question": q} for q in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_file_is_read(tmp_path: Path):
    path = tmp_path / "own.jsonl"
    rows = [ROW, {**ROW, "question": "2 + 0 =", "id": "mine", "entry": {"answer": "2"}}]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, rows)).encode() + b"\r\n\r\n")
    (one, first), (two, second) = read_jsonl(path)
    assert (one, first.text, first.truth, first.verifier, len(first.id)) == (
        "line 1",
        "1 + 1 =",
        "2",
        "chain_sum",
        16,
    )
    assert (two, second.id, second.entry) == ("line 2", "mine", {"answer": "2"})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no questions"),
        (["", " "], "holds no questions"),
        ([json.dumps(ROW), "{"], "line 2: not JSON"),
        (["[" * 100_000], "line 1: not JSON"),
        (["[1]"], "line 1: a row is a JSON object, not list"),
        ([json.dumps(ROW)[:-1] + ', "question": "3"}'], "line 1: field 'question' is given twice in one object"),
        ([json.dumps({**ROW, "truth": 2})], "line 1: field 'truth' must be text"),
        ([json.dumps({**ROW, "question": " "})], "line 1: field 'question' must be text and not empty"),
        ([json.dumps({"task": "chain_sum", "question": "1"})], "line 1: field 'truth'"),
        ([json.dumps({**ROW, "id": 7})], "line 1: field 'id'"),
        ([json.dumps({**ROW, "entry": [1]})], "line 1: field 'entry'"),
        ([json.dumps({**ROW, "answer": "2"})], "line 1: unknown field 'answer'"),
        (["", json.dumps({**ROW, "question": "1 + \ud83d ="})], r"line 2: field 'question': half a character"),
        ([json.dumps({**ROW, "truth": "\udc00"})], r"line 1: field 'truth': half a character"),
        ([json.dumps({**ROW, "id": "\udc00"})], r"line 1: field 'id': half a character"),
        ([json.dumps({**ROW, "id": "a"}), "", json.dumps({**ROW, "question": "3", "id": "a"})],
         "line 3: id 'a' already stands in line 1"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_by_line_and_field(tmp_path: Path, lines: list[str], message: str):
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=f"own.jsonl.*{message}"):
        read_jsonl(path)


def test_all_bad_rows_are_named_at_once(tmp_path: Path):
    path = tmp_path / "own.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b'\n{\n{"task": "\xff"}\n' + b"[]\n" * 200)
    with pytest.raises(DataError) as error:
        read_jsonl(path)
    said = str(error.value).splitlines()
    assert "own.jsonl: 202 rows are wrong" in said[0] and said[1].startswith("  line 2: not JSON")
    assert said[2] == "  line 3: byte 11 is not UTF-8"
    assert said[-1] == "  and 102 more" and len(said) == 102


def test_a_file_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(DataError, match=r"cannot read questions from .*absent.jsonl: No such file"):
        read_jsonl(tmp_path / "absent.jsonl")


# ---- asked twice --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2 + 2 =", " 2  +\t2 =\n", True),
        ("caf\u00e9", "cafe\u0301", True),  # one Unicode text, two forms
        ("2 + 2", "2 +\u00a02", True),  # no-break space
        ("2 + 2", "\ufeff2 +\u200b 2", True),
        ("2 + 2", "2 + 3", False),
        ("x\u00b2", "x2", False),  # x squared is not x2
        ("Is A", "Is a", False),
        ("2 - 2", "2 \u2212 2", False),  # seen, and told apart
    ],
)
def test_what_is_asked(one: str, other: str, same: bool):
    assert (what_is_asked(one) == what_is_asked(other)) is same
    if same:
        assert (one in HELD_OUT) == (other in HELD_OUT) != (other in TRAINED_ON)


def test_the_texts_of_tasks_keep_their_side():
    for text in TRAINED + HELD:
        assert what_is_asked(text) == text and (text in HELD_OUT) == (text in HELD)


def test_all_duplicates_are_named_with_both_lines(tmp_path: Path):
    a, b, c = TRAINED[:3]
    own = write(tmp_path / "own.jsonl", a, b, f" {a}", {**ROW, "question": b, "truth": "7", "id": "other"}, c, a)
    with pytest.raises(DataError) as error:
        training_questions(own, duplicates="error")
    assert str(error.value).splitlines() == [
        f'{own}: 3 question(s) asked more than once; take them out, or set duplicates = "drop"',
        "  line 3 asks what line 1 asks",
        "  line 4 asks what line 2 asks, with truth '7' for '2'",
        "  line 6 asks what line 1 asks",
    ]


def test_duplicates_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    a, b = TRAINED[:2]
    own = write(tmp_path / "own.jsonl", a, b, f" {a}", {**ROW, "question": b, "truth": "7", "id": "other"})
    with caplog.at_level(logging.WARNING):
        kept = training_questions(own, duplicates="drop", least=2)
    assert [q.text for q in kept.questions] == [a, b] and [q.truth for q in kept.questions] == ["2", "2"]
    assert kept.counts == {"read": 4, "duplicates": 2, "held_out": 0}
    assert "2 duplicates dropped, 1 of them with another truth; the first stands" in caplog.text


def test_the_same_question_of_another_task_is_asked_twice(tmp_path: Path):
    own = write(tmp_path / "own.jsonl", TRAINED[0], {**ROW, "task": "products", "question": TRAINED[0]})
    with pytest.raises(DataError, match="line 2 asks what line 1 asks"):
        training_questions(own, duplicates="error")


def test_an_unknown_verifier_is_named_by_its_line(tmp_path: Path):
    own = write(tmp_path / "own.jsonl", TRAINED[0], {**ROW, "task": "chess", "question": HELD[0]})
    with pytest.raises(DataError) as error:
        training_questions(own, duplicates="error")
    assert str(error.value).splitlines() == [
        f"{own}: 1 question(s) of a task that is unknown; known: chain_sum, products", "  line 2: 'chess'",
    ]  # fmt: skip


# ---- held out -----------------------------------------------------------------------------------------------


def test_the_held_out_side_is_left_out_whatever_its_spaces(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    mixed = [*TRAINED[:5], *HELD[:3], HELD[3].replace(" ", "  "), *TRAINED[5:7]]
    with caplog.at_level(logging.WARNING):
        kept = training_questions(write(tmp_path / "own.jsonl", *mixed), duplicates="error", least=7)
    assert [q.text for q in kept.questions] == TRAINED[:7]
    assert kept.where[kept.questions[-1].id] == f"{tmp_path / 'own.jsonl'}, line 11"
    assert kept.counts == {"read": 11, "duplicates": 0, "held_out": 4}
    assert "4 questions are of the held-out side, which no stage trains on: left out" in caplog.text


def test_too_few_are_left(tmp_path: Path):
    own = write(tmp_path / "own.jsonl", *TRAINED[:3], *HELD[:5], TRAINED[0])
    with pytest.raises(DataError, match=r"own.jsonl: 3 questions of 9 \(1 duplicates, 5 held out\) to train on"):
        training_questions(own, duplicates="drop", least=4)
    with pytest.raises(DataError, match=r"30 questions to train on, fewer than .*rollout.num_prompts = 31"):
        training_questions(write(own, *TRAINED), duplicates="error", least=31)
    with pytest.raises(DataError, match=r"0 questions of 12 \(12 held out\)"):
        training_questions(write(own, *HELD), duplicates="error")


# ---- several sources ----------------------------------------------------------------------------------------


def test_questions_of_several_sources_are_told_apart_and_named_by_their_source(tmp_path: Path):
    one = write(tmp_path / "one.jsonl", TRAINED[0], TRAINED[1], {**ROW, "question": TRAINED[2], "id": "mine"})
    two = write(tmp_path / "two.jsonl", TRAINED[3], f" {TRAINED[1]}")
    kept = training_questions(one, two, duplicates="drop")
    assert [q.text for q in kept.questions] == [*TRAINED[:3], TRAINED[3]]
    assert kept.where[kept.questions[-1].id] == f"{two}, line 1" and kept.counts["duplicates"] == 1
    with pytest.raises(DataError) as error:
        training_questions(one, two, duplicates="error")
    assert str(error.value).splitlines()[1] == f"  {two}, line 2 asks what {one}, line 2 asks"
    write(two, {**ROW, "question": TRAINED[4], "id": "mine"})
    with pytest.raises(DataError, match=f"{two}, line 1: id 'mine' already stands in {one}, line 3"):
        training_questions(one, two, duplicates="drop")


def test_made_questions_are_a_source_and_counted_alone(tmp_path: Path):
    made = MadeQuestions(tasks=(Task(name="chain_sum", params={"max_digits": 1}),), num=20, domain="logic")
    alone = read([made], 3, least=20)
    assert alone.counts == {"read": 20} and {q.domain for q in alone.questions} == {"logic"}
    assert not any(q.text in HELD_OUT for q in alone.questions)
    assert alone.where[alone.questions[0].id] == f"question {alone.questions[0].id}"
    assert alone.questions != read([made], 4).questions
    own = JSONL(path=write(tmp_path / "own.jsonl", *TRAINED[:3], HELD[0]))
    both = read([own, made], 3)
    assert both.counts == {"read": 24, "duplicates": 0, "held_out": 1}
    assert both.questions[3:] == alone.questions


# ---- settings -----------------------------------------------------------------------------------------------


def test_a_text_alone_is_a_file_of_questions_and_its_path_counts_from_the_config(tmp_path: Path):
    adapter, context = TypeAdapter(Sources), {"folder": str(tmp_path)}
    (own,) = adapter.validate_python("own.jsonl", context=context)
    assert own == JSONL(path=tmp_path / "own.jsonl")
    table = [{"kind": "jsonl", "path": "own.jsonl", "domain": "stem"},
             {"kind": "reasoning_gym", "num": 3, "tasks": [{"name": "gcd"}]}]  # fmt: skip
    first, second = adapter.validate_python(table, context=context)
    assert (first.domain, second.num, second.tasks[0].name) == ("stem", 3, "gcd")
    assert adapter.validate_python([s.model_dump(mode="json") for s in (first, second)]) == (first, second)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"kind": "parquet", "path": "a"}], "there is no source 'parquet': choose of jsonl, reasoning_gym"),
        ([{"kind": "josnl", "path": "a"}], r"there is no source 'josnl' \(did you mean 'jsonl'\?\): choose of"),
        ([{"path": "a"}], "a source has a kind: choose of jsonl, reasoning_gym"),
        ([{"kind": "jsonl"}], "path\n *Field required"),
        ([{"kind": "jsonl", "path": "a", "domain": "maths"}], "Input should be 'math', 'code'"),
        ([{"kind": "reasoning_gym", "num": 0, "tasks": [{"name": "gcd"}]}], "greater than 0"),
    ],
)
def test_what_is_no_source_is_refused(value: object, message: str):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Sources).validate_python(value)


def test_sources_reach_no_library_that_makes_questions_or_trains():
    code = (
        "import sys, r1mega.data.sources.registry, r1mega.data.training_questions;"
        "print([m for m in ('torch', 'numpy', 'transformers', 'reasoning_gym') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
