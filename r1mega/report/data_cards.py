"""What a run that put a set of conversations together came to: its table, and figures of domains and lengths."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from r1mega.report import made
from r1mega.report.catalogue import SET_DOMAINS, SET_LENGTHS
from r1mega.report.figures import COLORS, new_axes
from r1mega.report.rows import Row, read_summary
from r1mega.report.text import visible

SHOWN_FROM = 0.001
"""Share of the set that a domain needs to have a curve of its own in the figure of lengths."""


def lines(summary: Row) -> dict[str, str]:
    """Name -> figure, of a summary.json; empty where the run has put no set together."""
    card = summary.get("conversation_set")
    if not isinstance(card, dict):
        return {}
    report, told = card["report"], {"rows": f"{card['rows']:,}", "different questions": f"{card['questions']:,}"}
    for name, of in card["domains"].items():
        theirs = report["domains"].get(name, 0) / report["rows"]
        told[f"rows: {visible(name)} (report)"] = f"{of['rows']:,}, {of['share']:.1%} ({theirs:.1%})"
    for unit, of in card["lengths"].items():
        if of["known"]:
            told[f"{unit} of an answer: mean, median, most"] = (
                f"{of['mean']:,.0f}, {of['quantiles']['0.5']:,.0f}, {of['max']:,}"
            )
    for name, num in card["thinking"].items():
        told[f"chain of thought: {name.replace('_', ' ')}"] = f"{num:,}"
    for name, num in card["outcomes"].items():
        if name != "kept" and num:
            told[f"left out: {name.replace('_', ' ')}"] = f"{num:,}"
    return told


def table(run_dirs: Sequence[Path]) -> Table | None:
    """The sets side by side; None where no run has made one."""
    return made.table("Sets of conversations", run_dirs, lines)


def draw(run_dir: Path) -> list[Path]:
    """Domains and lengths, into the run's figures; [] where the run has made no set."""
    card = (read_summary(run_dir) or {}).get("conversation_set")
    if card is None:
        return []
    folder = run_dir / "figures"
    return [_domains(card, folder / f"{SET_DOMAINS}.png"), _lengths(card, folder / f"{SET_LENGTHS}.png")]


def _domains(card: Row, path: Path) -> Path:
    names, report = list(card["domains"]), card["report"]
    ours = [card["domains"][name]["share"] for name in names]
    theirs = [report["domains"].get(name, 0) / report["rows"] for name in names]
    with new_axes(path, f"Domains of {card['rows']:,} rows", "", "share of the rows") as axes:
        places = range(len(names))
        for shift, shares, label, color in ((-0.2, ours, "this set", COLORS[0]), (0.2, theirs, "report", COLORS[4])):
            bars = axes.bar([at + shift for at in places], shares, 0.38, label=label, color=color)
            axes.bar_label(bars, [f"{share:.1%}" for share in shares], fontsize=8)
        axes.set_xticks(list(places), names)
        axes.legend(loc="best")
    return path


def _lengths(card: Row, path: Path) -> Path:
    """By tokens where all answers' are known, else by characters."""
    unit = "tokens" if card["lengths"]["tokens"]["known"] == card["rows"] else "characters"
    of_domains = {
        name: of["lengths"][unit]
        for name, of in card["domains"].items()
        if of["share"] >= SHOWN_FROM and of["lengths"][unit]["known"]
    }
    with new_axes(path, "Lengths of answers", f"{unit} of an answer", "share of the domain's answers") as axes:
        for number, (name, of) in enumerate(of_domains.items()):
            histogram: dict[str, Any] = of["histogram"]
            shares = [count / of["known"] for count in histogram["counts"]]
            axes.stairs(shares, histogram["edges"], color=COLORS[number % len(COLORS)], label=name, linewidth=1.8)
        if unit == "tokens":
            axes.axvline(card["report"]["mean_tokens"], color=COLORS[4], linestyle="--", label="report's mean")
        axes.set_xscale("log")
        axes.legend(loc="best")
    return path
