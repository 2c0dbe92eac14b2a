"""Questions of one's own: what a file may hold, what is asked twice, what is held out or evaluated, what is drawn."""

import hashlib
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from own_questions import HELD, KNOWN, ROW, TRAINED, file, write
from pydantic import TypeAdapter, ValidationError

from r1mega.data.asked_questions import AskedQuestions, evaluation_questions, training_questions
from r1mega.data.sources.reasoning_gym import MadeQuestions
from r1mega.data.sources.registry import Sources, labels
from r1mega.data.sources.source import QuestionSource
from r1mega.data.split import HELD_OUT, TRAINED_ON, what_is_asked
from r1mega.errors import DataError


def of_files(*paths: Path, least: int = 1, **settings: Any) -> AskedQuestions:
    return read([file(path, **settings) for path in paths], least=least)


def read(sources: Sequence[QuestionSource], seed: int = 0, least: int = 1, **more: Any) -> AskedQuestions:
    return training_questions(sources, seed, verifiers=KNOWN, least=least, **more)


def counted(asked: AskedQuestions) -> dict[str, dict[str, int]]:
    """Counts that are not 0."""
    return {label: {what: n for what, n in counts.items() if n} for label, counts in asked.counts.items()}


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
        of_files(own)
    assert str(error.value).splitlines() == [
        f'{own}: 3 question(s) asked more than once; take them out, or set duplicates = "drop" in that table',
        f"  {own}, line 3 asks what {own}, line 1 asks",
        f"  {own}, line 4 asks what {own}, line 2 asks, with truth '7' for '2'",
        f"  {own}, line 6 asks what {own}, line 1 asks",
    ]


def test_duplicates_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    a, b = TRAINED[:2]
    own = write(tmp_path / "own.jsonl", a, b, f" {a}", {**ROW, "question": b, "truth": "7", "id": "other"})
    with caplog.at_level(logging.WARNING):
        kept = of_files(own, duplicates="drop", least=2, id="id")
    assert [q.text for q in kept.questions] == [a, b] and [q.truth for q in kept.questions] == ["2", "2"]
    assert counted(kept) == {"own": {"read": 4, "duplicates": 2}}
    assert "2 duplicates dropped, 1 of them with another truth; the first stands" in caplog.text


def test_the_same_question_of_another_verifier_is_asked_twice(tmp_path: Path):
    own = write(tmp_path / "own.jsonl", TRAINED[0], {**ROW, "task": "products", "question": TRAINED[0]})
    with pytest.raises(DataError, match=r"line 2 asks what .*line 1 asks"):
        of_files(own)


def test_an_unknown_verifier_is_named_by_its_line(tmp_path: Path):
    own = write(tmp_path / "own.jsonl", TRAINED[0], {**ROW, "task": "product", "question": HELD[0]})
    with pytest.raises(DataError) as error:
        of_files(own)
    assert str(error.value).splitlines() == [
        f"{own}: 1 question(s) of a verifier that there is not (did you mean 'products'?)", "  line 2: 'product'",
    ]  # fmt: skip


# ---- held out -----------------------------------------------------------------------------------------------


def test_the_held_out_side_is_left_out_whatever_its_spaces(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    mixed = [*TRAINED[:5], *HELD[:3], HELD[3].replace(" ", "  "), *TRAINED[5:7]]
    with caplog.at_level(logging.WARNING):
        kept = of_files(write(tmp_path / "own.jsonl", *mixed), least=7)
    assert [q.text for q in kept.questions] == TRAINED[:7]
    assert kept.where[kept.questions[-1].id] == f"{tmp_path / 'own.jsonl'}, line 11"
    assert counted(kept) == {"own": {"read": 11, "held_out": 4}}
    assert "4 questions are of the held-out side, which no stage trains on: left out" in caplog.text


def test_too_few_are_left(tmp_path: Path):
    own = write(tmp_path / "own.jsonl", *TRAINED[:3], *HELD[:5], TRAINED[0])
    with pytest.raises(DataError, match=r"3 questions of 9 \(1 duplicates, 5 held out\) to train on"):
        of_files(own, duplicates="drop", least=4)
    with pytest.raises(DataError, match=r"30 questions to train on, fewer than .*rollout.num_prompts = 31"):
        of_files(write(own, *TRAINED), least=31)
    with pytest.raises(DataError, match=r"no question of 12 \(12 held out\) is left to be asked: add some"):
        of_files(write(own, *HELD))


# ---- evaluated ----------------------------------------------------------------------------------------------


def evaluated(*sources: QuestionSource, seed: int = 0) -> AskedQuestions:
    return evaluation_questions(sources, seed, verifiers=KNOWN)


def test_a_file_is_evaluated_whole_and_made_questions_are_of_the_held_out_side(tmp_path: Path):
    bench = file(write(tmp_path / "bench.jsonl", *TRAINED[:3], *HELD[:2]))
    made = MadeQuestions(family="chain_sum", params={"max_digits": 1}, num=20)
    asked = evaluated(bench, made)
    assert [q.text for q in asked.questions[:5]] == [*TRAINED[:3], *HELD[:2]]
    assert len(asked.questions) == 25 and all(q.text in HELD_OUT for q in asked.questions[5:])
    assert {q.source for q in asked.questions} == {"bench", "chain_sum"}


def test_what_is_evaluated_is_not_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    bench = write(tmp_path / "bench.jsonl", TRAINED[4], HELD[0], " " + TRAINED[2].replace(" ", "  "))
    own = write(tmp_path / "own.jsonl", *TRAINED[:6], HELD[0])
    asked = evaluated(file(bench))
    with pytest.raises(DataError) as error:
        read([file(own)], evaluation=asked)
    assert str(error.value).splitlines() == [
        f'{own}: 2 question(s) asked in the evaluation too; take them out, or set duplicates = "drop" in that table',
        f"  {own}, line 3 asks what the evaluation asks in {bench}, line 3",
        f"  {own}, line 5 asks what the evaluation asks in {bench}, line 1",
    ]
    with caplog.at_level(logging.WARNING):
        kept = read([file(own, duplicates="drop")], evaluation=asked)
    assert [q.text for q in kept.questions] == [TRAINED[i] for i in (0, 1, 3, 5)]
    assert counted(kept) == {"own": {"read": 7, "held_out": 1, "in_evaluation": 2}}
    assert "2 question(s) dropped that the evaluation asks" in caplog.text
    # A table drops for itself alone.
    other = write(tmp_path / "other.jsonl", TRAINED[4])
    with pytest.raises(DataError, match=r"other.jsonl: 1 question"):
        read([file(other), file(own, duplicates="drop")], evaluation=asked)


# ---- so many of them ----------------------------------------------------------------------------------------


def test_num_draws_by_hash_and_seed(tmp_path: Path):
    own = write(tmp_path / "own.jsonl", *TRAINED, *HELD, TRAINED[0])
    kept = of_files(own, num=10, duplicates="drop")

    def rank(text: str, seed: int) -> str:
        return hashlib.sha256(f"{seed}/{text}".encode()).hexdigest()

    least = sorted(TRAINED, key=lambda text: rank(text, 0))[:10]
    assert [q.text for q in kept.questions] == [text for text in TRAINED if text in least]
    assert counted(kept) == {"own": {"read": 43, "duplicates": 1, "held_out": 12, "not_drawn": 20}}
    other = read([file(own, num=10, duplicates="drop")], 1)
    assert {q.text for q in other.questions} == set(sorted(TRAINED, key=lambda text: rank(text, 1))[:10])
    assert len(of_files(own, num=99, duplicates="drop").questions) == 30
    both = read(
        [file(own, num=4, duplicates="drop"), file(write(tmp_path / "two.jsonl", *TRAINED[:30]), duplicates="drop")]
    )
    assert len(both.questions) == 4  # each is asked by the first table, whether it was drawn there or not
    bench = evaluated(file(own, num=5, duplicates="drop"))
    assert len(bench.questions) == 5 and bench.counts["own"]["not_drawn"] == 37


# ---- several sources ----------------------------------------------------------------------------------------


def test_questions_of_several_sources_are_told_apart_and_named_by_their_source(tmp_path: Path):
    one = write(tmp_path / "one.jsonl", TRAINED[0], TRAINED[1], {**ROW, "question": TRAINED[2], "id": "mine"})
    two = write(tmp_path / "two.jsonl", TRAINED[3], f" {TRAINED[1]}")
    kept = read([file(one, id="id"), file(two, duplicates="drop")])
    assert [q.text for q in kept.questions] == [*TRAINED[:3], TRAINED[3]]
    assert [q.source for q in kept.questions] == ["one", "one", "one", "two"]
    assert kept.where[kept.questions[-1].id] == f"{two}, line 1"
    assert counted(kept) == {"one": {"read": 3}, "two": {"read": 2, "duplicates": 1}}
    with pytest.raises(DataError) as error:
        read([file(one), file(two)])
    assert str(error.value).splitlines()[1] == f"  {two}, line 2 asks what {one}, line 2 asks"
    write(two, {**ROW, "question": TRAINED[4], "id": "mine"})
    with pytest.raises(DataError, match=f"{two}, line 1: id 'mine' already stands in {one}, line 3"):
        read([file(one, id="id"), file(two, id="id")])


def test_made_questions_are_a_source(tmp_path: Path):
    made = MadeQuestions(family="chain_sum", params={"max_digits": 1}, num=20, domain="logic", target_language="en")
    alone = read([made], 3, least=20)
    assert counted(alone) == {"chain_sum": {"read": 20}}
    assert {(q.domain, q.target_language) for q in alone.questions} == {("logic", "en")}
    assert not any(q.text in HELD_OUT for q in alone.questions)
    assert alone.where[alone.questions[0].id] == f"reasoning-gym's chain_sum, question {alone.questions[0].id}"
    assert alone.questions != read([made], 4).questions
    own = file(write(tmp_path / "own.jsonl", *TRAINED[:3], HELD[0]))
    both = read([own, made], 3)
    assert counted(both) == {"own": {"read": 4, "held_out": 1}, "chain_sum": {"read": 20}}
    assert both.questions[3:] == alone.questions
    assert alone.doubtful == [] and both.doubtful == both.questions[:3]


# ---- settings -----------------------------------------------------------------------------------------------


def test_a_path_counts_from_the_config_and_labels_are_told_apart(tmp_path: Path):
    adapter, context = TypeAdapter(Sources), {"folder": str(tmp_path)}
    table = [{"kind": "jsonl", "path": "own.jsonl", "domain": "stem", "verifier": "choice"},
             {"kind": "reasoning_gym", "num": 3, "family": "gcd"},
             {"kind": "reasoning_gym", "num": 3, "family": "gcd", "params": {"max_value": 9}}]  # fmt: skip
    first, second, third = adapter.validate_python(table, context=context)
    assert (first.path, first.domain, second.num, second.family) == (tmp_path / "own.jsonl", "stem", 3, "gcd")
    assert labels([first, second, third, first]) == ["own", "gcd", "gcd_2", "own_2"]
    written = [s.model_dump(mode="json") for s in (first, second, third)]
    assert adapter.validate_python(written) == (first, second, third)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            [{"kind": "csv", "path": "a"}],
            "there is no source 'csv': choose of jsonl, parquet, dataset, reasoning_gym",
        ),
        ([{"kind": ["jsonl"], "path": "a"}], r"there is no source \['jsonl'\]"),
        ([{"kind": "josnl", "path": "a"}], r"there is no source 'josnl' \(did you mean 'jsonl'\?\): choose of"),
        ([{"path": "a"}], "a source has a kind: choose of jsonl, parquet"),
        ("own.jsonl", "should be tables"),
        ([{"kind": "jsonl"}], "path\n *Field required"),
        ([{"kind": "jsonl", "path": "a", "domain": "maths"}], "Input should be 'math', 'code'"),
        ([{"kind": "reasoning_gym", "num": 0, "family": "gcd"}], "greater than 0"),
        ([{"kind": "reasoning_gym", "family": "gcd"}], "num\n *Field required"),
        ([{"kind": "jsonl", "path": "a", "weight": -1}], "greater than or equal to 0"),
    ],
)
def test_what_is_no_source_is_refused(value: object, message: str):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Sources).validate_python(value)


def test_sources_reach_no_library_that_makes_questions_or_trains():
    code = (
        "import sys, r1mega.data.sources.registry, r1mega.data.asked_questions;"
        "print([m for m in ('torch', 'numpy', 'transformers', 'reasoning_gym') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
