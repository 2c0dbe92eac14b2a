"""What a chain came to, from its summary.json: the table of its models, its relations, and a figure of the scores.

`pipeline.outcome` has judged them and says what stands there; nothing is judged here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from r1mega.errors import DataError
from r1mega.report.catalogue import MODEL_TABLE
from r1mega.report.figures import COLORS, new_axes
from r1mega.report.rows import Row, number, read_summary
from r1mega.report.text import visible

NO_SCORE = "no score"
WORDS = {"higher": "higher", "lower": "lower", "not_lower": "not lower"}
"""What a part claims -> the words for it."""
GAP = 0.25
"""Between the bars of two models, as a share of what a model's bars take."""


def cells(summary: Row) -> dict[str, Any] | None:
    """The table as `page.html` draws one: its headings, and its lines as label -> cells; None where there is none.

    Raises DataError where the summary's table is malformed.
    """
    made = summary.get("table")
    if not made:
        return None
    try:
        headings = list(made["columns"].values())
        lines = {
            str(row["label"]): [_cell(row["cells"].get(column)) for column in made["columns"]] for row in made["rows"]
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"summary.json: its table is not one: {error!r}") from error
    return {"headings": headings, "lines": lines}


def table(run_dir: Path) -> Table | None:
    """The same for the terminal; None where the run has no table. Raises as `cells`."""
    made = cells(read_summary(run_dir) or {})
    if made is None:
        return None
    out = Table(title="The pipeline's models, on held-out questions", title_justify="left", show_lines=False)
    out.add_column("", no_wrap=True)
    for heading in made["headings"]:
        out.add_column(Text(visible(heading)), justify="right")
    for label, line in made["lines"].items():
        out.add_row(visible(label), *line)
    return out


def relations(summary: Row) -> list[dict[str, Any]]:
    """Each relation with its outcome, claim and parts, in words.

    Raises DataError where the summary's relations are malformed.
    """
    try:
        labels = {row["model"]: str(row["label"]) for row in (summary.get("table") or {}).get("rows", ())}
        headings = (summary.get("table") or {}).get("columns", {})
        return [
            {
                "outcome": relation["outcome"] + (", reversed" if relation["reversed"] else ""),
                "claim": relation["claim"],
                "holds": all(part["holds"] for part in relation["parts"]),
                "parts": [_part(part, labels, headings) for part in relation["parts"]],
            }
            for relation in summary.get("relations") or ()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"summary.json: its relations are none: {error!r}") from error


def told(run_dir: Path) -> list[str]:
    """The relations for the terminal, a line each and one for each part; [] where the run has none."""
    lines: list[str] = []
    for relation in relations(read_summary(run_dir) or {}):
        lines.append(f"{relation['outcome']}: {visible(relation['claim'])}")
        lines += [f"    {visible(part)}" for part in relation["parts"]]
    return lines


def draw(run_dir: Path) -> list[Path]:
    """Draw the scores as bars with their intervals; [] where the run has no table. Raises as `cells`."""
    summary = read_summary(run_dir) or {}
    made = summary.get("table") if cells(summary) else None
    if not made or not any(_scored(row, column) for row in made["rows"] for column in made["columns"]):
        return []
    path = run_dir / "figures" / f"{MODEL_TABLE}.png"
    labels = [str(row["label"]) for row in made["rows"]]
    width = (1 - GAP) / len(made["columns"])
    with new_axes(path, "Scores of the pipeline's models", "", "score (bars: 95%, by question)") as axes:
        for i, (column, heading) in enumerate(made["columns"].items()):
            here = [(j, cell) for j, row in enumerate(made["rows"]) if (cell := _scored(row, column))]
            means = [cell["mean"] for _, cell in here]
            arms = [
                [max(m - cell["low"], 0) for m, (_, cell) in zip(means, here, strict=True)],
                [max(cell["high"] - m, 0) for m, (_, cell) in zip(means, here, strict=True)],
            ]
            left = [j + (i + 0.5) * width - (1 - GAP) / 2 for j, _ in here]
            axes.bar(left, means, width, yerr=arms, capsize=2, color=COLORS[i % len(COLORS)], label=visible(heading))
        axes.set_xticks(range(len(labels)), [visible(label) for label in labels], rotation=30, ha="right")
        axes.set_ylim(0, 1.02)
        axes.grid(visible=False, axis="x")
        # Outside the axes, where no bar can stand behind it.
        axes.figure.legend(loc="outside lower center", ncols=min(4, len(made["columns"])))
    return [path]


def _scored(row: Mapping[str, Any], column: str) -> Row | None:
    """A model's score in a column; None where it has none."""
    cell = row["cells"].get(column) or {}
    return cell if all(number(cell, name) is not None for name in ("mean", "low", "high")) else None


def _cell(cell: Mapping[str, Any] | None) -> str:
    if not cell:
        return ""
    without = f", {cell['without_score']:,} without a score" if cell["without_score"] else ""
    if "mean" not in cell:
        return f"{NO_SCORE}{without}"
    interval = f"{cell['mean']:.1%} ({100 * cell['low']:.1f} to {100 * cell['high']:.1f})"
    return f"{interval}, n = {cell['num_questions']:,}{without}"


def _part(part: Mapping[str, Any], labels: Mapping[str, str], headings: Mapping[str, str]) -> str:
    a, b = (labels.get(part[name], part[name]) for name in ("a", "b"))
    column = headings.get(part["column"], part["column"])
    claimed = f"{b} {WORDS.get(part['is'], part['is'])} than {a}"
    if part["margin"]:
        claimed += f" by more than {100 * part['margin']:g} points"
    if "why" in part:
        return f"{column}, {b} against {a}: not judged: {part['why']}"
    difference = part["difference"]
    ends = f"{100 * difference['low']:+.1f} to {100 * difference['high']:+.1f}"
    borne_out = (
        "as claimed" if part["holds"] else "the reverse" if part["reversed"] else "which the interval leaves open"
    )
    notes = [f"{part['num_questions']:,} questions", *_notes(part)]
    return f"{column}: {claimed}: {100 * difference['mean']:+.1f} points ({ends}; {', '.join(notes)}), {borne_out}"


def _notes(part: Mapping[str, Any]) -> Sequence[str]:
    left_out = [f"{part['left_out']:,} left out"] if part["left_out"] else []
    return [*left_out, *([] if part["prompts"] == "the same" else [f"asked in {part['prompts']} prompt"])]
