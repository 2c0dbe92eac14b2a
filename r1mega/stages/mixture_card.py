"""The data card of a mixture: what is in the set, beside the report's 800K; what was left out, through all stages
that made its rows; and what nobody knows of it. card.json holds it, card.md is the same for people.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r1mega.data.mixed_rows import DOMAINS, THINKING
from r1mega.errors import DataError
from r1mega.recipe.mixture import MakeMixture
from r1mega.stages.mixture_choice import Outcomes, Places, counts
from r1mega.stages.mixture_reading import Looking, Rows, Seen

DECISIONS = "decisions.jsonl"
"""Beside the rows that a stage wrote: a line for each that it had before it, with its domain and outcome."""
CARD, SUMMARY = "card.json", "summary.json"
REPORT: Mapping[str, int] = {"math": 395_285, "code": 211_129, "stem": 10_124, "logic": 10_395, "general": 177_812}
"""Samples of the report's 800K set by domain."""
REPORT_TOTAL, REPORT_TOKENS = 804_745, 5_355
"""Samples in all, and mean tokens of one."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BINS_A_DECADE = 8
SHOWN = 30
"""Sources and policies that card.md shows, the largest first; card.json has all."""
Card = dict[str, Any]


def card_of(
    config: MakeMixture, look: Looking, seen: Seen, outcomes: Outcomes, order: Places, earlier: Sequence[Card]
) -> Card:
    """The card of the rows at these places.

    Args:
        earlier: of `earlier_stages`.
    """
    rows = seen.rows[order]
    card: Card = {
        "rows": len(rows),
        "questions": len(np.unique(rows["question"])),
        "domains": {name: of for name in DOMAINS if (of := _domain(rows, name, len(rows)))["rows"] or name in REPORT},
        "report": {"domains": dict(REPORT), "rows": REPORT_TOTAL, "mean_tokens": REPORT_TOKENS, "section": "2.3.3"},
        "lengths": _lengths(rows),
        "thinking": _thinking(rows),
        "sources": _named(seen, rows, "source"),
        "policies": [{**json.loads(name), "rows": num} for name, num in _named(seen, rows, "policy").items() if name],
        "verdicts": _named(seen, rows, "verdict"),
        "rewritten": _named(seen, rows, "rewrite", without=""),
        "reviewed": _named(seen, rows, "review", without=""),
        "review": dict(seen.review),
        "imported": int(rows["imported"].sum()),
        "tables": [_table(config, seen, outcomes, i) for i in range(len(config.data))],
        "outcomes": counts(outcomes),
        "earlier": list(earlier),
        "decontamination": _decontamination(config, look, seen, outcomes),
        "seed": config.seed,
        "max_per_question": config.max_per_question,
    }
    return {**card, "not_known": list(_not_known(card, seen.files))}


def _domain(rows: Rows, name: str, total: int) -> Card:
    some = rows[rows["domain"] == DOMAINS.index(name)]
    return {
        "rows": len(some),
        "share": len(some) / total,
        "questions": len(np.unique(some["question"])),
        "lengths": _lengths(some),
        "thinking": _thinking(some),
    }


def _lengths(rows: Rows) -> Card:
    tokens = rows["tokens"][rows["tokens"] >= 0]
    return {"characters": _quantiles(rows["characters"]), "tokens": _quantiles(tokens)}


def _quantiles(lengths: Any) -> Card:
    """Of answers; "histogram" is counts in bins whose edges are powers of 10 ** (1 / BINS_A_DECADE)."""
    if not len(lengths):
        return {"known": 0}
    bins = np.floor(np.log10(np.maximum(lengths, 1)) * BINS_A_DECADE + 1e-9).astype(np.int64)
    first, last = int(bins.min()), int(bins.max())
    return {
        "known": len(lengths),
        "mean": float(lengths.mean()),
        "min": int(lengths.min()),
        "quantiles": {f"{at:g}": float(np.quantile(lengths, at)) for at in QUANTILES},
        "max": int(lengths.max()),
        "histogram": {
            "edges": [float(10 ** (k / BINS_A_DECADE)) for k in range(first, last + 2)],
            "counts": np.bincount(bins - first).tolist(),
        },
    }


def _thinking(rows: Rows) -> dict[str, int]:
    found = {name: int((rows["thinking"] == i).sum()) for i, name in enumerate(THINKING)}
    return {**found, "not_known": int((rows["thinking"] < 0).sum())}


def _named(seen: Seen, rows: Rows, field: str, without: str | None = None) -> dict[str, int]:
    """Name -> rows, the largest first."""
    places, numbers = np.unique(rows[field], return_counts=True)
    found = {str(seen.names[place]): int(num) for place, num in zip(places, numbers, strict=True)}
    largest_first = sorted(found.items(), key=lambda one: (-one[1], one[0]))
    return {name: num for name, num in largest_first if name != without}


def _table(config: MakeMixture, seen: Seen, outcomes: Outcomes, number: int) -> Card:
    table, here = config.data[number], seen.rows["table"] == number
    return {
        "files": [str(file) for file in table.files],
        "domain": table.domain,
        "num": table.num,
        "share": table.share,
        "read": int(here.sum()),
        "outcomes": counts(outcomes[here]),
    }


def _decontamination(config: MakeMixture, look: Looking, seen: Seen, outcomes: Outcomes) -> Card | None:
    if config.decontaminate is None or look.evaluations is None:
        return None
    return {
        "files": [str(file) for file in config.decontaminate.files],
        "words": config.decontaminate.words,
        "rows_with_hits": int(seen.rows["contaminated"].sum()),
        "rows_left_out": counts(outcomes)["contaminated"],
        "hits": len(seen.hits),
        "answers_too_short": look.evaluations.too_short,
    }


# ---- what earlier stages left out ----------------------------------------------------------------------------------


def earlier_stages(files: Sequence[Path]) -> list[Card]:
    """What each stage that left a file had before it, by domain and outcome; of a mixture its earlier ones too.

    Raises:
        DataError: what one wrote beside its rows cannot be read.
    """
    found: dict[str, Card] = {}
    for folder in dict.fromkeys(file.resolve().parent for file in files):
        if not _left(folder):
            continue
        of_domain: dict[str, Counter[str]] = {}
        for domain, outcome in _decided(folder / DECISIONS):
            of_domain.setdefault(domain, Counter())[outcome] += 1
        before = _object(folder / CARD).get("earlier", []) if (folder / CARD).is_file() else []
        for one in before:
            found.setdefault(one["run"], one)
        found[str(folder)] = {
            "run": str(folder),
            "stage": _object(folder / SUMMARY).get("stage"),
            "domains": {domain: dict(outcomes.most_common()) for domain, outcomes in sorted(of_domain.items())},
        }
    return list(found.values())


def looked_into(files: Sequence[Path]) -> list[Path]:
    """All that `earlier_stages` reads."""
    folders = dict.fromkeys(file.resolve().parent for file in files)
    told = (folder / name for folder in folders if _left(folder) for name in (DECISIONS, SUMMARY, CARD))
    return [file for file in told if file.is_file()]


def _left(folder: Path) -> bool:
    """Whether a finished stage has left there what became of its rows."""
    return (folder / DECISIONS).is_file() and (folder / SUMMARY).is_file() and "stage" in _object(folder / SUMMARY)


def _decided(file: Path) -> Iterator[tuple[str, str]]:
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    yield str(row["domain"]), str(row["outcome"])
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(
                        f"{file}, line {number}: no object with domain and outcome, as the stage writes it: {error}"
                    ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    return found if isinstance(found, dict) else {}


# ---- what is not known ---------------------------------------------------------------------------------------------


def _not_known(card: Card, files: Sequence[Path]) -> Iterator[str]:
    """A sentence for everything that nobody knows of the set."""
    total, unknown = card["rows"], card["rows"] - card["lengths"]["tokens"]["known"]
    if unknown:
        yield f"Tokens of {unknown:,} of {total:,} answers: nobody counted them; their characters are known."
    if card["lengths"]["tokens"]["known"] > 0:
        yield "Tokens are those of the model that answered, before a rewriting or an edit, and no student's."
    if card["imported"]:
        yield f"Which model, or who, wrote the answers of {card['imported']:,} rows: they are imported."
    if num := card["thinking"]["not_known"]:
        yield f"Whether {num:,} answers have a chain of thought: they are imported, and no tags mark one."
    if num := card["verdicts"].get("none", 0) + card["verdicts"].get("", 0):
        yield f"Whether {num:,} answers are right: no rule and no judge has looked at them."
    if num := card["reviewed"].get("edited", 0):
        yield f"Whether {num:,} answers are right as people edited them: the verdicts are of what stood there before."
    if num := total - sum(card["reviewed"].values()):
        yield f"What people would say of {num:,} rows: none of them was reviewed."
    if card["decontamination"] is None:
        yield "Whether rows share words with an evaluation: the stage was given none ([decontaminate])."
    for file in (file for file in files if not _left(file.resolve().parent)):
        yield f"What was left out before {file.name} was written: no stage has left its {DECISIONS} beside it."


# ---- for people ----------------------------------------------------------------------------------------------------


def as_markdown(card: Card) -> str:
    """card.md."""
    parts = ["# Data card", f"{card['rows']:,} conversations, {card['questions']:,} different questions."]
    parts += ["## Domains", *_domains(card), "## Lengths of answers", *_length_table(card)]
    parts += ["## Chain of thought", _table_of(("domain", *THINKING, "not known"), _thinking_lines(card))]
    parts += ["## Where the rows come from", *_origins(card)]
    parts += ["## What was left out here", *_left_out(card), "## And in the stages before", *_before(card)]
    parts += ["## Decontamination", _decontaminated(card)]
    parts += ["## What is not known", "\n".join(f"- {line}" for line in card["not_known"]) or "Nothing of the above."]
    return "\n\n".join(parts) + "\n"


def _table_of(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    shown = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in shown)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}"
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _domains(card: Card) -> Iterator[str]:
    lines = [
        (name, of["rows"], f"{of['share']:.1%}", of["questions"], *_of_report(name))
        for name, of in card["domains"].items()
    ]
    total = ("all", card["rows"], "100%", card["questions"], REPORT_TOTAL, "100%")
    yield _table_of(("domain", "rows", "share", "questions", "report's rows", "report's share"), [*lines, total])


def _of_report(name: str) -> tuple[Any, str]:
    return (REPORT[name], f"{REPORT[name] / REPORT_TOTAL:.1%}") if name in REPORT else ("none", "")


def _length_table(card: Card) -> Iterator[str]:
    head = ("domain", "in", "answers", "mean", "least", *(f"{at:.0%}" for at in QUANTILES), "most")
    lines: list[Sequence[Any]] = []
    for name, of in [*card["domains"].items(), ("all", card)]:
        for unit, lengths in of["lengths"].items():
            if lengths["known"]:
                quantiles = lengths["quantiles"].values()
                lines.append(
                    (name, unit, lengths["known"], lengths["mean"], lengths["min"], *quantiles, lengths["max"])
                )
    yield _table_of(head, lines)
    yield f"The report's mean is {REPORT_TOKENS:,} tokens."


def _thinking_lines(card: Card) -> list[Sequence[Any]]:
    return [(name, *of["thinking"].values()) for name, of in [*card["domains"].items(), ("all", card)]]


def _origins(card: Card) -> Iterator[str]:
    sources = list(card["sources"].items())
    yield _table_of(("source of the question", "rows"), sources[:SHOWN])
    if len(sources) > SHOWN:
        yield f"And {len(sources) - SHOWN:,} more sources, in {CARD}."
    policies = [
        (of.get("model", ""), of.get("endpoint", "our own server"), of.get("start", "")[:12], of["rows"])
        for of in card["policies"]
    ]
    if policies:
        yield _table_of(("who answered", "at", "weights", "rows"), policies[:SHOWN])
    if len(policies) > SHOWN:
        yield f"And {len(policies) - SHOWN:,} more, in {CARD}."
    yield f"{card['imported']:,} rows are imported: conversations of files, without a rollout."
    yield _table_of(("judged by", "rows"), [(name or "nobody", num) for name, num in card["verdicts"].items()])
    for what, of in (("rewritten", card["rewritten"]), ("reviewed by people", card["reviewed"])):
        told = ", ".join(f"{num:,} {name}" for name, num in of.items())
        yield f"{what.capitalize()}: {told or 'none'}."


def _left_out(card: Card) -> Iterator[str]:
    names = list(card["outcomes"])
    lines = [
        (", ".join(Path(file).name for file in of["files"]), of["read"], *(of["outcomes"][name] for name in names))
        for of in card["tables"]
    ]
    total = ("all", sum(of["read"] for of in card["tables"]), *card["outcomes"].values())
    yield _table_of(("files", "read", *(name.replace("_", " ") for name in names)), [*lines, total])


def _before(card: Card) -> Iterator[str]:
    if not card["earlier"]:
        yield "Nothing is known of any."
    for stage in card["earlier"]:
        names = list(dict.fromkeys(name for of in stage["domains"].values() for name in of))
        lines = [(domain, *(of.get(name, 0) for name in names)) for domain, of in stage["domains"].items()]
        yield f"{Path(stage['run']).name} ({stage['stage'] or 'a stage of no name'}):"
        yield _table_of(("domain", *(name.replace("_", " ") for name in names)), lines)


def _decontaminated(card: Card) -> str:
    of = card["decontamination"]
    if of is None:
        return "None was asked for."
    against = ", ".join(Path(file).name for file in of["files"])
    return (
        f"{of['rows_left_out']:,} rows are left out that share {of['words']} words in a row with {against}; "
        f"{of['answers_too_short']:,} answers of these are shorter than that, and were not looked for."
    )
