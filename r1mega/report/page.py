"""A run as one HTML page, report.html: what ran, what came out, figures, recoveries, answers, settings.

The page is a single file without scripts that loads nothing; its policy forbids both, should text of a model ever get
past the escaping. A run that has not finished is shown as far as it got.
"""

import base64
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from r1mega.report import data_cards, outcome, preferences, rejection, summary
from r1mega.report.catalogue import CAPTIONS
from r1mega.report.rows import Row, early_and_late, number, read_object, read_rows, read_summary
from r1mega.report.runs import learns_from, parts, plain, provenance, samples, stage_dirs
from r1mega.report.settings import settings
from r1mega.report.text import cut, pieces, visible
from r1mega.runtime import files

NUM_ANSWERS = 8
"""Answers shown of the earliest samples, and of the latest."""
MAX_ANSWER_CHARS = 6000
MAX_INCIDENTS = 50
"""Steps whose numbers were wrong that are shown, the latest."""
MAX_RECOVERIES = 200
COSTS = (*summary.COSTS[:1], ("time, s", "seconds_by_phase", ",.0f"), *summary.COSTS[1:])

Column = tuple[str, dict[str, str]]
"""A column's heading, and its cells by line."""


def write(run_dir: Path, drawn: Sequence[Path]) -> Path:
    """Write `run_dir`/report.html and return its path.

    Args:
        drawn: PNG files of the run's stages and of the pipeline itself, to be shown where they belong.

    Raises:
        DataError: there is no run in `run_dir`, or a file of it is malformed.
    """
    page = run_dir / "report.html"
    stages = [_stage(folder, drawn) for folder in stage_dirs(run_dir)]
    pipeline, whole = stages[0]["path"] != run_dir, read_summary(run_dir) or {}
    asks = any(samples(stage["kind"]) for stage in stages)
    environment = jinja2.Environment(
        autoescape=True, finalize=_shown, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    html = template.render(
        title=" / ".join(run_dir.resolve().parts[-2:]),
        path=str(run_dir.resolve()),
        written=_utc(datetime.datetime.now(datetime.UTC).timestamp()),
        stages=stages,
        pipeline=pipeline,
        finished=read_summary(run_dir) is not None,
        questions=whole.get("questions"),
        models=outcome.cells(whole),
        relations=outcome.relations(whole),
        figures=_figures(run_dir, drawn) if pipeline else [],
        results=_lines([column for stage in stages for column in _results(stage, _evaluation)]),
        styles=_lines([column for stage in stages for column in _results(stage, summary.style_lines)]),
        sets=_lines([(s["name"], told) for s in stages if (told := data_cards.lines(s["summary"]))]),
        pairs=_lines([(s["name"], told) for s in stages if (told := preferences.lines(s["summary"]))]),
        rejected=_lines([(s["name"], told) for s in stages if (told := rejection.lines(s["summary"]))]),
        costs=_costs(stages),
        costs_heading=("Time, memory, agreement of engine and trainer" if asks else "Losses, time, memory"),
        asks=asks,
    )
    files.write_text(page, html)
    return page


def _stage(run_dir: Path, drawn: Sequence[Path]) -> dict[str, Any]:
    metrics = run_dir / "metrics.jsonl"
    rows = read_rows(metrics) if metrics.is_file() else []
    finished, starts = read_summary(run_dir), parts(run_dir)
    config = (read_object(run_dir / "config.json") or {}).get("stage") or {}
    record = finished or summary.so_far(run_dir)
    evaluated = [row for row in rows if row.get("kind") == "eval"]
    warnings = [(row.get("step"), _warning(row)) for row in rows if row.get("kind") in ("warning", "hacking")]
    warnings += _incidents([row for row in rows if row.get("kind") == "incident"])
    recoveries = [{k: v for k, v in row.items() if k != "kind"} for row in rows if row.get("kind") == "recovery"]
    return {
        "path": run_dir,
        "name": run_dir.resolve().name,
        "finished": finished is not None,
        "kind": plain(record.get("stage")),
        "summary": record,
        "step": int(max((number(row, "step") or 0.0 for row in rows), default=0.0)),
        "eval_step": evaluated[-1].get("step") if evaluated else None,
        "num_steps": config.get("num_steps"),
        "last_written": _utc(metrics.stat().st_mtime) if rows else None,
        "provenance": provenance(starts),
        "parts": [{key: plain(part.get(key)) for key in ("started", "commit", "seed", "command")} for part in starts],
        "figures": _figures(run_dir, drawn),
        "warnings": warnings,
        "recoveries": {
            "count": len(recoveries),
            "names": list(dict.fromkeys(name for row in recoveries[-MAX_RECOVERIES:] for name in row)),
            "rows": [{k: plain(v) for k, v in row.items()} for row in recoveries[-MAX_RECOVERIES:]],
        },
        "settings": settings(run_dir),
        "answers": {
            step: [_answer(row) for row in some] for step, some in early_and_late(run_dir, NUM_ANSWERS).items()
        },
    }


def _warning(row: Row) -> str:
    if row.get("kind") == "warning":
        return plain(row.get("warning"))
    what = "reward hacking" if row.get("grade") == "parted" else "reward hacking suspected"
    return f"{what}: {plain(row.get('text'))}"


def _incidents(rows: Sequence[Row]) -> list[tuple[Any, str]]:
    """Steps whose numbers were wrong, and what was done about each; of many the last."""
    told = [(row.get("step"), f"{plain(row.get('text'))} ({plain(row.get('action'))})") for row in rows]
    more = len(told) - MAX_INCIDENTS
    before = [(told[0][0], f"the first of {more} more steps whose numbers were wrong")] if more > 0 else []
    return before + told[-MAX_INCIDENTS:]


def _figures(run_dir: Path, drawn: Sequence[Path]) -> list[dict[str, str]]:
    return [
        {
            "name": file.stem,
            "caption": CAPTIONS.get(file.stem, ""),
            "png": base64.b64encode(file.read_bytes()).decode("ascii"),
        }
        for file in drawn
        if file.parent == run_dir / "figures"
    ]


def _results(stage: dict[str, Any], lines: Any) -> list[Column]:
    """The columns of a stage's evaluations: before, and after or so far, or one for each model; none where it has
    none."""
    name = stage["name"]
    if models := stage["summary"].get("models"):
        return [(f"{name}: {model}", lines(of, "after")) for model, of in models.items()]
    after = "after" if stage["finished"] else f"so far, step {stage['eval_step']}"
    only = learns_from(stage["kind"]) == "nothing"  # its one evaluation has no before and after
    headings = {"before": f"{name}: before", "after": name if only else f"{name}: {after}"}
    columns = [(heading, lines(stage["summary"], when)) for when, heading in headings.items()]
    return [(heading, cells) for heading, cells in columns if cells]


def _evaluation(record: Row, when: str) -> dict[str, str]:
    lines, result = summary.eval_lines(record, when), (record.get("eval") or {}).get(when)
    counts = {"answers, questions": f"{result['num_answers']:,}, {result['num_questions']:,}"} if result else {}
    return lines | counts


def _costs(stages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The table of what stages took, its lines in the order of `COSTS` whichever stage has them."""
    tables = [
        _lines([(stage["name"], summary.cost_lines(stage["summary"], [cost])) for stage in stages]) for cost in COSTS
    ]
    return {"headings": tables[0]["headings"], "lines": {k: v for table in tables for k, v in table["lines"].items()}}


def _lines(columns: Sequence[Column]) -> dict[str, Any]:
    """A table: its headings, and its lines as name -> cells."""
    names = dict.fromkeys(name for _, cells in columns for name in cells)
    return {
        "headings": [heading for heading, _ in columns],
        "lines": {name: [cells.get(name, "") for _, cells in columns] for name in names},
    }


def _answer(row: Row) -> dict[str, Any]:
    scored, scores = row.get("status", "scored") == "scored", row.get("parts") or {}
    verdict = "right" if scores.get("accuracy") == 1 else "wrong"
    return {
        "verdict": verdict if scored and "accuracy" in scores else "no verdict",
        "question": cut(str(row.get("question", "")), MAX_ANSWER_CHARS),
        "text": pieces(cut(str(row.get("text", "")), MAX_ANSWER_CHARS)),
        "truth": cut(str(row.get("truth", "")), MAX_ANSWER_CHARS),
        "reward": plain(row.get("reward")) if scored else "none",  # a failure is no zero
        "parts": {str(name): plain(value) for name, value in scores.items()},
        "tokens": plain(row.get("tokens")),
        "truncated": row.get("finish_reason") == "length",
        "status": plain(row.get("status")),
    }


def _shown(value: Any) -> Any:
    """What the template makes of every value before it is escaped; Markup is what a macro of its own has made."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _utc(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
