"""`r1mega score`: a file of responses judged, one JSON line a row, in the file's order, and a summary last.

The output is complete up to where it ends, whatever ended it: started again, the same call goes on behind its last
line. Whether it is the same call is told by the digests of kind, rows and rewards, kept beside an unfinished output
(`.NAME.unfinished`) and in the summary of a finished one.
"""

import collections
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from r1mega.data import lines
from r1mega.errors import DataError, RewardError
from r1mega.rewards.callers import connected
from r1mega.rewards.code import Code
from r1mega.rewards.gathering import gathered
from r1mega.rewards.judges import Judges, preloaded
from r1mega.rewards.language import Language
from r1mega.rewards.own import loads
from r1mega.rewards.pool import Pool, TaskOutcome
from r1mega.rewards.rows import JUDGES, Kind, Response, asked_of_rubric, read_row
from r1mega.rewards.rubric import Rubric
from r1mega.rewards.sandbox.sound import fault_of_this_machine
from r1mega.rewards.worker import PRELOADED, Limits
from r1mega.runtime.files import write_json
from r1mega.runtime.progress import Bar
from r1mega.samples import Verdict, VerdictStatus

AHEAD = 1_000
"""Rows that are with the workers before the first of them is written."""
_LIMITS: Mapping[str, Limits] = {"code": Code.needs}
"""Of a task, where its kind has limits of its own within."""
_LIBRARY: Mapping[str, tuple[str, ...]] = {
    "language": Language.imports,
    "reasoning-gym": ("reasoning_gym",),
}


@dataclass
class Summary:
    """What a scored file comes to."""

    rows: int = 0
    scored: int = 0
    unscorable: int = 0
    failed: int = 0
    value: float = 0.0
    """Sum over the scored rows."""

    def add(self, line: Mapping[str, Any]) -> None:
        self.rows += 1
        self.value += line["value"] if line["verdict"] == "scored" else 0.0
        setattr(self, line["verdict"], getattr(self, line["verdict"]) + 1)

    def as_json(self, kind: Kind, digest: str, seconds: float) -> dict[str, Any]:
        mean = self.value / self.scored if self.scored else None
        return {
            "summary": {
                "kind": kind, "rows": self.rows, "scored": self.scored, "unscorable": self.unscorable,
                "failed": self.failed, "mean": mean, "seconds": round(seconds, 3), "of": digest,
            }
        }  # fmt: skip


def score(kind: Kind, file: Path, out: Path | None, rubric: Rubric | None, workers: int | None = None) -> Summary:
    """Judge the rows of `file`, into `out` or to standard output.

    Raises:
        DataError: a row is malformed, or an id stands twice; `out` is of something else.
        RewardError: the rows are code, and this machine has no sandbox, or no compiler.
    """
    rows = read_rows(kind, file, rubric)
    if kind == "code":
        fault = fault_of_this_machine(cpp=any(row.fields["entry"].get("language") == "cpp" for row in rows))
        if fault is not None:
            raise RewardError(fault)
    digest = digest_of(kind, rows, rubric)
    started = time.monotonic()
    if out is None:
        return _judge(kind, rows, rubric, sys.stdout, Summary(), digest, started, workers)
    summary = Summary()
    position = _position_in(out, rows, digest, summary)
    if position is None:
        return summary
    note = out.with_name(f".{out.name}.unfinished")
    write_json(note, {"of": digest})
    with out.open("r+b" if out.exists() else "w+b") as binary:
        binary.truncate(position)
        binary.seek(position)
        with open(binary.fileno(), "w", encoding="utf-8", closefd=False) as text:
            _judge(kind, rows, rubric, text, summary, digest, started, workers)
            text.flush()
            os.fsync(text.fileno())
    note.unlink()
    return summary


def read_rows(kind: Kind, file: Path, rubric: Rubric | None) -> list[Response]:
    """All rows of a file, checked before any is judged. Raises DataError."""
    found: list[Response] = []
    places: dict[str | int, str] = {}
    for value, where in lines.rows(file, "responses"):
        row = read_row(kind, value, where, rubric)
        if row.id in places:
            raise DataError(f"{where}: the id {row.id!r} is that of {places[row.id]} too")
        places[row.id] = where
        found.append(row)
    if not found:
        raise DataError(f"{file}: there is no row in it")
    return found


def digest_of(kind: Kind, rows: Sequence[Response], rubric: Rubric | None) -> str:
    """What is judged, by content: kind, rows and rewards."""
    digest = hashlib.sha256(kind.encode())
    for row in rows:
        digest.update(json.dumps([row.id, row.response, dict(row.fields)], sort_keys=True, default=str).encode())
    if rubric is not None:
        rewards = {n: [reward.model_dump(mode="json"), reward.content()] for n, reward in rubric.rewards.items()}
        digest.update(json.dumps([rewards, rubric.truncated], sort_keys=True).encode())
    return digest.hexdigest()


def _position_in(out: Path, rows: Sequence[Response], digest: str, summary: Summary) -> int | None:
    """Where an unfinished output goes on, with its rows added to the summary; None where it is finished.

    Raises DataError where it is of something else.
    """
    if not out.exists() or out.stat().st_size == 0:
        return 0
    note = out.with_name(f".{out.name}.unfinished")
    refusal = DataError(f"{out} holds other verdicts than of these rows: move it, or write to another -o")
    values = list(_whole_lines(out))
    last = values[-1][0] if values else {}
    if "summary" in last:
        if last["summary"].get("of") != digest:
            raise refusal
        note.unlink(missing_ok=True)
        return None
    if not note.exists() or _of(note.read_text(encoding="utf-8")) != digest or len(values) > len(rows):
        raise refusal
    for (value, _), row in zip(values, rows, strict=False):
        if value.get("id") != row.id:
            raise refusal
        summary.add(value)
    return sum(length for _, length in values)


def _whole_lines(out: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The values of an output's lines with their lengths in bytes, up to one that is torn."""
    with out.open("rb") as file:
        for line in file:
            try:
                value = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                value = None
            if not isinstance(value, dict):
                return
            yield value, len(line)


def _of(text: str) -> str | None:
    try:
        return json.loads(text).get("of")
    except (ValueError, AttributeError):
        return None


def _judge(
    kind: Kind,
    rows: Sequence[Response],
    rubric: Rubric | None,
    out: IO[str],
    summary: Summary,
    digest: str,
    started: float,
    workers: int | None,
) -> Summary:
    """Judge the rows behind those that `summary` has already, and write them and the summary."""
    left = rows[summary.rows :]
    imports, loaded = PRELOADED + _LIBRARY.get(kind, ()), loads({} if rubric is None else rubric.rewards)
    if rubric is not None:
        imports = preloaded({row.fields["verifier"] for row in left}, rubric.rewards)
    silent = not sys.stderr.isatty()
    with (
        Pool(workers, _LIMITS.get(kind), preloaded=imports, loads=loaded) as pool,
        connected({} if rubric is None else rubric.rewards, None) as callers,
        Bar(f"score {kind}", len(rows), unit="row", done=summary.rows, silent=silent) as bar,
    ):
        for row, outcome in _outcomes(Judges(pool, callers), kind, left, rubric):
            line = line_of(row, outcome)
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
            out.flush()
            summary.add(line)
            bar.advance()
        out.write(json.dumps(summary.as_json(kind, digest, time.monotonic() - started)) + "\n")
        out.flush()
    return summary


def _outcomes(
    judges: Judges, kind: Kind, rows: Sequence[Response], rubric: Rubric | None
) -> Iterator[tuple[Response, TaskOutcome]]:
    """The outcome of each row, in order, with at most AHEAD of them under way."""
    waiting: collections.deque[tuple[Response, Future[TaskOutcome]]] = collections.deque()
    coming = iter(rows)
    for row in itertools.islice(coming, AHEAD):
        waiting.append((row, _asked(judges, kind, row, rubric)))
    while waiting:
        row, future = waiting.popleft()
        yield row, future.result()
        for following in itertools.islice(coming, 1):
            waiting.append((following, _asked(judges, kind, following, rubric)))


def _asked(judges: Judges, kind: Kind, row: Response, rubric: Rubric | None) -> Future[TaskOutcome]:
    if rubric is None:
        return judges.pool.submit(JUDGES[kind], row)
    prompt, answer, step = asked_of_rubric(row)
    judged = judges.judge_one(rubric, prompt, answer, [answer], step)
    return gathered([judged], lambda found: TaskOutcome("done", found[0][0], seconds=found[0][1]))


def line_of(row: Response, outcome: TaskOutcome) -> dict[str, Any]:
    """A row's line: what the answer itself caused is scored 0, what the infrastructure caused is failed."""
    if outcome.status == "done":
        verdict: Verdict = outcome.value
    elif outcome.status == "answer":
        verdict = Verdict(VerdictStatus.SCORED, 0.0, {}, outcome.reason)
    else:
        verdict = Verdict(VerdictStatus.FAILED, reason=outcome.reason)
    return {
        "id": row.id, "verdict": str(verdict.status), "value": verdict.reward if verdict.scored else None,
        "parts": dict(verdict.parts), "reason": verdict.reason, "seconds": round(outcome.seconds, 6),
    }  # fmt: skip
