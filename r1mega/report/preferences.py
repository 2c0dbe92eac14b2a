"""What a run that made preference data came to: its table, and figures of judged.jsonl."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from r1mega.errors import DataError
from r1mega.report import made
from r1mega.report.catalogue import PAIR_GAPS, PAIR_LENGTHS
from r1mega.report.figures import COLORS, new_axes
from r1mega.report.rows import Row, number, read_rows

REASONS = {
    "truncated": "answers left out: cut at the length limit",
    "no_summary": "answers left out: nothing to judge in them",
    "equal": "answers left out: equal to another",
    "no_pair": "questions without a pair",
    "gap_too_small": "pairs left out: gap too small",
    "unscorable": "left out: no judgement that could be read",
    "failed": "left out: the judge failed",
    "unbalanced": "pairs left out: lengths out of balance",
}
"""Why something is left out -> what a table calls it."""
GAP_BINS, LENGTH_BINS = 24, 40


def lines(summary: Row) -> dict[str, str]:
    """Name -> figure, of a summary.json; empty where the run made no preference data."""
    of = summary.get("preference_data")
    if not isinstance(of, dict):
        return {}
    told = {name: f"{num:,}" for name, num in of["counts"].items()}
    told |= {REASONS.get(why, why): f"{num:,}" for why, num in of["left_out"].items() if num}
    for name, bias in (of["judge"].get("bias") or {}).items():
        told[f"judge: {name} bias (share − 1/2)"] = _interval(bias)
    if lengths := of.get("lengths"):
        for when in ("before", "after"):
            told[f"longer one chosen, {when} balancing"] = _share(lengths[when]["share_longer"])
            means = [f"{lengths[when][f'mean_{side}']:,.0f}" for side in ("chosen", "rejected")]
            told[f"mean characters chosen / rejected, {when}"] = " / ".join(means)
    return told


def table(run_dirs: Sequence[Path]) -> Table | None:
    """What finished runs that made preference data came to, side by side; None where none did."""
    return made.table("Preference data", run_dirs, lines)


def draw(run_dir: Path) -> list[Path]:
    """Draw the gaps of the judged pairs, and the lengths of chosen and rejected answers; [] where there are none.

    Raises DataError where judged.jsonl is malformed.
    """
    file = run_dir / "judged.jsonl"
    rows = read_rows(file) if file.is_file() else []
    try:
        pairs = [row for row in rows if "gap" in row]
        return _gaps(pairs, run_dir) + _lengths(pairs, run_dir)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{file}: a row is not a judged pair: {error!r}") from error


def _gaps(rows: Sequence[Row], run_dir: Path) -> list[Path]:
    gaps = {
        name: [abs(gap) for row in rows if row["outcome"] in outcomes and (gap := number(row, "gap")) is not None]
        for name, outcomes in {
            "kept": ("kept",),
            "out of balance": ("unbalanced",),
            "gap too small": ("gap_too_small",),
        }.items()
    }
    if not any(gaps.values()):
        return []
    path = run_dir / "figures" / f"{PAIR_GAPS}.png"
    most = max(3.0, *(gap for some in gaps.values() for gap in some))
    with new_axes(path, "Gap between the two answers of a pair", "mean gap of the votes", "pairs") as axes:
        shown = {name: some for name, some in gaps.items() if some}
        axes.hist(
            list(shown.values()), bins=GAP_BINS, range=(0, most), stacked=True, label=list(shown),
            color=[COLORS[list(gaps).index(name)] for name in shown],
        )  # fmt: skip
        axes.legend(loc="best")
    return [path]


def _lengths(rows: Sequence[Row], run_dir: Path) -> list[Path]:
    sides: Mapping[str, Sequence[Any]] = {
        "chosen": [(row["outcome"], row["lengths"][row["gap"] < 0]) for row in rows if _decided(row)],
        "rejected": [(row["outcome"], row["lengths"][row["gap"] > 0]) for row in rows if _decided(row)],
    }
    if not any(sides.values()):
        return []
    path = run_dir / "figures" / f"{PAIR_LENGTHS}.png"
    every = [length for some in sides.values() for _, length in some]
    low, high = min(every), max(max(every), min(every) + 1)
    bins = [low * (high / low) ** (i / LENGTH_BINS) for i in range(LENGTH_BINS + 1)]
    bins[0], bins[-1] = low, high  # exactly: rounding would leave the longest one out
    with new_axes(path, "Lengths of chosen and rejected answers", "characters of what is judged", "pairs") as axes:
        for (name, some), color in zip(sides.items(), COLORS, strict=False):
            axes.hist([n for _, n in some], bins, histtype="step", color=color, alpha=0.45, linestyle="--",
                      label=f"{name}, before balancing")  # fmt: skip
            axes.hist([n for outcome, n in some if outcome == "kept"], bins, histtype="step", color=color,
                      linewidth=1.8, label=f"{name}, kept")  # fmt: skip
        axes.set_xscale("log")
        axes.legend(loc="best")
    return [path]


def _decided(row: Row) -> bool:
    return row["outcome"] in ("kept", "unbalanced")


def _share(value: Any) -> str:
    return "no two lengths differ" if value is None else f"{value:.1%}"


def _interval(bias: Any) -> str:
    if bias is None:
        return "nothing decided"
    return f"{bias['bias']:+.3f} ({bias['low']:+.3f} to {bias['high']:+.3f})"
