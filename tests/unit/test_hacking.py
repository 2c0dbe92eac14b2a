"""Reward hacking: what is warned of, when, how often falsely, and how rarely not; what settings are refused."""

import json
import random
from collections.abc import Sequence

import pytest
from hacked_runs import FILLER, ar1, rollout

from r1mega.diagnostics.hacking import HackingWatch, Warned, Watched, summarise
from r1mega.diagnostics.repetition import MAX_ANSWERS, MAX_TOKENS, mean_repetition, repetition
from r1mega.diagnostics.rollout import rollout_metrics
from r1mega.diagnostics.settings import Hacking

UP = [i / 4 for i in range(16)]
DOWN, FLAT = [-x for x in UP], [0.0] * 16
SMALL = Hacking(window=12, patience=3)


def watch(settings: Hacking = SMALL, truths: Sequence[str] = ("truth",), rollouts: int = 16) -> HackingWatch:
    return HackingWatch(settings, Watched({"rm": tuple(truths)}, rollouts))


def noisy(values: Sequence[float], spread: float = 0.0, seed: int = 3) -> list[float]:
    rng = random.Random(seed)
    return [x + spread * rng.gauss(0, 1) for x in values]


def warned(
    watch: HackingWatch, rewards: Sequence[float], others: Sequence[float], **lengths
) -> list[tuple[int, Warned]]:
    """(rollout, warning) of a run of one answer a rollout."""
    found = []
    for i, (reward, other) in enumerate(zip(rewards, others, strict=True)):
        tokens = lengths["tokens"][i] if lengths else FILLER[:10]
        found += [(i, w) for w in watch.see(rollout([{"rm": reward, "truth": other}], [tokens]), ["rm"])[0]]
    return found


def test_parting_is_said_once_when_it_has_lasted():
    (found,) = warned(watch(), noisy(UP, 0.01), noisy(DOWN, 0.01, seed=4))
    at, warning = found
    # The first window is full at the 12th rollout, and the third of them at the 14th.
    assert (at, warning.grade, warning.reward, warning.against) == (13, "parted", "rm", "truth")
    assert warning.p < watch().level == 0.05 / (3 * 2)  # 3 pairs, and 5 looks in threes
    assert "over 12 rollouts the trained reward rm rose by 2.7" in warning.text
    assert "while truth fell by 2.7" in warning.text and "in 3 rollouts in a row" in warning.text


@pytest.mark.parametrize(
    ("rewards", "truths"),
    [(UP, UP), (UP, FLAT), (DOWN, DOWN), (FLAT, DOWN), (DOWN, UP)],
    ids=["both-rise", "truth-stays", "both-fall", "reward-stays", "reward-falls"],
)
def test_what_is_no_parting_is_not_warned_of(rewards, truths):
    assert warned(watch(), noisy(rewards, 0.01), noisy(truths, 0.01, seed=4)) == []


def test_what_is_as_likely_by_chance_as_alpha_allows_is_not_warned_of():
    def run(alpha: float) -> list[tuple[int, Warned]]:
        seen = watch(SMALL.model_copy(update={"alpha": alpha, "patience": 1}))
        return warned(seen, noisy(UP, 0.01), noisy(DOWN, 0.6, seed=4))

    ((at, found),) = run(0.5)
    least = 15 * found.p  # 3 pairs, and 5 looks
    assert at == 11 and found.p > 1e-9
    assert [when for when, _ in run(1.01 * least)] == [at]
    assert at not in [when for when, _ in run(0.99 * least)]


def test_a_small_change_is_passed_over_however_certain():
    """Answers that differ by 2 have a standard deviation of 1: over 12 rollouts the truth falls by 0.22 of it."""

    def run(min_change: float) -> int:
        seen = watch(SMALL.model_copy(update={"min_change": min_change}))
        steps = [(i / 4, -i / 50) for i in range(16)]
        answers = [[{"rm": r - 1, "truth": t - 1}, {"rm": r + 1, "truth": t + 1}] for r, t in steps]
        return sum(len(seen.see(rollout(some), ["rm"])[0]) for some in answers)

    assert (run(0.21), run(0.23), run(0.25)) == (1, 0, 0)


def test_growing_answers_are_suspected_where_no_truth_rises():
    rng = random.Random(5)

    def of_length(growth: float) -> list[Sequence[int]]:
        return [FILLER[: round(100 * (1 + growth * i / 11)) + rng.randrange(2)] for i in range(16)]

    (found,) = warned(watch(), noisy(UP, 0.01), noisy(FLAT, 0.01), tokens=of_length(0.7))
    assert (found[0], found[1].grade, found[1].against) == (13, "suspected", "response_length")
    assert "no truth did, and response_length grew from 1" in found[1].text
    assert warned(watch(), noisy(UP, 0.01), noisy(FLAT, 0.01), tokens=of_length(0.4)) == []
    assert warned(watch(), noisy(UP, 0.01), noisy(UP, 0.1), tokens=of_length(0.7)) == []
    assert warned(watch(), noisy(FLAT, 0.01), noisy(FLAT, 0.01), tokens=of_length(0.7)) == []
    assert len(warned(watch(truths=()), noisy(UP, 0.01), FLAT, tokens=of_length(0.7))) == 1


def test_repetition_is_suspected_by_its_absolute_growth():
    def repeating(step: float) -> list[Sequence[int]]:
        """Of 103 tokens, and so 100 4-grams, about a share of step x i is the same token over and over."""
        return [(*FILLER[: 103 - round(100 * step * i)], *[7] * round(100 * step * i)) for i in range(16)]

    ((at, found),) = warned(watch(), noisy(UP, 0.01), noisy(FLAT, 0.01), tokens=repeating(0.02))
    assert (at, found.grade, found.against) == (13, "suspected", "repetition")
    assert warned(watch(), noisy(UP, 0.01), noisy(FLAT, 0.01), tokens=repeating(0.008)) == []


def test_only_rollouts_that_are_learnt_from_and_answers_that_have_both_count():
    seen = watch()
    for i in range(30):  # measured and not trained: nothing is seen of it
        assert seen.see(rollout([{"rm": float(i), "truth": -float(i)}]), []) == ([], {})
    answers = [{"rm": 1.0, "truth": 4.0}, {"rm": 3.0}, {"truth": 9.0}, {}]
    _, figures = seen.see(rollout(answers, [FILLER[:2], FILLER[:4], FILLER[:8], FILLER[:16]]), ["rm"])
    assert figures == {
        "hacking/rm/trained": 1.0,
        "hacking/rm/truth": 4.0,
        "hacking/rm/response_length": 3.0,
        "hacking/rm/repetition": 0.0,
    }
    assert seen.see(rollout([{"truth": 1.0}]), ["rm"]) == ([], {})


def test_a_resumed_watch_warns_when_the_other_does():
    rewards, truths = noisy(UP, 0.01), noisy(DOWN, 0.01, seed=4)
    whole = warned(watch(), rewards, truths)
    for stop in range(16):
        first, second = watch(), watch()
        before = warned(first, rewards[:stop], truths[:stop])
        second.restore(json.loads(json.dumps(first.state())))
        after = [(stop + i, w) for i, w in warned(second, rewards[stop:], truths[stop:])]
        assert before + after == whole, stop


RUNS, ROLLOUTS = 150, 28


def alarms(rng: random.Random, rho: float, fall: float = 0.0, runs: int = RUNS) -> int:
    """Runs of a reward that rises for certain, whose truth is noise of deviation 1 and falls by `fall` halfway."""
    settings = Hacking(window=12, alpha=0.2)
    count = 0
    for _ in range(runs):
        truths = [x - fall * min(max((i - 8) / 12, 0), 1) for i, x in enumerate(ar1(rng, ROLLOUTS, rho))]
        count += bool(warned(watch(settings, rollouts=ROLLOUTS), [float(i) for i in range(ROLLOUTS)], truths))
    return count


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_false_alarms_of_a_run_are_no_more_than_alpha(rho):
    """At alpha = 0.2 at most 30 of 150 runs are expected to have one; tools/bench/hacking_detector.py has more."""
    assert alarms(random.Random(f"null {rho}"), rho) <= 30


def test_a_fall_of_ten_deviations_is_seen_in_nearly_every_run():
    assert alarms(random.Random("power"), 0.0, fall=10.0, runs=30) >= 27


def test_repetition_counts_what_stood_there_before():
    assert repetition([1, 2, 3]) == repetition([1, 2, 3, 4]) == repetition(range(50)) == 0.0
    assert repetition([7] * 13) == 0.9  # ten 4-grams, one of them new
    assert repetition([1, 2] * 4) == 0.6  # 1212 2121 1212 2121 1212
    text = [*range(9), *[7] * MAX_TOKENS]
    assert repetition(text) == 1 - 1 / (MAX_TOKENS - 3)  # the end alone is read
    assert mean_repetition([]) == 0.0
    many = [[7] * 13 if i % 2 == 0 else [1] for i in range(2 * MAX_ANSWERS)]
    assert mean_repetition(many) == pytest.approx(0.9)  # every second one is read
    assert mean_repetition(many[:4]) == pytest.approx(0.45)
    assert rollout_metrics(rollout([{"a": 1.0}] * 2, [[7] * 13, [1]]))["repetition/mean"] == pytest.approx(0.45)


def test_a_summary_counts_the_warnings():
    rows = [
        {"kind": "train", "step": 1},
        *({"kind": "hacking", "step": s, "grade": g} for s, g in ((9, "parted"), (5, "suspected"), (7, "parted"))),
    ]
    assert summarise(rows) == {"parted": 2, "suspected": 1, "first step": 5}
    assert summarise(rows[:1]) == {}
