"""What a run came to, in the terminal: one table of stages before and after, and answers early against late.

The lines of the table are those of the page as well.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from r1mega.diagnostics import hacking, load_balance
from r1mega.errors import DataError
from r1mega.evaluation.intervals import Interval
from r1mega.evaluation.metrics import EvalResult
from r1mega.report.rows import Row, early_and_late, number, read_object, read_rows, read_summary, series
from r1mega.report.text import cut, visible
from r1mega.runtime import incidents

MAX_SHOWN_CHARS = 600
"""Longer answers are cut in the terminal."""
COSTS = (
    ("time, s", "seconds", ",.0f"),
    ("optimiser steps", "steps", ",.0f"),
    ("tokens", "tokens", ",.0f"),
    ("tokens per second", "tokens_per_second", ",.0f"),
    ("peak memory, GiB", "peak_rss_gib", ".2f"),
    ("validation loss, nats", "validation_loss", ".4f"),
    ("held out, before", "validation_before", ".4f"),
    ("held out, after", "validation_after", ".4f"),
    ("loss over the last 5% of steps, nats", "loss", ".4f"),
    ("mismatch, nats", "mismatch", ".1e"),
    ("experts, last 5% of steps", "experts", ".2f"),
    ("warnings of reward hacking", "hacking", ",.0f"),
    ("numbers that went wrong", "incidents", ",.0f"),
    ("data", "data", ",.0f"),
)
"""(name, key of summary.json, format); a key may hold one figure, or one for each part of the run."""
COUNTS = {
    "pairs": "held out: pairs",
    "labelled": "held out: labelled answers",
    "longer_worse/pairs": "held out: pairs whose longer answer is worse",
    "longer_better/pairs": "held out: pairs whose longer answer is better",
    "answers": "mismatch: answers compared",
    "answers_after_tie": "mismatch: of them after a tie",
    "tokens_compared": "mismatch: tokens compared",
    "tokens_far": "mismatch: of them more than 1 nat apart",
    "dropped choices": "experts, all steps: dropped choices",
}
"""Parts that are counts, of something else than the figures beside them."""


def table(run_dirs: Sequence[Path]) -> Table:
    """The summaries of several stages side by side; the control is one of them.

    Stages that were evaluated are shown before and after; where none was, in one column each, as what they took.
    Lines that no stage has figures for are left out. Raises DataError where a run has no summary.json yet.
    """
    summaries = [_required(run_dir) for run_dir in run_dirs]
    evaluated = any(summary.get("eval") for summary in summaries)
    title = "Held-out questions, before and after" if evaluated else "Training: losses, time, memory"
    out = Table(title=title, title_justify="left", show_lines=False)
    out.add_column("", no_wrap=True)
    for run_dir in run_dirs:
        if not evaluated:
            out.add_column(Text(visible(run_dir.name)), justify="right")
            continue
        out.add_column(Text(f"{visible(run_dir.name)}\nbefore"), justify="right")
        out.add_column("\nafter", justify="right", style="bold")
    if not evaluated:
        _add_lines(out, [cost_lines(summary) for summary in summaries])
        return out
    columns = [_eval_column(summary, when) for summary in summaries for when in ("before", "after")]
    _add_lines(out, columns)
    out.add_section()
    _add_lines(out, [column for summary in summaries for column in ({}, cost_lines(summary))])
    return out


def table_of_models(run_dir: Path) -> Table | None:
    """The models that a finished stage has evaluated side by side; None where it asked no more than one.

    Raises DataError where the summary holds no records of evaluations.
    """
    models = (read_summary(run_dir) or {}).get("models")
    if not isinstance(models, dict):
        return None
    out = Table(title=f"{visible(run_dir.name)}: held-out questions", title_justify="left", show_lines=False)
    out.add_column("", no_wrap=True)
    for name in models:
        out.add_column(Text(visible(name)), justify="right")
    _add_lines(out, [_eval_column(of, "after") for of in models.values()])
    return out


def transcripts(run_dir: Path, console: Console, num: int = 2) -> None:
    """Print `num` answers of the earliest and of the latest samples (rows.early_and_late).

    Raises DataError when the run kept no samples.
    """
    shown = early_and_late(run_dir, num)
    if not any(shown.values()):
        raise DataError(f"no samples in {run_dir / 'samples'}")
    for step, answers in shown.items():
        for row in answers:
            console.print(_transcript(row, f"step {step}"))


def so_far(run_dir: Path) -> Row:
    """What summary.json would hold, as far as metrics.jsonl tells by now: a running stage has no summary yet.

    Raises DataError where metrics.jsonl or config.json is malformed.
    """
    file = run_dir / "metrics.jsonl"
    rows = read_rows(file) if file.is_file() else []
    train = [row for row in rows if row.get("kind") == "train"]
    names = dict.fromkeys(key for row in train for key in row if key.startswith("seconds/"))
    phases = {name.removeprefix("seconds/"): _total(train, name) for name in names}
    sampled = [row for row in train if number(row, "seconds/rollout")]
    tokens = {"rollout": _total(sampled, "rollout/tokens"), "update": _total(train, "tokens")}
    results = {
        k: [r["result"] for r in rows if r.get("kind") == k and "result" in r] for k in ("eval", "eval_greedy")
    }
    evals = {}
    for name, found in (("", results["eval"]), ("greedy_", results["eval_greedy"])):
        evals |= {f"{name}before": found[0]} if found else {}
        evals |= {f"{name}after": found[-1]} if len(found) > 1 else {}
    return {
        "stage": ((read_object(run_dir / "config.json") or {}).get("stage") or {}).get("stage"),
        "seconds": sum(phases.values()),
        "seconds_by_phase": phases,
        "steps": max((number(row, "step") or 0.0 for row in train), default=0.0),
        "tokens_per_second": {
            "train" if p == "update" else p: tokens[p] / phases[p] for p in tokens if tokens[p] and phases.get(p)
        },
        "mismatch": {
            "max": max(series(train, "train", "step", "mismatch/max")[1], default=None),
            "kl_largest": max(series(train, "train", "step", "mismatch/kl")[1], default=None),
            "answers": _total(sampled, "mismatch/answers") or None,
        },
        "experts": load_balance.summarise(train),
        "incidents": incidents.counts(run_dir),
        "hacking": hacking.summarise([row for row in rows if row.get("kind") == "hacking"]),
        "eval": evals,
    }


def _total(rows: Sequence[Row], key: str) -> float:
    return sum(number(row, key) or 0.0 for row in rows)


def _transcript(row: Row, title: str) -> Panel:
    reward, parts = number(row, "reward"), row.get("parts") or {}
    score = " · ".join(f"{visible(str(name))} {value:g}" for name, value in parts.items() if _is_number(value))
    question, text, truth = (
        visible(cut(str(row.get(key, "")), MAX_SHOWN_CHARS)) for key in ("question", "text", "truth")
    )
    return Panel(
        Group(Text(question, style="bold"), Text(text), Text(f"truth {truth}", style="dim")),
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
    styles = {f"  {style}: share, right": cell for style, cell in style_lines(summary, when).items()}
    return eval_lines(summary, when) | styles


def eval_lines(summary: Row, when: str) -> dict[str, str]:
    """Name -> figure of the evaluation "before" or "after", sampled and greedy; shares with their 95% intervals.

    Raises DataError where the summary holds no record of an evaluation under that name.
    """
    evals = summary.get("eval") or {}
    lines: dict[str, str] = {}
    if evals.get(when):
        result = EvalResult.from_json(evals[when])
        lines = {
            "pass@1 (strict)": _with_interval(result.strict),
            "lenient": _with_interval(result.lenient),
            "format": f"{result.format:.1%}",
            "thought or steps": f"{result.works:.1%}",
            "truncated": f"{result.truncated:.1%}",
            "tokens per answer": f"{result.mean_tokens:.1f}",
        }
        if when == "after":
            lines |= _of_several(summary.get("scores") or {})
            lines |= _of_columns(summary.get("columns") or {})
        lines |= _not_scored("", result)
    greedy = evals.get(f"greedy_{when}")
    if _is_number(greedy):
        lines["greedy"] = f"{greedy:.1%}"
    elif greedy:
        result = EvalResult.from_json(greedy)
        lines["greedy strict"] = _with_interval(result.strict)
        lines["greedy lenient"] = _with_interval(result.lenient)
        lines |= _not_scored("greedy ", result)
    return lines


def _of_columns(columns: Row) -> dict[str, str]:
    """Scores of a part of the questions by the column's name; None of one stands for nothing that could be scored."""
    return {
        f"pass@1, {visible(name)}": _with_interval(Interval(**of["pass_at_1"])) if of else "none scored"
        for name, of in columns.items()
    }


def _not_scored(prefix: str, result: EvalResult) -> dict[str, str]:
    """Verdicts that are no scores, which are in no other line."""
    told: dict[str, str] = {}
    if result.unscorable:
        told[f"{prefix}answers without a score: unscorable"] = f"{result.unscorable:,}"
    if result.failed:
        told[f"{prefix}answers without a score: failed"] = f"{result.failed:,}"
    return {**told, f"{prefix}answers with one": f"{result.num_answers:,}"} if told else {}


def _of_several(scores: Row) -> dict[str, str]:
    """pass@k and cons@k, as `evaluation.scores.Scores` has them."""
    told: dict[str, str] = {}
    for name in ("pass", "cons"):
        for at in scores.get(f"{name}_at_k") or ():
            left_out = f", {at['too_few']} questions with fewer left out" if at["too_few"] else ""
            told[f"{name}@{at['k']}"] = _with_interval(Interval(**at["interval"])) + left_out
    return told


def style_lines(summary: Row, when: str) -> dict[str, str]:
    """Style of answer -> its share of the answers and how many of them are right, as in `eval_lines`."""
    record = (summary.get("eval") or {}).get(when)
    styles = EvalResult.from_json(record).by_style if record else {}
    return {
        style: f"{share.share:.0%}, {share.lenient:.0%}" if share.share else "0%" for style, share in styles.items()
    }


def cost_lines(summary: Row, costs: Sequence[tuple[str, str, str]] = COSTS) -> dict[str, str]:
    """Name -> figure of what the stage took: time, tokens, memory; and how far engine and trainer were apart."""
    lines: dict[str, str] = {}
    for name, key, form in costs:
        value = summary.get(key)
        parts = value if isinstance(value, dict) else {"": value}
        for part in parts:
            figure = number(parts, part)
            if figure is None:
                continue
            if part in COUNTS:
                lines[COUNTS[part]] = f"{figure:,.0f}"
            else:
                lines[f"{name}: {visible(part)}" if part else name] = format(figure, form)
    return lines


def _with_interval(of: Interval) -> str:
    return f"{of.mean:.1%} ({100 * of.low:.1f} to {100 * of.high:.1f})"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
