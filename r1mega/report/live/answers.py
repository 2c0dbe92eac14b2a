"""Answers of the newest rollout, as text that can do nothing where it is shown."""

import json
import re
from pathlib import Path
from typing import Any

from r1mega.report.live.tail import CHUNK_BYTES
from r1mega.report.runs import plain
from r1mega.report.text import cut, pieces

NUM_SHOWN = 6
MAX_CHARS = 4000
"""Of a text that is shown."""
READ_BYTES = 2 * CHUNK_BYTES
"""Of the beginning of a file of samples; a rollout of the report's size is a gigabyte."""
OF_A_STEP = re.compile(r"step_(0|[1-9][0-9]*)\.jsonl", re.ASCII)


def newest_answers(stage: Path) -> tuple[str, list[dict[str, Any]]]:
    """The first answer to each of the newest rollout's first questions, and a name that is another one when they are.

    Texts come in pieces [kind, text], as `text.pieces` has them.
    """
    try:
        names = [(int(name[1]), path) for path in (stage / "samples").iterdir() if (name := _step(path))]
        if not names:
            return "", []
        step, file = max(names)
        status = file.stat()
        with file.open("rb") as opened:
            data = opened.read(READ_BYTES)
    except OSError:
        return "", []
    whole = data.split(b"\n")[:-1]
    rows: dict[str, dict[str, Any]] = {}
    for line in whole:
        if len(rows) == NUM_SHOWN:
            break
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.setdefault(str(row.get("question")), row)
    return f"{step}.{status.st_ino}.{min(len(data), status.st_size)}", [_shown(row, step) for row in rows.values()]


def _step(path: Path) -> re.Match[str] | None:
    return OF_A_STEP.fullmatch(path.name)


def _shown(row: dict[str, Any], step: int) -> dict[str, Any]:
    scored, parts = row.get("status", "scored") == "scored", row.get("parts")
    parts = parts if isinstance(parts, dict) else {}
    right = "right" if parts.get("accuracy") == 1 else "wrong"
    said = [f"truth {plain(row.get('truth'))}", f"reward {plain(row.get('reward'))}"]
    said += [f"{name} {plain(value)}" for name, value in parts.items()]
    said += [f"{plain(row['tokens'])} tokens"] if row.get("tokens") is not None else []
    said += ["cut at the token limit"] if row.get("finish_reason") == "length" else []
    return {
        "step": step,
        "verdict": right if scored and "accuracy" in parts else "no verdict",
        "question": _pieces(row.get("question")),
        "text": _pieces(row.get("text")),
        "says": _pieces(" · ".join(said)),
    }


def _pieces(value: Any) -> list[tuple[str, str]]:
    text = value if isinstance(value, str) else plain(value)
    return [(kind, part) for kind, part in pieces(cut(text, MAX_CHARS))]
