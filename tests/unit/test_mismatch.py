"""Engine against trainer: what is a fault, and what is a tie of the router."""

import math

import pytest
import torch

from r1mega.buffers import Float32s, Int32s
from r1mega.diagnostics.mismatch import answers_past, measure
from r1mega.diagnostics.mismatch import mismatch as verdict
from r1mega.errors import MismatchError
from r1mega.samples import Sample
from r1mega.trainer.routing import selection_margin

BOUNDS = {"max_abs": 1e-4, "tie_margin": 5e-6}


def sample(*gaps: float) -> Sample:
    zeros, old = Float32s.repeated(0.0, len(gaps)), Float32s(-g for g in gaps)
    return Sample(Int32s([1, 2]), Int32s.repeated(3, len(gaps)), 0.0, behaviour_logp=zeros, old_logp=old)


def mismatch(samples, margins_of, *, max_abs, tie_margin):
    """As the stage does it on one rank."""
    past = answers_past(samples, max_abs)
    part = measure(samples, margins_of(past) if past else [], max_abs=max_abs)
    return verdict([part], max_abs=max_abs, tie_margin=tie_margin)


def never(samples):
    raise AssertionError("margins are not needed")


def test_within_the_bound_by_hand():
    metrics = mismatch([sample(1e-6, 3e-6), sample(2e-6)], never, **BOUNDS)
    assert metrics == {
        "mismatch/mean": pytest.approx(2e-6),
        "mismatch/max": pytest.approx(3e-6),
        "mismatch/max_untied": pytest.approx(3e-6),
        "mismatch/answers": 2.0,
        "mismatch/answers_after_tie": 0.0,
    }


def test_past_the_bound_without_a_tie_stops_the_run():
    message = r"up to 0.2, .* in 1 of 2 answers, .*smallest lead 0.01.* rollout.replay = \"live\""
    with pytest.raises(MismatchError, match=message):
        mismatch([sample(1e-6), sample(0.2, 0.1)], lambda s: [[0.02, 0.01, 1e-9]], **BOUNDS)


def test_after_a_tie_anything_may_differ():
    answers = [sample(1e-6)] * 3 + [sample(1e-6, 0.2)]
    metrics = mismatch(answers, lambda s: [[1.0, 1.0, 1e-7]], **BOUNDS)
    assert metrics["mismatch/max_untied"] == pytest.approx(1e-6)
    assert metrics["mismatch/max"] == pytest.approx(0.2)
    assert metrics["mismatch/answers_after_tie"] == 1.0


@pytest.mark.parametrize("gap", [math.nan, math.inf])
def test_a_log_probability_that_is_not_finite_stops_the_run(gap: float):
    with pytest.raises(MismatchError, match="not finite"):
        mismatch([sample(1e-6), sample(1e-6, gap)], never, **BOUNDS)


def test_ties_cannot_exempt_most_answers():
    with pytest.raises(MismatchError):
        mismatch([sample(0.2), sample(1e-6)], lambda s: [[1e-9, 1e-9]], **BOUNDS)


def test_a_tie_after_the_first_difference_explains_nothing():
    # Positions 0 and 1 are the prompt; completion token 1 is predicted by positions up to 2.
    with pytest.raises(MismatchError):
        mismatch([sample(1e-6, 0.2, 0.2)], lambda s: [[1.0, 1.0, 1.0, 1e-7]], **BOUNDS)


def test_one_tie_does_not_excuse_another_answer():
    with pytest.raises(MismatchError):
        mismatch([sample(0.2), sample(0.3)], lambda s: [[1.0, 1e-8], [1.0, 0.5]], **BOUNDS)


def test_margins_by_hand():
    # Two groups of four, the better group stays, two of its experts are chosen.
    scores = torch.tensor([[0.9, 0.5, 0.4, 0.1, 0.8, 0.3, 0.2, 0.1], [0.5, 0.5, 0.1, 0.0, 0.5, 0.4, 0.3, 0.0]])
    got = selection_margin(scores, num_groups=2, group_top_k=1, top_k=2)
    # Row 0: groups 1.4 against 1.1, experts 0.5 against 0.4. Row 1: groups 1.0 against 0.9, experts 0.5 against 0.1.
    assert got.tolist() == pytest.approx([0.1, 0.1])
    everything = selection_margin(scores, num_groups=1, group_top_k=1, top_k=8)
    assert everything.tolist() == [math.inf, math.inf]


def test_ranks_are_judged_together():
    """A tie on one rank and the share of all answers; an empty rank changes nothing."""
    tied, good = [sample(1e-6, 0.2)], [sample(1e-6)] * 3
    parts = [measure(tied, [[1.0, 1.0, 1e-7]], max_abs=1e-4), measure(good, [], max_abs=1e-4)]
    alone = mismatch(tied + good, lambda s: [[1.0, 1.0, 1e-7]], **BOUNDS)
    assert verdict([*parts, measure([], [], max_abs=1e-4)], **BOUNDS) == pytest.approx(alone)
    with pytest.raises(MismatchError, match="no tie"):
        verdict([measure(tied, [[1.0, 1.0, 0.01]], max_abs=1e-4), parts[1]], **BOUNDS)
