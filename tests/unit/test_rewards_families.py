"""Any family of reasoning-gym: made, its truth right by its verifier, hostile answers kept from what evaluates."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from r1mega.data.question import Question
from r1mega.data.sources.families import EVALUATED, FAMILIES
from r1mega.data.sources.reasoning_gym import ANY, TASKS, WHOLE, MadeQuestions
from r1mega.data.split import HELD_OUT, TRAINED_ON
from r1mega.errors import ConfigError
from r1mega.rewards.accuracy import can_be_right
from r1mega.rewards.pool import TaskOutcome
from r1mega.rewards.reasoning_gym import is_readable
from r1mega.rewards.truths import doubts
from r1mega.rewards.verifiers import VERIFIERS, verifier

SEVERAL_RIGHT = {"graph_color", "propositional_logic", "rubiks_cube", "boxnet", "rush_hour"}
"""Their questions come without an answer."""
OTHERS = {"knights_knaves", "pool_matrix", "codeio", "time_intervals", "number_format"}
TRIED = sorted({*EVALUATED, *WHOLE, *SEVERAL_RIGHT, *OTHERS})


def made(family: str, num: int = 1, **settings: object) -> list[Question]:
    return [question for _, question in MadeQuestions.model_validate(
        {"family": family, "num": num, **settings}
    ).read(0)]  # fmt: skip


def test_the_families_are_the_librarys():
    from reasoning_gym.factory import DATASETS

    assert DATASETS.keys() - {"composite"} == FAMILIES and len(FAMILIES) == 105
    assert VERIFIERS.keys() >= FAMILIES and TASKS.keys() <= FAMILIES


def test_the_families_that_evaluate_answers_are_known():
    """By the library's source: what gives an answer to `eval` or to sympy's parser, which calls it."""
    from reasoning_gym.factory import DATASETS

    def evaluates(family: str) -> bool:
        lines = inspect.getsource(DATASETS[family][0].score_answer).splitlines()
        calls = ("eval(answer", "parse_expr(answer", "sympify(answer", "exec(answer")
        return any(call in line for line in lines for call in calls)

    assert {family for family in FAMILIES if evaluates(family)} == EVALUATED


def test_names_are_known_without_the_library():
    code = (
        "import sys; from r1mega.rewards.verifiers import VERIFIERS; print(len(VERIFIERS) > 105,"
        "[m for m in ('reasoning_gym', 'sympy', 'torch') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "True []"
    with pytest.raises(ConfigError, match=r"unknown verifier 'knight_knaves' \(did you mean 'knights_knaves'\?\)"):
        verifier("knight_knaves")


@pytest.mark.parametrize("family", TRIED)
def test_a_familys_truth_is_right_and_another_answer_is_not(family: str):
    (question,) = made(family)
    assert question.verifier == family and question.text not in HELD_OUT
    judge = verifier(family)
    if question.truth == ANY:
        assert family in SEVERAL_RIGHT and doubts([question]) == []
    else:
        assert can_be_right(question) and doubts([question]) == []
    assert not judge.verify("no such thing", question.truth, question.entry)
    assert not judge.verify("", question.truth, question.entry)


def test_made_questions_of_a_family_differ_and_repeat_and_keep_their_side():
    first = made("knights_knaves", 20)
    assert first == made("knights_knaves", 20) and len({q.text for q in first}) == 20
    source = MadeQuestions(family="knights_knaves", num=5, params={"n_people": 3})
    assert all(q.text not in TRAINED_ON for _, q in source.read_held_out(0))
    assert all(len(q.entry["metadata"]["names"]) == 3 for _, q in source.read(0))
    assert len({q.text for q in made("list_functions", 2300)}) == 2300  # more than one part of what is made whole


def test_lists_of_a_config_are_what_the_library_declares():
    plus = {"operators": ["+"], "operators_weights": [1.0]}
    equations = [q.entry["metadata"]["equation"] for q in made("simple_equations", 9, params=plus)]
    assert all("+" in equation and "-" not in equation for equation in equations)
    wrong = (
        ({"operators": "+"}, "operators of kind list, not '\\+'"),
        ({"min_terms": [2]}, "min_terms of kind int, not"),
    )
    for params, said in wrong:
        with pytest.raises(ConfigError, match=said):
            made("simple_equations", params=params)


HOSTILE = (
    "exec('open({path!r}, \"w\")')", "__import__('os').system('touch {path}')", "(lambda: open('{path}', 'w'))()",
    "[open][0]('{path}', 'w')", "S('open({path!r})')", "open ('{path}', 'w')", "x.__class__", "getattr(x, 'y')",
    "[c for c in ().__class__.__base__.__subclasses__()]", "\uff45\uff58\uff45\uff43('1')", "print\t(1)",
    "eval\n('1')", "{{}}['a']('b')", "'{path}'.encode()", "N('1')", "compile('1','','eval')",
)  # fmt: skip


@pytest.mark.parametrize("family", sorted(EVALUATED))
def test_code_as_an_answer_is_wrong_unread(family: str, tmp_path: Path):
    (question,) = made(family)
    for text in HOSTILE:
        answer = text.format(path=str(tmp_path / "touched"))
        assert not is_readable(family, answer), answer
        assert not verifier(family).verify(answer, question.truth, question.entry)
    assert not is_readable(family, "1" * 20_001)
    assert list(tmp_path.iterdir()) == []
    assert is_readable(family, question.truth)


def test_what_may_take_long_is_judged_in_a_worker(monkeypatch: pytest.MonkeyPatch):
    """Which has a deadline (tests/unit/test_rewards_pool.py): the answer is then wrong, or nobody knows."""
    outcomes, asked = [TaskOutcome("answer", reason="too long"), TaskOutcome("failed", reason="no worker")], []

    def judged(function: Any, *arguments: Any) -> TaskOutcome:
        asked.append(arguments[:2])
        return outcomes[len(asked) - 1]

    monkeypatch.setattr("r1mega.rewards.reasoning_gym.judged", judged)
    (question,), (number,) = made("countdown"), made("gcd")
    judge = verifier("countdown")
    assert not judge.verify(" 9**9**9**9", question.truth, question.entry)
    with pytest.raises(RuntimeError, match="no worker"):
        judge.verify(question.truth, question.truth, question.entry)
    assert asked == [("countdown", "9**9**9**9"), ("countdown", question.truth)]
    assert verifier("gcd").verify(number.truth, number.truth, number.entry) and len(asked) == 2
