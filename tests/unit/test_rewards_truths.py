"""Truths that no answer can match are found at load, whatever their verifier."""

from pathlib import Path

from own_questions import TRAINED, write

from r1mega.data.question import Question
from r1mega.data.sources.jsonl import JSONL
from r1mega.rewards.truths import hopeless


def of(verifier: str, *truths: str) -> list[Question]:
    return [Question(f"{verifier}{i}", verifier, f"{i}?", truth) for i, truth in enumerate(truths)]


def test_truths_that_their_verifier_cannot_read_are_found_in_their_order():
    sums = of("gcd", "12", "12 apples", "\\frac{1}{2}", "7")
    letters = of("choice", "B", "the second one", "(C) 5 cm")
    formulae = of("math", "\\frac{1}{2}", "(" * 50 + "1" + ")" * 50, "x^2 + 1", "\\{1, 2\\}")
    found = hopeless([*sums, *letters, *formulae])
    assert [question for question, _ in found] == [sums[1], sums[2], letters[1], formulae[1]]
    assert [why for _, why in found][2:] == [
        "given back as the answer it is wrong", "it is unreadable: brackets nested more than 40 deep",
    ]  # fmt: skip
    assert hopeless([]) == []


def test_a_file_says_them_by_line(tmp_path: Path):
    rows = [{"question": text, "truth": truth} for text, truth in zip(TRAINED, ("1", "2 apples", 3.0), strict=False)]
    source = JSONL(path=write(tmp_path / "own.jsonl", *rows), verifier="gcd")
    read = dict(source.read(0))
    ((wrong, _),) = hopeless(list(read.values()))
    assert wrong == read["line 2"]
