"""What a run of rejection sampling came to: its table, and a figure of what became of the answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from r1mega.errors import DataError
from r1mega.report import made
from r1mega.report.catalogue import OUTCOMES
from r1mega.report.figures import COLORS, new_axes
from r1mega.report.rows import Row, read_summary


def lines(summary: Row) -> dict[str, str]:
    """Name -> figure, of a summary.json; empty where the run has sampled no answers to keep."""
    of = summary.get("rejection")
    if not isinstance(of, dict):
        return {}
    told = {name: f"{num:,}" for name, num in of["counts"].items()}
    answers = max(1, of["counts"]["answers"])
    for outcome, num in sorted(of["outcomes"].items(), key=lambda one: -one[1]):
        told[f"answers: {_named(outcome)}"] = f"{num:,} ({num / answers:.1%})"
    told |= {f"rows: thinking {_named(name)}": f"{num:,}" for name, num in of["thinking"].items()}
    return told


def table(run_dirs: Sequence[Path]) -> Table | None:
    """What finished runs of rejection sampling came to, side by side; None where there are none."""
    return made.table("Rejection sampling", run_dirs, lines)


def draw(run_dir: Path) -> list[Path]:
    """Draw what became of the answers, domain by domain; [] where the run has not finished, or is of another kind.

    Raises DataError where summary.json is malformed.
    """
    of = (read_summary(run_dir) or {}).get("rejection")
    if of is None:
        return []
    try:
        domains: Mapping[str, Mapping[str, int]] = of["domains"]
        totals: dict[str, int] = {}
        for counts in domains.values():
            for outcome, num in counts.items():
                totals[outcome] = totals.get(outcome, 0) + int(num)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{run_dir / 'summary.json'}: not the counts of a rejection stage: {error!r}") from error
    if not sum(totals.values()):
        return []
    return [_bars(run_dir / "figures" / f"{OUTCOMES}.png", domains, totals)]


def _bars(path: Path, domains: Mapping[str, Mapping[str, int]], totals: Mapping[str, int]) -> Path:
    """A bar an outcome, the largest on top, its domains one behind the other."""
    names = sorted(totals, key=lambda name: totals[name])
    with new_axes(path, "What became of the answers", "answers", "") as axes:
        before = [0] * len(names)
        for number, (domain, counts) in enumerate(domains.items()):
            widths = [counts.get(name, 0) for name in names]
            color: Any = COLORS[number % len(COLORS)]
            axes.barh([_named(name) for name in names], widths, left=before, color=color, label=domain)
            before = [a + b for a, b in zip(before, widths, strict=True)]
        for name, num in zip(names, before, strict=True):
            axes.annotate(f" {num:,}", (num, _named(name)), va="center", fontsize=9)
        axes.legend(loc="lower right")
    return path


def _named(outcome: str) -> str:
    return outcome.replace("_", " ")
