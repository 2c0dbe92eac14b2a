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


class NewestAnswers:
    """Of one stage; a file that has not changed is read once."""

    def __init__(self, stage: Path) -> None:
        self._samples = stage / "samples"
        self._known: tuple[str, list[dict[str, Any]]] = "", []

    def look(self) -> tuple[str, list[dict[str, Any]]]:
        """The first answer to each of the newest rollout's first questions, and a name that is another one when they
        are.

        Texts come in pieces [kind, text], as `text.pieces` has them.
        """
        try:
            names = [(int(name[1]), path) for path in self._samples.iterdir() if (name := _step(path))]
            if not names:
                return "", []
            step, file = max(names)
            status = file.stat()
            name = f"{step}.{status.st_ino}.{min(READ_BYTES, status.st_size)}"
            if name != self._known[0]:
                with file.open("rb") as opened:
                    self._known = name, [_shown(row, step) for row in _firsts(opened.read(READ_BYTES))]
        except OSError:
            return "", []
        return self._known


def _firsts(data: bytes) -> list[dict[str, Any]]:
    """The first row of each of the first questions among whole lines."""
    rows: dict[str, dict[str, Any]] = {}
    for line in data.split(b"\n")[:-1]:
        if len(rows) == NUM_SHOWN:
            break
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.setdefault(str(row.get("question")), row)
    return list(rows.values())


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
