"""A finished chain as its evaluations leave it on disk, with made-up answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r1mega.evaluation.results import QuestionResult, Record, SampleResult, digests_of, write
from r1mega.recipe.recipe import ScoredModels
from r1mega.samples import VerdictStatus

SAMPLING = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 48, "samples": 4, "format": "any"}
COLUMNS = {
    "reasoning": {"domains": ["math"], "sources": []},
    "instructions": {"domains": ["helpful", "harmless"], "sources": []},
}
Rates = Mapping[str, Sequence[float]]
"""Domain -> how many of 4 answers to each of its questions are right."""


def answered(name: str, domain: str, right: float, *, unscored: bool = False) -> QuestionResult:
    status = VerdictStatus.UNSCORABLE if unscored else VerdictStatus.SCORED
    samples = tuple(SampleResult(status, float(i < right)) for i in range(4))
    return QuestionResult(name, f"digest of {name}", samples, domain, "made")


def results_of(rates: Rates) -> list[QuestionResult]:
    return [answered(f"{domain}{i}", domain, r) for domain, of in rates.items() for i, r in enumerate(of)]


def write_model(
    folder: Path, results: list[QuestionResult], *, weights: str = "w", prompt: str = "p", **sampling: Any
) -> None:
    settings = SAMPLING | sampling
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, results, Record(digests_of(results, weights, prompt, settings), settings, {}))


def write_chain(run_dir: Path, models: Mapping[str, Rates], stage: str = "eval") -> Path:
    """RUN/eval/NAME of each model."""
    for name, rates in models.items():
        write_model(run_dir / stage / name, results_of(rates), weights=f"weights of {name}")
    return run_dir


class Recipes:
    """A stage, by its recipe, as far as tables ask it."""

    def __init__(self, *models: str, columns: Mapping[str, Any] = COLUMNS, asked: Any = None) -> None:
        self._scored = ScoredModels(models, columns, {"asked": asked}) if models else None

    def scored(self) -> ScoredModels | None:
        return self._scored


def plain_bootstrap(differences: Sequence[float], seed: int = 7) -> tuple[float, float]:
    """The 2.5% and 97.5% percentiles of the mean, by 4,000 resamples drawn one by one."""
    d: NDArray[np.float64] = np.asarray(differences, np.float64)
    draw = np.random.default_rng(seed)
    means = [d[draw.integers(0, len(d), len(d))].mean() for _ in range(4000)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)
