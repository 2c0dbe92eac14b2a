"""Multiple choice: which letters an answer names."""

import pytest

from r1mega.rewards.choice import Choice, is_right, letters


@pytest.mark.parametrize(
    "answer",
    [
        "B",
        "b",
        "(B)",
        "[B]",
        "B.",
        "B)",
        "B:",
        r"\text{B}",
        r"\text{(B)}",
        r"\textbf{(B)}\ 12",
        "$B$",
        "B. Paris",
        "(B) 12 cm",
        "B Paris",
        "Option B",
        "The answer is B",
        "the correct answer is (B).",
        "**B**",
        "B: vitamin C and iron",
        r"\mathrm{B}",
    ],
)
def test_names_b(answer):
    assert is_right(answer, "B")
    assert not is_right(answer, "A")


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "A",
        "A or B",
        "B or C",
        "B and C",
        "B, C",
        "B C",
        "BC",
        "A B C D",
        "(A)(B)",
        "not B",
        "B is wrong",
        "neither",
        "Bob",
        "8",
        "\u0412",
        "\uff22",
        "B^2",
        "=B",
        "A. B",
        "(B) 3 or (C) 4",
        "x" * 100_000,
        "B" * 5_000,
        "B or C, surely",
    ],
)
def test_does_not_name_b_alone(answer):
    assert not is_right(answer, "B")


@pytest.mark.parametrize(
    "answer", ["A, C", "A and C", "AC", "C, A", "A, and C", "(A), (C)", "A;C", "A C", r"\text{A, C}"]
)
def test_several_letters_are_a_set(answer):
    assert is_right(answer, "A, C")
    assert is_right(answer, "(A) and (C)")
    for other in ("A", "C", "A, B, C", "B, C"):
        assert not is_right(answer, other)


def test_the_options_text_is_told():
    assert letters("(B) 12 cm") == (frozenset("B"), "12 cm")
    assert letters("no letter") is None
    assert not is_right("B", "twelve")


def test_a_verifier_for_prompts():
    verifier = Choice()
    assert verifier.find_answer("<think>A</think><answer>B</answer>") == "B"
    assert verifier.verify("(B) 12", "B", {})
    assert verifier.last_answer("first A, then B.") == "B"


def test_a_truth_beyond_the_options_is_no_answer():
    verifier, two = Choice(), {"options": ["4", "7"]}
    assert verifier.verify("B", "B", two) and not verifier.verify("C", "C", two)
    assert not verifier.verify("A, C", "A, C", two) and verifier.verify("A, B", "A, B", two)
