"""Worked steps of made questions, which a tiny base model learns to write in pretraining.

Steps of chain_sum and products are a calculator's tape, a running result: `4-1=3-7=-4` reads "4; take 1, have 3;
take 7, have -4". It spends one token per character and repeats no number. Every function takes the metadata that
reasoning-gym gives with a question.

A tape may be put into words, each step in one of several languages at random: the text of a base that mixes languages
within a thought, as R1-Zero came to (report 2.2). It may also have slips, as people's text has: a base that has
learnt to slip has the skill, and is wrong now and then when it is sampled, which is what RL sharpens.
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

StepLanguage = Literal["en", "zh"]
_STEP = re.compile(r"([-+*])(-?\d+)=(-?\d+)")
_SAID: Mapping[StepLanguage, Mapping[str, str]] = {
    "en": {"+": " plus ", "-": " minus ", "*": " times ", "=": " is "},
    "zh": {"+": "加", "-": "减", "*": "乘", "=": "得"},
}


def tape(metadata: Mapping[str, Any]) -> str:
    """`4-1=3-7=-4`: the running result, whose end is the answer."""
    first, *rest = metadata["expression"].split()
    total, steps = int(first), [first]
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        value = int(term)
        total = total + value if sign == "+" else total - value if sign == "-" else total * value
        steps.append(f"{sign}{term}={total}")
    return "".join(steps)


def euclid(metadata: Mapping[str, Any]) -> str:
    """`98%58=40,58%40=18,40%18=4,18%4=2,4%2=0`: the divisor of the last line is the answer."""
    steps, (result, *others) = [], metadata["numbers"]
    for other in others:
        high, low = max(result, other), min(result, other)
        while low:
            steps.append(f"{high}%{low}={high % low}")
            high, low = low, high % low
        result = high
    return ",".join(steps)


def count_bits(metadata: Mapping[str, Any]) -> str:
    """`18-16=2[1]-2=0[2]`: take away the largest power of two, count, until nothing is left."""
    left, count, steps = metadata["number"], 0, [str(metadata["number"])]
    while left:
        power = 1 << (left.bit_length() - 1)
        left, count = left - power, count + 1
        steps.append(f"-{power}={left}[{count}]")
    return "".join(steps)


def with_slips(steps: str, rate: float, choose: random.Random) -> tuple[str, int]:
    """A tape, and its end, with slips: a result that is 1 or 2 off, which the steps behind it go on from.

    Args:
        rate: the share of the steps that slip, 0 to 1.
    """
    first = re.match(r"-?\d+", steps)
    assert first is not None, f"{steps!r} is no tape"
    total, said = int(first[0]), [first[0]]
    for sign, term, _ in _STEP.findall(steps):
        total = total + int(term) if sign == "+" else total - int(term) if sign == "-" else total * int(term)
        if choose.random() < rate:
            total += choose.choice((-2, -1, 1, 2))
        said.append(f"{sign}{term}={total}")
    return "".join(said), total


def in_words(steps: str, languages: Sequence[StepLanguage], choose: random.Random) -> str:
    """A tape with its signs in words: `4-1=3-7=-4` in English and Chinese may read `4 minus 1 is 3减7得-4`.

    Each step is in one of `languages`, all alike likely; numbers stay as they are.
    """

    def say(step: re.Match[str]) -> str:
        words = _SAID[choose.choice(languages)]
        return f"{words[step[1]]}{step[2]}{words['=']}{step[3]}"

    return _STEP.sub(say, steps)
