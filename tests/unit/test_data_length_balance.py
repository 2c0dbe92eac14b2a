"""Balanced lengths: planted sets whose outcome is worked by hand, and what the methods promise of any set."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1mega.data.length_balance import Balance, LengthBalance, Sized, balanced, possible

LENGTHS = st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), max_size=60)
STEPS = st.sampled_from([1.1, 1.25, 2.0, 10.0])


def pairs(*lengths: tuple[int, int]) -> list[Sized]:
    return [Sized(str(i), *both) for i, both in enumerate(lengths)]


def bin_of(length: float, step: float) -> int:
    """The k of step^k <= length < step^(k + 1), by trying."""
    k = 0
    while step ** (k + 1) <= length:
        k += 1
    return k


def test_a_set_whose_outcome_is_worked_by_hand():
    """Steps of 2: bins 1, 2-3, 4-7, 8-15, 16-31. Three pairs (8-15, 4-7) with the longer one chosen and one with the
    shorter; of equal length one; the longer chosen in (16-31, 8-15) without a counterpart."""
    planted = pairs((8, 4), (9, 7), (15, 5), (6, 12), (10, 10), (20, 8))
    kept = balanced(planted, "lengths", 2.0, seed=0)
    assert {p.key for p in kept} >= {"3", "4"} and len(kept) == 3
    assert sum(p.key in "012" for p in kept) == 1
    # By ratio 1-2 and 2-4: (9, 7) has no counterpart; of (8, 4), (15, 5), (20, 8) one stays beside (6, 12).
    kept = balanced(planted, "difference", 2.0, seed=0)
    assert {p.key for p in kept} >= {"3", "4"} and len(kept) == 3 and "1" not in {p.key for p in kept}
    assert balanced(planted, "none", 2.0, seed=0) == planted
    assert possible(planted, 2.0) == {"lengths": 3, "difference": 3, "none": 6}


def test_differences_alone_let_long_pairs_lean_to_one_side_and_lengths_do_not():
    """Long pairs in which the longer one is chosen and short ones in which the shorter one is, at one ratio."""
    planted = pairs(*[(3000, 2000)] * 20, *[(20, 30)] * 20)
    by_ratio = LengthBalance.of(balanced(planted, "difference", 1.25, 0))
    assert (by_ratio.share_longer, by_ratio.mean_chosen, by_ratio.mean_rejected) == (0.5, 1510, 1015)
    assert balanced(planted, "lengths", 1.25, 0) == []


def test_where_the_longer_one_is_always_chosen_nothing_but_equal_lengths_can_be_had():
    planted = pairs(*[(100 + i, 50) for i in range(40)], (70, 70))
    for method in ("lengths", "difference"):
        assert [p.key for p in balanced(planted, method, 1.25, 0)] == ["40"]
    assert LengthBalance.of(planted).share_longer == 1.0
    assert possible(planted, 1.25) == {"lengths": 1, "difference": 1, "none": 41}
    told = LengthBalance.of(planted).told()
    assert told.startswith(
        "41 pairs, the longer answer chosen in 100.0%, mean lengths 118 (chosen) and 50 (rejected)"
    )


def test_a_planted_bias_is_gone_and_three_in_ten_pairs_twice_are_left():
    """Lengths of one distribution, the longer one chosen in 70 of 100: 60 of 100 pairs can stay, at most."""
    rng, planted = random.Random(5), list[Sized]()
    for i in range(4000):
        shorter, longer = sorted(int(rng.lognormvariate(6, 0.5)) + 1 for _ in range(2))
        planted.append(Sized(str(i), *((longer, shorter) if rng.random() < 0.7 else (shorter, longer))))
    before, after = LengthBalance.of(planted), LengthBalance.of(balanced(planted, "lengths", 1.25, 0))
    assert before.share_longer is not None and abs(before.share_longer - 0.7) < 0.03
    assert before.mean_chosen / before.mean_rejected > 1.15
    assert after.share_longer == 0.5 and abs(after.mean_chosen / after.mean_rejected - 1) < 0.02
    assert 0.5 < after.pairs / before.pairs <= 0.62


def test_which_pairs_go_follows_from_seed_and_pair_alone():
    planted = pairs(*[(200, 100)] * 50, *[(100, 200)] * 10)
    kept = balanced(planted, "lengths", 1.25, 0)
    again = balanced(planted[::-1], "lengths", 1.25, 0)
    assert [p.key for p in kept] == sorted((p.key for p in again), key=int) and len(kept) == 20
    assert kept != balanced(planted, "lengths", 1.25, 1)


def test_no_pairs_have_no_balance():
    assert balanced([], "lengths", 1.25, 0) == [] and LengthBalance.of([]).to_json()["share_longer"] is None
    assert "no two lengths differ" in LengthBalance.of(pairs((3, 3))).told()


@settings(max_examples=150, deadline=None)
@given(LENGTHS, STEPS)
def test_every_bin_holds_as_many_chosen_as_rejected(lengths: list[tuple[int, int]], step: float):
    planted = pairs(*lengths)
    kept = balanced(planted, "lengths", step, 0)
    assert Counter(bin_of(p.chosen, step) for p in kept) == Counter(bin_of(p.rejected, step) for p in kept)
    sides = Counter((p.chosen > p.rejected) - (p.chosen < p.rejected) for p in kept)
    assert sides[1] == sides[-1] and sides[0] == sum(p.chosen == p.rejected for p in planted)
    if kept:
        assert 1 / step < LengthBalance.of(kept).mean_chosen / LengthBalance.of(kept).mean_rejected < step
    directions = Counter(
        (*sorted((bin_of(p.chosen, step), bin_of(p.rejected, step))), p.chosen > p.rejected)
        for p in kept
        if p.chosen != p.rejected
    )
    assert all(directions[(*cell, True)] == directions[(*cell, False)] for *cell, _ in directions)


@settings(max_examples=150, deadline=None)
@given(LENGTHS, STEPS)
def test_differences_leave_the_mean_ratio_near_1_and_no_fewer_pairs(lengths: list[tuple[int, int]], step: float):
    planted = pairs(*lengths)
    kept = balanced(planted, "difference", step, 0)
    ratios = [math.log(p.chosen / p.rejected) for p in kept]
    assert sum(r > 0 for r in ratios) == sum(r < 0 for r in ratios)
    if kept:
        assert abs(sum(ratios)) / len(ratios) < math.log(step) / 2 + 1e-9


@settings(max_examples=100, deadline=None)
@given(LENGTHS, STEPS, st.sampled_from(["lengths", "difference", "none"]))
def test_none_is_kept_twice_or_changed(lengths: list[tuple[int, int]], step: float, method: Balance):
    planted = pairs(*lengths)
    kept = balanced(planted, method, step, 0)
    assert [p for p in planted if p in set(kept)] == kept


@pytest.mark.parametrize("length", [1, 2, 4, 8, 1024])
def test_an_end_of_a_bin_belongs_to_the_bin_that_begins_there(length: int):
    planted = pairs((length, 4096), (4096, 2 * length - 1))  # one bin, if it ends before 2 x length
    assert len(balanced(planted, "lengths", 2.0, 0)) == 2
    if length > 1:
        planted = pairs((length - 1, 4096), (4096, length))
        assert balanced(planted, "lengths", 2.0, 0) == []
