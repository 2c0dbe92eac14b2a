"""Files of questions whose rows have `task`, `question` and `truth`, and questions of either side of the split."""

import hashlib
import json
from pathlib import Path
from typing import Any

from r1mega.data.sources.jsonl import JSONL

KNOWN = ["chain_sum", "products"]
ROW = {"task": "chain_sum", "question": "1 + 1 =", "truth": "2"}


def on_side(held_out: bool, num: int) -> list[str]:
    """Questions of one side, told by the definition: SHA-256's first 8 bytes, one in eight."""
    found, i = [], 0
    while len(found) < num:
        text = f"{i} + 1 ="
        if (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 8 == 0) == held_out:
            found.append(text)
        i += 1
    return found


TRAINED, HELD = on_side(False, 30), on_side(True, 12)


def write(path: Path, *questions: str | dict[str, Any]) -> Path:
    rows = [q if isinstance(q, dict) else {**ROW, "question": q} for q in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def file(path: Path, **settings: Any) -> JSONL:
    return JSONL(path=path, **({"verifier_column": "task"} | settings))


def own(path: Path | str, **settings: str) -> str:
    """The override that makes a JSONL file a stage's only training questions; `settings` are the table's own."""
    table = {"kind": "jsonl", "path": str(path), "verifier_column": "task", **settings}
    return "questions=[{" + ",".join(f"{name}='{value}'" for name, value in table.items()) + "}]"
