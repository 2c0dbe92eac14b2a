"""How repetitive answers are: the share of their n-grams that stood in the same answer before."""

from collections.abc import Sequence

N = 4
MAX_TOKENS = 1024
"""The end of an answer that is read; a loop, once entered, lasts to the end."""
MAX_ANSWERS = 256
"""Answers of a rollout that are read, evenly spread: with `MAX_TOKENS` a quarter of a million n-grams at most."""


def repetition(token_ids: Sequence[int]) -> float:
    """1 - different n-grams / n-grams of the last `MAX_TOKENS` tokens (seq-rep-4 of arXiv 1908.04319), in [0, 1].

    >>> repetition([5, 6, 5, 6, 5, 6, 5])  # 5656, 6565, 5656, 6565
    0.5

    0 of what is too short to have two.
    """
    tokens = list(token_ids[-MAX_TOKENS:])
    grams = list(zip(*(tokens[i:] for i in range(N)), strict=False))
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def mean_repetition(answers: Sequence[Sequence[int]]) -> float:
    """Mean of `repetition` over answers, `MAX_ANSWERS` of them where there are more; 0 of none."""
    step = -(-len(answers) // MAX_ANSWERS) or 1
    some = answers[::step]
    return sum(map(repetition, some)) / len(some) if some else 0.0
