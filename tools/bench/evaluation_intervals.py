"""What the 95% intervals of an evaluation cover, and how often a comparison of equals decides, by simulation.

An evaluation is simulated from the start: questions are drawn anew from a population of difficulties, and k answers
to each are right with that chance. `coverage` is the share of evaluations whose interval of pass@1, by the function
that an evaluation calls (`intervals.wilson_t`), holds the population's mean; `below` and `above` are the shares in
which it lies wholly below or above it, `width` is its mean width. `t` is, for comparison, what mean -+ t SE covers.
Populations are Beta distributions by their two parameters, a difficulty that all questions share, and mixtures of
questions that are never right, always right, and Beta. `stated` are the populations for which 94-96% is promised at
200 questions and 93-97% at 30, with at least 4 answers to a question; `limits` are others, in which one question in
twenty or fewer decides, questions are all or nothing, or each is answered once, so that few means are possible.

`comparison` is of two checkpoints that are equally good: the shares in which `compare` says better and worse. `same`
has both answer with the same chances; `apart` has each question's chances differ between them, with one mean.
"""

import argparse
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
from numpy.typing import NDArray

from r1mega.diagnostics import student_t
from r1mega.evaluation import compare, intervals
from r1mega.runtime.files import write_json

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]
"""[evaluations, questions] difficulties: each question's chance of a right answer."""

NUM_QUESTIONS = (30, 200)
NUM_ANSWERS = (4, 16, 64)
SEED = 20250122


def beta(a: float, b: float) -> tuple[Draw, float]:
    return (lambda rng, shape: rng.beta(a, b, shape)), a / (a + b)


def shared(p: float) -> tuple[Draw, float]:
    return (lambda _, shape: np.full(shape, p)), p


def mixture(never: float, always: float, a: float, b: float) -> tuple[Draw, float]:
    """Shares of questions that are never and always answered right; the others are Beta(a, b)."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
        kind, others = rng.random(shape), rng.beta(a, b, shape)
        return np.where(kind < never, 0.0, np.where(kind < never + always, 1.0, others))

    return draw, always + (1 - never - always) * a / (a + b)


STATED: Mapping[str, tuple[Draw, float]] = {
    "uniform: Beta(1, 1)": beta(1, 1),
    "one hump: Beta(2, 2)": beta(2, 2),
    "one narrow hump: Beta(10, 10)": beta(10, 10),
    "bimodal: Beta(0.3, 0.3)": beta(0.3, 0.3),
    "bimodal, skewed: Beta(0.5, 0.9)": beta(0.5, 0.9),
    "hard: Beta(2, 18), mean 0.1": beta(2, 18),
    "hard, most near 0: Beta(0.5, 4.5), mean 0.1": beta(0.5, 4.5),
    "easy: Beta(9, 1), mean 0.9": beta(9, 1),
    "easy, most near 1: Beta(4.5, 0.5), mean 0.9": beta(4.5, 0.5),
    "all alike: 0.5": shared(0.5),
    "all alike and easy: 0.9": shared(0.9),
    "mixture: 30% never, 20% always, others uniform": mixture(0.3, 0.2, 1, 1),
    "mixture: 10% never, 60% always, others Beta(2, 2)": mixture(0.1, 0.6, 2, 2),
}
LIMITS: Mapping[str, tuple[Draw, float]] = {
    "very hard: Beta(0.3, 5.7), mean 0.05": beta(0.3, 5.7),
    "very easy: Beta(5.7, 0.3), mean 0.95": beta(5.7, 0.3),
    "very hard: Beta(0.3, 9.7), mean 0.03": beta(0.3, 9.7),
    "mixture: 90% never, 3% always, others uniform": mixture(0.9, 0.03, 1, 1),
    "mixture: 80% never, 20% always": mixture(0.8, 0.2, 1, 1),
}
COMPARED = (
    "uniform: Beta(1, 1)", "bimodal, skewed: Beta(0.5, 0.9)", "hard, most near 0: Beta(0.5, 4.5), mean 0.1",
    "easy: Beta(9, 1), mean 0.9",
)  # fmt: skip


def evaluations(draw: Draw, num: int, k: int, times: int, rng: np.random.Generator) -> Floats:
    """[times, num]: the mean value of each question's k answers."""
    return rng.binomial(k, draw(rng, (times, num))) / k


def coverage(
    population: tuple[Draw, float], num: int, k: int, times: int, rng: np.random.Generator
) -> dict[str, float]:
    """Of `times` simulated evaluations of `num` questions with k answers each."""
    draw, truth = population
    values = evaluations(draw, num, k, times, rng)
    mean, se = values.mean(1), intervals.standard_error(values)
    low, high = intervals.wilson_t(mean, se, num)
    plain = np.abs(mean - truth) <= student_t.t_quantile(num - 1) * se
    shares = {
        "coverage": np.mean((low <= truth) & (truth <= high)),
        "below": np.mean(high < truth),
        "above": np.mean(low > truth),
        "width": np.mean(high - low),
        "t": np.mean(plain),
    }
    return {name: round(float(share), 4) for name, share in shares.items()}


def decided(
    population: tuple[Draw, float], num: int, k: int, times: int, apart: bool, rng: np.random.Generator
) -> dict[str, float]:
    """How often `compare`'s rule decides between two checkpoints that are equally good; 2,000 resamples each."""
    draw, _ = population
    chances = draw(rng, (times, num))
    both = [0.7 * chances + 0.3 * draw(rng, (times, num)) if apart else chances for _ in range(2)]
    a, b = (rng.binomial(k, one) / k for one in both)
    low, high = compare.bootstrap_interval(b - a, resamples=2000)
    outcomes = [compare.outcome_of(*pair) for pair in zip(a, b, low, high, strict=True)]
    shares = {outcome.value: outcomes.count(outcome) / times for outcome in compare.Outcome}
    return {name: round(share, 4) for name, share in shares.items()}


def table(populations: Mapping[str, tuple[Draw, float]], ks: Sequence[int], times: int) -> list[dict[str, Any]]:
    """A row for each population, number of questions and number of answers."""
    return [
        {
            "population": name,
            "questions": num,
            "answers": k,
            **coverage(population, num, k, times, rng_of(name, num, k)),
        }
        for name, population in populations.items()
        for num in NUM_QUESTIONS
        for k in ks
    ]


def rng_of(*cell: Any) -> np.random.Generator:
    """Random numbers of a cell's own, so that it comes out the same whichever others are simulated."""
    return np.random.default_rng([SEED, *json.dumps(cell).encode()])


def extremes(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The least and the greatest coverage at each number of questions."""
    found = {num: [row["coverage"] for row in rows if row["questions"] == num] for num in NUM_QUESTIONS}
    return {str(num): [min(shares), max(shares)] for num, shares in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5000)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    sources = [Path(__file__), Path(harness.__file__)]
    sources += [Path(inspect.getfile(module)) for module in (intervals, compare, student_t)]
    stated, limits = table(STATED, NUM_ANSWERS, given.times), table(LIMITS, (1, *NUM_ANSWERS), given.times)
    limits += table(STATED, (1,), given.times)
    equals = [
        {
            "population": name, "checkpoints": "apart" if apart else "same", "questions": num, "answers": k,
            **decided(STATED[name], num, k, given.times, apart, rng_of(name, num, k, apart)),
        }
        for name in COMPARED
        for apart in (False, True)
        for num in NUM_QUESTIONS
        for k in (1, *NUM_ANSWERS)
    ]  # fmt: skip
    found = {
        "simulations": given.times, "seed": SEED,
        "stated_coverage": extremes(stated), "limits_coverage": extremes(limits),
        "decided_between_equals": max(row["better"] + row["worse"] for row in equals),
    }  # fmt: skip
    about = {
        "about": " ".join((__doc__ or "").split()),
        **harness.provenance(["numpy"], [source.resolve() for source in sources]),
    }
    write_json(given.out, about | found | {"stated": stated, "limits": limits, "comparison": equals})
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
