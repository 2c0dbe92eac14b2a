"""pass@k: the chance that one of k answers to a question, at least, is right (Chen et al. 2021, arXiv 2107.03374).

With n scored answers of which c are right, 1 - C(n - c, k) / C(n, k) is unbiased for every k <= n: it is the share of
all sets of k among the n that hold a right one. k = 1 gives c / n, whose mean over questions is pass@1.
"""

import math

from r1mega.errors import DataError


def pass_at_k(num_answers: int, num_right: int, k: int) -> float:
    """The unbiased estimate for one question, in whole numbers up to the one division.

    Args:
        num_answers: scored ones; what was not scored is no answer.
        num_right: of them.

    Raises:
        DataError: k is not within 1 .. num_answers.
    """
    if not 0 <= num_right <= num_answers:
        raise ValueError(f"{num_right} right of {num_answers}")
    if not 1 <= k <= num_answers:
        raise DataError(f"pass@{k} of {num_answers} scored answers: k is at least 1, and at most their number")
    total = math.comb(num_answers, k)
    return (total - math.comb(num_answers - num_right, k)) / total
