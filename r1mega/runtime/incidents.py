"""Optimiser steps whose numbers were wrong, and what became of each: incidents.jsonl in the run directory.

Data that is left out of a run, and batches that it passes over, are known by this file alone, so it is part of what a
run resumes from: it is written whole before the decision takes effect. A run that resumes takes its steps after the
checkpoint again and decides on them again, so their lines go (`kept_at`); those of roll-backs stay, since they say
what the steps after the checkpoint learn from. Torch-free.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from r1mega.errors import CheckpointError
from r1mega.runtime import files

FILE = "incidents.jsonl"
TEXTS = "incidents"
"""The folder with what such steps learnt from, a file step_N.jsonl each."""

Action = Literal["log", "stop", "skip", "drop_data", "roll_back"]
COUNTED: Mapping[Action, str] = {
    "skip": "steps skipped", "drop_data": "steps whose data was dropped", "roll_back": "roll-backs",
}  # fmt: skip
"""What summaries call the actions that change a run."""


@dataclass(frozen=True)
class Incident:
    """A step whose numbers were wrong."""

    step: int
    """Which one, as metrics.jsonl numbers them: the first is 1."""
    what: Literal["non_finite", "spike"]
    action: Action
    text: str
    """What was seen, for people."""
    data: tuple[str, ...] = ()
    """Names of the documents or questions that it learnt from; of an action that leaves them out or is to be looked
    into."""
    to: int = 0
    """Of a roll-back: the step whose weights the run went back to."""
    passed: int = 0
    """Of a roll-back: steps from `to` on whose data is passed over."""


def read(run_dir: Path) -> list[Incident]:
    """Those of a run, in order. Raises CheckpointError where the file was changed by hand."""
    file = run_dir / FILE
    if not file.is_file():
        return []
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return [Incident(**{**row, "data": tuple(row.get("data", ()))}) for row in rows]
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); the file was changed by hand") from None


def write(run_dir: Path, incidents: Sequence[Incident]) -> None:
    """Replace a run's by these; on disk when it returns."""
    files.write_jsonl(run_dir / FILE, map(asdict, incidents))


def kept_at(incidents: Sequence[Incident], step: int) -> list[Incident]:
    """What holds of a run that goes on after `step` steps."""
    return [one for one in incidents if one.step <= step or one.action == "roll_back"]


def counts(run_dir: Path) -> dict[str, int]:
    """Action -> how many, by the names of `COUNTED`, and how many documents or questions were dropped; without those
    that are 0."""
    found = read(run_dir)
    of = Counter(COUNTED[one.action] for one in found if one.action in COUNTED)
    dropped = {name for one in found if one.action == "drop_data" for name in one.data}
    return dict(of) | ({"documents or questions dropped": len(dropped)} if dropped else {})


def row(incident: Incident, figures: Mapping[str, float]) -> dict[str, Any]:
    """As metrics.jsonl has it, without its step; figures: of the step, under names of their own."""
    told: dict[str, Any] = {"what": incident.what, "action": incident.action, "text": incident.text}
    told |= {f"incident/{name}": value for name, value in figures.items()}
    return told | ({"to": incident.to} if incident.action == "roll_back" else {})
