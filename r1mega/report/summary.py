"""What a run came to, in the terminal: one table of stages before and after, and answers early against late."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from r1mega.errors import DataError
from r1mega.evaluation.metrics import EvalResult
from r1mega.report.rows import Row, number, read_rows, read_summary

MAX_SHOWN_CHARS = 600
"""Longer answers are cut in the terminal."""


def table(run_dirs: Sequence[Path]) -> Table:
    """The summaries of several stages side by side, each before and after; the control is one of them.

    Lines that no stage has figures for are left out. Raises DataError where a run has no summary.json yet.
    """
    summaries = [_required(run_dir) for run_dir in run_dirs]
    out = Table(title="Held-out questions, before and after", title_justify="left", show_lines=False)
    out.add_column("", no_wrap=True)
    for run_dir in run_dirs:
        out.add_column(Text(f"{_plain(run_dir.name)}\nbefore"), justify="right")
        out.add_column("\nafter", justify="right", style="bold")
    columns = [_eval_column(summary, when) for summary in summaries for when in ("before", "after")]
    _add_lines(out, columns)
    out.add_section()
    _add_lines(out, [column for summary in summaries for column in ({}, _run_column(summary))])
    return out


def transcripts(run_dir: Path, console: Console, num: int = 2) -> None:
    """Print `num` answers of the earliest and of the latest samples/*.jsonl, questions that both have first.

    Raises DataError when the run kept no samples.
    """
    rows = [row for file in sorted((run_dir / "samples").glob("*.jsonl")) for row in read_rows(file)]
    steps = sorted({step for row in rows if (step := number(row, "step")) is not None})
    if not steps:
        raise DataError(f"no samples in {run_dir / 'samples'}")
    shown = {step: [row for row in rows if row.get("step") == step] for step in (steps[0], steps[-1])}
    common = set.intersection(*({str(row.get("question")) for row in group} for group in shown.values()))
    for step, group in shown.items():
        # Stable sort: shared questions first, in the same order early and late, else as sampled.
        order = sorted(group, key=lambda row: (str(row.get("question")) not in common, str(row.get("question"))))
        distinct = list({str(row.get("question")): row for row in reversed(order)}.values())[::-1]
        for row in distinct[:num]:
            console.print(_transcript(row, f"step {step:g}"))


def _transcript(row: Row, title: str) -> Panel:
    reward, parts = number(row, "reward"), row.get("parts") or {}
    score = " · ".join(f"{_plain(str(name))} {value:g}" for name, value in parts.items() if _is_number(value))
    return Panel(
        Group(
            Text(_plain(str(row.get("question", ""))), style="bold"),
            Text(_plain(str(row.get("text", "")))),
            Text(f"truth {_plain(str(row.get('truth', '')))}", style="dim"),
        ),
        title=f"{title}" + (f", reward {reward:g}" if reward is not None else ""),
        title_align="left",
        subtitle=Text(score),
        subtitle_align="right",
        border_style="green" if parts.get("accuracy") == 1 else "red",
    )


def _required(run_dir: Path) -> Row:
    summary = read_summary(run_dir)
    if summary is None:
        raise DataError(f"{run_dir} has no summary.json: the stage has not finished")
    return summary


def _add_lines(out: Table, columns: Sequence[dict[str, str]]) -> None:
    for name in dict.fromkeys(name for column in columns for name in column):
        out.add_row(name, *(column.get(name, "") for column in columns))


def _eval_column(summary: Row, when: str) -> dict[str, str]:
    evals = summary.get("eval") or {}
    lines: dict[str, str] = {}
    if evals.get(when):
        result = EvalResult.from_json(evals[when])
        lines = {
            "pass@1 (strict)": _with_error(result.strict.mean, result.strict.se),
            "lenient": _with_error(result.lenient.mean, result.lenient.se),
            "format": f"{result.format:.1%}",
            "worked steps": f"{result.works:.1%}",
            "truncated": f"{result.truncated:.1%}",
            "tokens per answer": f"{result.mean_tokens:.1f}",
        }
        for style, share in result.by_style.items():
            lines[f"  {style}: share, right"] = f"{share.share:.0%}, {share.lenient:.0%}" if share.share else "0%"
    greedy = evals.get(f"greedy_{when}")
    if _is_number(greedy):
        lines["greedy"] = f"{greedy:.1%}"
    elif greedy:
        result = EvalResult.from_json(greedy)
        lines["greedy strict"] = f"{result.strict.mean:.1%}"
        lines["greedy lenient"] = f"{result.lenient.mean:.1%}"
    return lines


def _run_column(summary: Row) -> dict[str, str]:
    figures = [("time, s", "seconds", ".0f"), ("optimiser steps", "steps", ",.0f"), ("tokens", "tokens", ",.0f")]
    figures += [("tokens per second", "tokens_per_second", ",.0f"), ("peak memory, GiB", "peak_rss_gib", ".2f")]
    figures += [("mismatch, nats", "mismatch", ".1e")]
    lines: dict[str, str] = {}
    for name, key, form in figures:
        value = summary.get(key)
        parts = value if isinstance(value, dict) else {"": value}  # one figure, or one for each part of the run
        for part in parts:
            figure = number(parts, part)
            if figure is not None:
                lines[f"{name}: {_plain(part)}" if part else name] = format(figure, form)
    return lines


def _with_error(share: float, se: float) -> str:
    return f"{100 * share:.1f} ± {196 * se:.1f}%"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(text: str) -> str:
    """Model text made safe for a terminal: no control or invisible characters, cut to `MAX_SHOWN_CHARS`."""
    cut = text[:MAX_SHOWN_CHARS] + ("…" if len(text) > MAX_SHOWN_CHARS else "")
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in cut)
