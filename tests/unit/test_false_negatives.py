"""What false negatives cost of the gradient's signal: the formula by hand, and against a simulation."""

import json
import random
from pathlib import Path

import pytest

from r1mega.algos.advantage import group_advantages
from r1mega.buffers import Float32s, Int32s
from r1mega.diagnostics.false_negatives import signal_kept, signal_lost
from r1mega.rewards.accuracy import Accuracy
from r1mega.rewards.format import Format
from r1mega.rewards.mathematics.verifier import Mathematics
from r1mega.rewards.rubric import Rubric
from r1mega.rewards.signal import signal_metrics
from r1mega.samples import Completion, FinishReason, Group, Prompt, Verdict, VerdictStatus

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("rate", "right", "kept"),
    [(0.38, 0.1, 0.77), (0.38, 0.5, 0.67), (0.38, 0.9, 0.37), (0.15, 0.1, 0.91), (0.15, 0.5, 0.86), (0.15, 0.9, 0.6)],
)
def test_what_is_kept_of_some_shares(rate: float, right: float, kept: float):
    assert signal_kept(right * (1 - rate), rate) == pytest.approx(kept, abs=0.005)
    assert signal_kept(right * (1 - rate), rate, divided=False) == pytest.approx(1 - rate)


def test_the_ends():
    assert signal_kept(0.4, 0.0) == 1.0
    assert signal_kept(0.7, 0.3) == signal_kept(0.8, 0.3) == 0.0  # as many as where every answer is right
    assert signal_kept(0.7, 0.3, divided=False) == 0.0


@pytest.mark.parametrize("std", ["population", "none"])
def test_it_is_the_gap_between_right_and_wrong_that_advantages_have(std):
    """A group of 20,000 answers, 70% of them right, of which a verifier takes a quarter for wrong."""
    rng = random.Random(1)
    truly = [i < 14_000 for i in range(20_000)]
    judged = [right and rng.random() >= 0.25 for right in truly]

    def gap(rewards: list[bool]) -> float:
        advantages = group_advantages([float(r) for r in rewards], std=std)
        means = [
            sum(a for a, right in zip(advantages, truly, strict=True) if right == of) / truly.count(of)
            for of in (True, False)
        ]
        return means[0] - means[1]

    expected = signal_kept(sum(judged) / len(judged), 0.25, divided=std != "none")
    assert gap(judged) / gap(truly) == pytest.approx(expected, abs=0.01)


def test_the_mean_is_over_questions_with_both_right_and_wrong_answers():
    """At f = 0.2: of q' = 1/2, q = 5/8 and 0.8 sqrt(15/64 / 1/4) = 0.7746 is kept; of q' = 4/5, q = 1 and nothing."""
    half, most = [True, False], [True] * 4 + [False]
    both = [(half, 0.2), (most, 0.2), ([True, True], 0.2), ([False], 0.2), ([], 0.2)]
    assert signal_lost(both) == pytest.approx(1 - 0.774597 / 2, abs=1e-6)
    assert signal_lost(both[2:]) is None


def group(verifier: str, outcomes: str) -> Group:
    """r right, w wrong, f failed."""
    completions = tuple(
        Completion("p", i, Int32s([5]), Float32s([-0.1]), "", FinishReason.STOP, 0, i) for i in range(len(outcomes))
    )
    scored = {"r": 1.0, "w": 0.0}
    verdicts = tuple(
        Verdict(VerdictStatus.SCORED, scored[o] + 1, {"right": scored[o], "form": 1.0})
        if o in scored
        else Verdict(VerdictStatus.FAILED)
        for o in outcomes
    )
    return Group(Prompt("p", verifier, "q", "1", Int32s([1])), completions, verdicts)


def test_a_rollouts_figures_are_of_its_accuracy_reward_and_of_what_its_verifiers_published():
    rubric = Rubric({"right": Accuracy(), "form": Format()}, "zero")
    groups = [group("math", "rwff"), group("chain_sum", "rwww"), group("math", "rrff")]
    found = signal_metrics(groups, rubric, 0.2, divided=True)
    assert found == {
        "signal_lost/assumed": pytest.approx(1 - (signal_kept(0.5, 0.2) + signal_kept(0.25, 0.2)) / 2),
        "signal_lost/published": pytest.approx(1 - signal_kept(0.5, Mathematics.false_negatives)),
    }
    assert signal_metrics([group("chain_sum", "rrww")], rubric, 0.0, divided=True) == {"signal_lost/assumed": 0.0}
    assert signal_metrics([group("math", "rr")], rubric, 0.2, divided=True) == {}


def test_the_rate_of_mathematics_is_the_one_that_was_measured():
    measured = json.loads((ROOT / "docs/measurements/math_verifier.json").read_text())
    assert Mathematics.false_negatives == measured["rates"]["r1mega"]["false_negatives"]["high"]
