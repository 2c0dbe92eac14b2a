"""Worked steps of made questions, which a tiny base model learns to write in pretraining.

Steps of chain_sum and products are a calculator's tape, a running result: `4-1=3-7=-4` reads "4; take 1, have 3;
take 7, have -4". It spends one token per character and repeats no number. Every function takes the metadata that
reasoning-gym gives with a question.
"""

from collections.abc import Mapping
from typing import Any


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
