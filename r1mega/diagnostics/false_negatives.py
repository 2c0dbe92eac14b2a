"""What a verifier that takes right answers for wrong costs: the share of the gradient's signal that is lost.

Let q be the share of a question's answers that are right, and f the share of right answers that are judged wrong.
Then q' = q (1 - f) of them are judged right. The advantages of Eq. 3 are (r - q') / sqrt(q' (1 - q')) for rewards r
of 0 and 1, so that between an answer that is right and one that is wrong lie in expectation
(1 - f) / sqrt(q' (1 - q')), where a verifier without faults would have put 1 / sqrt(q (1 - q)). What is kept of that
gap, which is what the gradient pushes by, is

    kept(f, q) = (1 - f) sqrt(q (1 - q) / (q' (1 - q')))        with q' = q (1 - f)

and 1 - f where advantages are not divided by the deviation (objective.std = "none"). At f = 0.38 it is 0.77, 0.67 and
0.37 where q is 0.1, 0.5 and 0.9: the loss is worst on easy questions. A run knows q', and takes q for q' / (1 - f); a
question of which 1 - f or more are judged right may be right throughout, and has nothing left.
"""

import math
from collections.abc import Sequence


def signal_kept(judged_right: float, rate: float, *, divided: bool = True) -> float:
    """kept(f, q), in [0, 1].

    >>> round(signal_kept(0.31, 0.38), 2)  # q = 0.5
    0.67

    Args:
        judged_right: q', above 0 and below 1.
        rate: f, in [0, 1).
        divided: whether advantages are divided by the group's standard deviation.
    """
    right = judged_right / (1.0 - rate)
    if right >= 1.0:
        return 0.0
    if not divided:
        return 1.0 - rate
    return (1.0 - rate) * math.sqrt(right * (1.0 - right) / (judged_right * (1.0 - judged_right)))


def signal_lost(groups: Sequence[tuple[Sequence[bool], float]], *, divided: bool = True) -> float | None:
    """1 - kept(f, q), mean over the groups that have both right and wrong answers; None where none has.

    Args:
        groups: of each question whether each answer with a verdict is judged right, and the f of its verifier.
        divided: as in `signal_kept`.
    """
    mixed = [(sum(judged) / len(judged), rate) for judged, rate in groups if any(judged) and not all(judged)]
    if not mixed:
        return None
    return 1.0 - math.fsum(signal_kept(share, rate, divided=divided) for share, rate in mixed) / len(mixed)
