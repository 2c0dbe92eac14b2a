"""What bias is measured of a judge, against biases that are planted: by hand, and over 40 seeds fixed beforehand."""

import math
import random
from typing import Any

import pytest
from rule_judge_here import InPlace, rule_judge

from r1mega.data.constraint_language import WORDS
from r1mega.evaluation.judge_bias import bias_figures, bias_lines, length_bias, position_bias
from r1mega.rewards.preference import Comparing, JudgedVote, PairVerdict, compare
from r1mega.samples import VerdictStatus

SEEDS = range(40)
NUM_PAIRS = 40


def verdict(*votes: tuple[int, float], characters: tuple[int, int] = (9, 5)) -> PairVerdict:
    gap = sum(gap for _, gap in votes) / len(votes)
    return PairVerdict(VerdictStatus.SCORED, gap, tuple(JudgedVote(*vote) for vote in votes), characters)


def test_by_hand():
    """First preferred: 2 of 2 (a tie says nothing), 1 of 4, none of 1; the longer won 2 of 3 decided pairs."""
    found = [
        verdict((0, 3.0), (1, -1.0), (0, 0.0), (1, 0.0)),
        verdict((0, 3.0), (1, 3.0), (0, -3.0), (1, 1.0)),
        verdict((1, 1.0), characters=(5, 9)),
        verdict((1, 0.0), characters=(5, 9)),
    ]
    position, length = position_bias(found), length_bias(found)
    assert position is not None and length is not None
    assert (position.pairs, position.bias) == (3, pytest.approx((1 + 1 / 4 + 0) / 3 - 1 / 2))
    assert (length.pairs, length.bias) == (3, pytest.approx(2 / 3 - 1 / 2))
    assert position.low < position.bias < position.high <= 0.5
    assert bias_figures(found)["judge_bias/length/high"] == length.high
    assert bias_lines(found)[1].startswith("the judge's bias for the longer answer: +0.167 [")


def test_nothing_is_known_of_no_decided_pair():
    assert position_bias([]) is None and length_bias([verdict((0, 0.0))]) is None
    assert length_bias([verdict((0, 1.0), characters=(5, 5))]) is None
    assert bias_figures([]) == {} and bias_lines([]) == []


# ---- planted -------------------------------------------------------------------------------------------------------


def pairs(seed: int, *, differ: bool) -> list[tuple[str, tuple[str, str]]]:
    """Prompts for n words, and two answers: n words, and one word less or more, each as often; or two right ones."""
    rng = random.Random(f"pairs {seed}")
    made = []
    for _ in range(NUM_PAIRS):
        num = rng.randint(3, 5)
        words = sorted(rng.sample(WORDS, num + 1))
        right = " ".join(words[:num])
        other = " ".join(words[: num + rng.choice((-1, 1))]) if differ else " ".join(words[1:])
        made.append((question(num), (right, other) if rng.random() < 0.5 else (other, right)))
    return made


def question(num: int) -> str:
    from r1mega.data.constraint_language import Constraints

    return Constraints(num).text


def judged(seed: int, order: str = "balanced", *, differ: bool = True, **faults: Any) -> list[PairVerdict]:
    asker = InPlace(rule_judge.RuleJudge(rule_judge.RULES["constraints"], rule_judge.Faults(**faults), seed))
    how = Comparing(order=order)  # pyright: ignore[reportArgumentType]
    asked = [compare(asker, text, answers, how, seed=seed) for text, answers in pairs(seed, differ=differ)]
    return [future.result(0) for future in asked]


@pytest.mark.parametrize("order", ["balanced", "independent"])
def test_the_measured_position_bias_covers_the_planted_one(order: str):
    """A share p of the votes goes to the first, the others to either as often: 1/2 + p/2, so that p/2 is the bias."""
    covered = 0
    for seed in SEEDS:
        planted = (seed % 4) / 5  # 0, 0.2, 0.4, 0.6
        found = position_bias(judged(seed, order, position_bias=planted))
        assert found is not None and found.pairs == NUM_PAIRS
        covered += found.low <= planted / 2 <= found.high
    assert covered >= 34


def test_the_measured_length_bias_covers_the_planted_one():
    """A share q of votes is 3 for the longer, the others 1 for the better, which is the longer in half of the pairs.

    Where it is the shorter and k of 4 votes are for the longer, the sum is 3k - (4 - k): it wins from 2 on, and 1
    decides nothing.
    """
    covered = 0
    for seed in SEEDS:
        q = (seed % 4) / 5
        chance = [math.comb(4, k) * q**k * (1 - q) ** (4 - k) for k in range(5)]
        share = (1 + sum(chance[2:])) / (2 - chance[1])
        found = length_bias(judged(seed, length_bias=q))
        assert found is not None
        covered += found.low <= share - 0.5 <= found.high
    assert covered >= 34


def test_four_votes_keep_a_consistent_judges_pairs_and_discard_a_biased_ones():
    for seed in SEEDS[::8]:
        fair, biased = judged(seed), judged(seed, position_bias=1.0)
        assert all(verdict.preferred(0.9) is not None for verdict in fair)
        assert all(verdict.preferred(1.0) is None and verdict.gap == 0.0 for verdict in biased)
