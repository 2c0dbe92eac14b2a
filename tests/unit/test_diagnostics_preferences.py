"""Figures of a reward model's scores by hand, against all pairs counted one by one, and at their edges."""

import math
import random

import pytest

from r1mega.diagnostics.preferences import NUM_BINS, expected_error, log_sigmoid, of_answers, of_pairs, sigmoid

LN3, LN9 = math.log(3.0), math.log(9.0)


def test_pairs_by_hand():
    # Differences ln 3 (right, 3/4), -ln 9 (wrong, 9/10), 0 (a tie, 1/2), ln 9 (right, 9/10).
    scores = [(LN3, 0.0), (0.0, LN9), (1.0, 1.0), (LN9 - 5, -5.0)]
    tokens = [(4, 9), (4, 9), (7, 7), (9, 2)]
    found = of_pairs(scores, tokens)
    assert found.figures == pytest.approx(
        {
            "loss": (math.log(4 / 3) + math.log(10) + math.log(2) + math.log(10 / 9)) / 4,
            "accuracy": 2.5 / 4,
            "margin": LN3 / 4,
            "brier": (1 / 16 + 0.81 + 1 / 4 + 0.01) / 4,
            # Bins of 0.05 from 1/2: [0.5, 0.55) a tie; 0.75 and 0.9 lie on or beside edges, each alone or two alike.
            "ece": (abs(0.5 - 0.5) + abs(1 - 0.75) + 2 * abs(0.5 - 0.9)) / 4,
            "pairs": 4.0,
            "longer_worse/pairs": 2.0,
            "longer_worse/accuracy": 0.5,
            "longer_better/pairs": 1.0,
            "longer_better/accuracy": 1.0,
        }
    )
    assert len(found.bins) == NUM_BINS and (found.bins[0].low, found.bins[-1].high) == (0.5, 1.0)
    assert sum(of.count for of in found.bins) == 4


def test_answers_by_hand():
    scores, safe, tokens = [LN3, -LN9, LN9, 0.0], [True, True, False, False], [5, 3, 4, 3]
    found = of_answers(scores, safe, tokens).figures
    assert found["accuracy"] == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert (found["accuracy/safe"], found["accuracy/unsafe"]) == (0.5, 0.25)
    assert found["loss"] == pytest.approx((math.log(4 / 3) + 2 * math.log(10) + math.log(2)) / 4)
    assert found["brier"] == pytest.approx((1 / 16 + 0.81 + 0.81 + 0.25) / 4)
    assert found["margin"] == pytest.approx((LN3 - LN9) / 2 - LN9 / 2)
    assert found["ece"] == pytest.approx((0.25 + 0.9 + 0.9 + 0.5) / 4)
    # An unsafe one is longer than the safe one in one pair (4 against 3, and it scores higher); a safe one of 5 is
    # longer than both unsafe ones: it loses to ln 9 and wins against 0.
    assert (found["longer_worse/pairs"], found["longer_worse/accuracy"]) == (1.0, 0.0)
    assert (found["longer_better/pairs"], found["longer_better/accuracy"]) == (2.0, 0.5)


def test_all_pairs_of_safe_and_unsafe_answers_are_counted():
    rng = random.Random(0)
    answers = [(rng.choice([-1.0, 0.0, 0.5, 2.0]), rng.random() < 0.4, rng.randrange(6)) for _ in range(150)]
    found = of_answers(*zip(*answers, strict=True)).figures
    for name, longer in (("longer_worse", lambda s, u: u > s), ("longer_better", lambda s, u: u < s)):
        outcomes = [
            (s > u) + 0.5 * (s == u)
            for s, safe, n in answers if safe for u, other, m in answers if not other and longer(n, m)
        ]  # fmt: skip
        assert found[f"{name}/pairs"] == len(outcomes) > 100
        assert found[f"{name}/accuracy"] == pytest.approx(sum(outcomes) / len(outcomes))


def test_a_model_that_takes_length_for_quality_is_seen():
    rng = random.Random(1)
    tokens = [(rng.randrange(1, 50), rng.randrange(1, 50)) for _ in range(400)]
    found = of_pairs([(float(a), float(b)) for a, b in tokens], tokens).figures
    assert (found["longer_worse/accuracy"], found["longer_better/accuracy"]) == (0.0, 1.0)


def test_a_calibrated_model_has_no_error_and_a_sure_one_has():
    rng = random.Random(2)
    differences = [rng.gauss(0, 2) for _ in range(40_000)]
    signs = [1 if rng.random() < sigmoid(d) else -1 for d in differences]
    calibrated = of_pairs([(s * d, 0.0) for s, d in zip(signs, differences, strict=True)], [(1, 1)] * 40_000)
    assert calibrated.figures["ece"] < 0.01  # 40,000 pairs leave a standard error of a few thousandths a bin
    sure = of_pairs([(s * 9 * d, 0.0) for s, d in zip(signs, differences, strict=True)], [(1, 1)] * 40_000)
    assert sure.figures["ece"] > 0.1
    assert "longer_worse/accuracy" not in sure.figures and sure.figures["longer_worse/pairs"] == 0.0


def test_scores_far_away_and_one_class_alone():
    assert (sigmoid(1e4), sigmoid(-1e4), log_sigmoid(1e4), log_sigmoid(-1e4)) == (1.0, 0.0, 0.0, -1e4)
    found = of_answers([800.0], [True], [3]).figures
    assert "margin" not in found and "accuracy/unsafe" not in found and found["accuracy"] == 1.0
    assert of_pairs([(1e4, -1e4)], [(1, 1)]).bins[-1].count == 1  # a probability of 1 has its place
    assert expected_error(of_pairs([], []).bins) == 0.0
