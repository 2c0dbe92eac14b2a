"""The accuracy reward of mathematics (report 2.2.2): is the final answer equal to the truth?

Equality is mathematical: unsimplified but equal forms are right, decimal approximations of exact values are wrong.
What an answer causes (too long, unreadable, too large to compute) makes it wrong, with a reason. The functions here
take untrusted text; run them in `pool`, whose deadline holds for what no limit foresaw.
"""

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

from r1mega.rewards import choice
from r1mega.rewards.mathematics import foreign
from r1mega.rewards.mathematics.answer import find_answer
from r1mega.rewards.mathematics.compare import agree
from r1mega.rewards.mathematics.guards import Unreadable, check
from r1mega.rewards.mathematics.reading import Reading, read
from r1mega.rewards.mathematics.special import Fixed

PLAIN = re.compile(r"[-+]?(?:[0-9]{1,300}(?:\.[0-9]{1,300})?)(?:/[0-9]{1,300})?")
"""Numbers that are compared at once: integers, decimals, plain fractions."""
_OPTION = re.compile(r"\s*(?:\\text(?:bf|rm)?|\\mathrm|\\mathbf)?\s*\{?\s*\(?([A-J])\)?[.:)]?\s*\}?\s*")
_OPTION_AND_TEXT = re.compile(
    r"\s*(?:\\text(?:bf|rm)?|\\mathrm|\\mathbf)?\s*\{?\s*(?:\([A-J]\)|[A-J][.:)](?=[\s}]))\s*\}?(.+)"
)
"""`(B) 12`, `B. Paris`: a letter, and what its option says."""


@dataclass(frozen=True)
class Judgement:
    """Whether an answer is right; if not, why, where that is more than that it is another value."""

    right: bool
    reason: str = ""


def judge_response(response: str, truth: str) -> Judgement:
    """Judge the final answer of a whole response.

    >>> judge_response(r"<think>...</think> The sum is \\boxed{\\frac{7}{2}}.", r"3\\frac12").right
    True
    """
    answer = find_answer(response)
    return Judgement(False, "no answer") if answer is None else judge(answer, truth)


def judge(answer: str, truth: str) -> Judgement:
    """Judge an answer that stands alone. Raises Unreadable where the truth itself is beyond the limits."""
    answer, truth = answer.strip(), truth.strip()
    if answer.strip("$ ") == truth.strip("$ ") and answer:
        return Judgement(True)
    if PLAIN.fullmatch(answer) and PLAIN.fullmatch(truth):
        return _judge_plain(answer, truth)
    try:
        check(answer)
        return _judge_read(answer, truth)
    except Unreadable as error:
        truth_readings(truth)  # a truth that cannot be read is not the answer's fault
        return Judgement(False, f"unreadable: {error}")
    except MemoryError:
        raise
    except Exception as error:  # whatever an answer makes libraries do is the answer's doing
        truth_readings(truth)
        return Judgement(False, f"unreadable: {type(error).__name__}")


def same(a: str, b: str) -> bool:
    """Whether two answers mean the same: each would be right were the other the truth.

    One that is beyond the limits of a truth is the same as its own text alone.
    """
    try:
        return judge(a, b).right and judge(b, a).right
    except Unreadable:
        return a.strip() == b.strip()


def can_be_right(truth: str) -> str | None:
    """Why no answer can be right for this truth; None where one can."""
    if not truth.strip():
        return "there is no truth"
    try:
        truth_readings(truth.strip())
        if not judge(truth + " ", truth).right:
            return "it is not equal to itself"
    except Unreadable as error:
        return f"it is unreadable: {error}"
    return None


def is_text(truth: str) -> bool:
    """Whether a truth that can be right is no mathematics that is read, nor words or a letter: an answer is right
    only where it says the very same. Raises Unreadable past the limits."""
    truth = truth.strip()
    if PLAIN.fullmatch(truth) or _OPTION.fullmatch(truth) or _OPTION_AND_TEXT.fullmatch(truth):
        return False
    return _is_text(list(truth_readings(truth))) and not foreign.helps(truth)


@functools.lru_cache(maxsize=4096)
def truth_readings(truth: str) -> tuple[Reading, ...]:
    """The readings of a truth, kept: a group of answers has one. Raises Unreadable past the limits."""
    check(truth)
    return tuple(read(truth, is_truth=True))


def _judge_plain(answer: str, truth: str) -> Judgement:
    try:
        return Judgement(Fraction(answer) == Fraction(truth))
    except ZeroDivisionError:
        return Judgement(False, "a division by zero")
    except ValueError:  # 1.5/2
        return _judge_read(answer, truth)


def _judge_read(answer: str, truth: str) -> Judgement:
    option = _judge_option(answer, truth)
    if option is not None:
        return option
    wanted = truth_readings(truth)
    found = read(answer, is_truth=False)
    reason = ""
    for one in wanted:
        for other in found:
            try:
                if agree(one, other):
                    return Judgement(True)
            except Unreadable as error:
                reason = reason or f"unreadable: {error}"
    if foreign.helps(truth) or foreign.helps(answer):
        return Judgement(foreign.same(truth, answer))
    return Judgement(False, reason or ("no mathematics that can be read" if _is_text(found) else ""))


def _is_text(readings: list[Reading]) -> bool:
    return all(isinstance(reading, Fixed) and reading.kind == "text" for reading in readings)


def _judge_option(answer: str, truth: str) -> Judgement | None:
    """The decision where the truth is a letter of a multiple choice and the answer names one."""
    wanted = _OPTION.fullmatch(truth)
    if wanted is not None:
        named = choice.letters(answer)
        return None if named is None else Judgement(named[0] == {wanted[1]} and wanted[1] in answer)
    wanted = _OPTION_AND_TEXT.fullmatch(truth)
    if wanted is None:
        return None
    named, text = choice.letters(answer), choice.letters(truth)
    if text is None:
        return None
    if named is None:
        return _judge_read(answer, text[1])
    if named[0] != text[0]:
        return Judgement(False)
    return Judgement(not named[1] or _judge_read(named[1], text[1]).right)
