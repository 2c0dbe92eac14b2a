"""Right and wrong by a question's verifier: what is read as an answer, and what the library says of it."""

import pytest
from test_data_reasoning_gym import SMALL

from r1mega.data.sources.reasoning_gym import TASKS, Task, questions
from r1mega.rewards.verifiers import VERIFIERS


@pytest.mark.parametrize("task", TASKS)
def test_the_library_accepts_its_own_answer_and_no_neighbour(task):
    for question in questions([Task(name=task, params=SMALL[task])], 30, 0):
        verify = VERIFIERS[task].verify
        assert verify(f" {question.truth}\n", question.truth, question.entry)
        assert not verify(str(int(question.truth) + 1), question.truth, question.entry)


@pytest.mark.parametrize(
    "answer", ["٣", "３", "0_3", "3e0", "", "3 apples", "= 3", "3\u200b", "--3", "NaN", "0" * 300 + "3", "9" * 10**6]
)
def test_an_answer_must_be_written_in_plain_digits(answer):
    assert not VERIFIERS["chain_sum"].verify(answer, "3", {})


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("4-1=3-7=-4+7=3", "3"),
        ("4-1=3-7=-4", "-4"),
        ("4-1=3-7", "7"),
        ("So it is -12.", "-12"),
        ("<answer>1,000.50</answer>", "1,000.50"),
        ("no number, not even ٣", ""),
        ("it is \u22125", "-5"),
        ("x = \u20135", "-5"),
        ("=\u20115.", "-5"),
        ("\uff0d5", "-5"),
        ("pages 3\u20135", "5"),
        ("7\u22125=2", "2"),
        ("so \u2014 5", "5"),
    ],
)
def test_last_answer(text, last):
    assert VERIFIERS["chain_sum"].last_answer(text) == last


def test_a_minus_sign_that_is_no_hyphen_is_a_minus():
    verify = VERIFIERS["chain_sum"].verify
    for minus in "-\u2212\u2013\u2010\u2011\u2012\ufe63\uff0d":
        assert not verify(f"{minus}5", "5", {}) and verify(f"{minus}5", "-5", {}) and verify("-5", f"{minus}5", {})
    assert not verify("\u2212\u22125", "5", {}) and not verify("\u2212", "0", {}) and not verify("5\u2212", "5", {})
