"""Truths that no answer can match are found at load, whatever their verifier."""

from pathlib import Path

from own_questions import TRAINED, write

from r1mega.data.question import Question
from r1mega.data.sources.jsonl import JSONL
from r1mega.rewards.truths import doubts


def of(verifier: str, *truths: str) -> list[Question]:
    return [Question(f"{verifier}{i}", verifier, f"{i}?", truth) for i, truth in enumerate(truths)]


def test_truths_that_their_verifier_cannot_read_are_found_in_their_order():
    sums = of("gcd", "12", "12 apples", "\\frac{1}{2}", "7")
    letters = of("choice", "B", "the second one", "(C) 5 cm")
    formulae = of("math", "\\frac{1}{2}", "(" * 50 + "1" + ")" * 50, "x^2 + 1", "\\{1, 2\\}")
    found = doubts([*sums, *letters, *formulae])
    assert [question for question, _ in found] == [sums[1], sums[2], letters[1], formulae[1]]
    assert all(doubt.never for _, doubt in found)
    assert [doubt.why for _, doubt in found][2:] == [
        "given back as the answer it is wrong", "it is unreadable: brackets nested more than 40 deep",
    ]  # fmt: skip
    assert doubts([]) == []


def test_truths_that_are_right_word_for_word_alone_are_told_from_those_that_are_read():
    read = of(
        "math", "3", "\\frac{1}{2}", "Monday", "B", "(B) 12 cm", "\\int_0^1 x dx", "x > 3", "\\{1, 2\\}", "12 cm"
    )
    texts = of("math", "\\foo{3}", "3 ++/ 4 ^^", "x \\mapsto 2x")
    found = doubts([*read, *texts])
    assert [question for question, _ in found] == texts
    assert not any(doubt.never for _, doubt in found)


def test_a_file_says_them_by_line(tmp_path: Path):
    rows = [{"question": text, "truth": truth} for text, truth in zip(TRAINED, ("1", "2 apples", 3.0), strict=False)]
    source = JSONL(path=write(tmp_path / "own.jsonl", *rows), verifier="gcd")
    read = dict(source.read(0))
    ((wrong, _),) = doubts(list(read.values()))
    assert wrong == read["line 2"]
