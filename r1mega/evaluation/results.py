"""What an evaluation leaves on disk: one line a question in results.jsonl, and evaluation.json, which says of what.

results.jsonl     {"id": "chain_sum-3f...", "digest": "9c...", "domain": "math", "source": "chain_sum",
                   "samples": [
                    {"status": "scored", "value": 1.0, "parts": {"accuracy": 1.0, "format": 1.0}, "answer": "17",
                     "vote": "17", "tokens": 312, "finish": "stop", "reason": ""}, ...]}
evaluation.json   {"format": 1, "digests": {"weights": "...", "prompt": "...", "questions": "...", "sampling": "..."},
                   "sampling": {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 32768, "samples": 64},
                   "scores": {...},                                                        as `Scores.to_json` says
                   "columns": {"reasoning": {"domains": ["math"], "sources": []}},         scores by name, of a part
                   "of": {"model": "runs/rl/hf"}}                  or {"endpoint": "https://...", "model": "..."}

`digest` is of what is asked and its truth; `digests.questions` is of all of them, whatever their order. `prompt` is
the template that turns a question into tokens, `sampling` what stands under "sampling". Two evaluations that agree in
these three can be compared question by question (compare.py); their `weights` are what differs.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from r1mega.errors import DataError
from r1mega.runtime import files
from r1mega.runtime.digests import digest_of
from r1mega.samples import FinishReason, VerdictStatus

FORMAT = 1
RESULTS, RECORD = "results.jsonl", "evaluation.json"
COMPARED = ("questions", "prompt", "sampling")
"""The digests that have to agree where two evaluations are compared question by question."""


@dataclass(frozen=True)
class SampleResult:
    """One sampled answer, judged."""

    status: VerdictStatus
    value: float = 0.0
    """How right it is, in [0, 1]; meaningful only where it is scored."""
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    answer: str | None = None
    """Its final answer; None where it gives none."""
    vote: str | None = None
    """What it counts as in cons@k: the representative of its class of equivalent answers (voting.py)."""
    tokens: int = 0
    """Length, the end token included."""
    finish: FinishReason = FinishReason.STOP
    reason: str = ""
    """Why it is not scored, or scores what it does."""

    @property
    def scored(self) -> bool:
        return self.status is VerdictStatus.SCORED


@dataclass(frozen=True)
class QuestionResult:
    """All sampled answers to one question."""

    id: str
    digest: str
    """Of what is asked and its truth."""
    samples: tuple[SampleResult, ...]
    domain: str = ""
    """Of the question; "" in the files of an older version, and so is `source`."""
    source: str = ""
    """The label of the table of questions that it stands in."""

    @property
    def scored(self) -> tuple[SampleResult, ...]:
        return tuple(sample for sample in self.samples if sample.scored)

    @property
    def mean(self) -> float | None:
        """The mean value of its scored answers; None where it has none."""
        values = [sample.value for sample in self.scored]
        return math.fsum(values) / len(values) if values else None


@dataclass(frozen=True)
class Record:
    """Of what an evaluation is."""

    digests: Mapping[str, str]
    """"weights" and those of `COMPARED`."""
    sampling: Mapping[str, Any]
    """The settings whose digest is "sampling", by name."""
    scores: Mapping[str, Any]
    of: Mapping[str, str] = field(default_factory=dict[str, str])
    """Whose answers these are, for people: the folder, or endpoint and model."""
    columns: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict[str, Mapping[str, Sequence[str]]])
    """Name of a column -> "domains" and "sources" of its questions (`in_column`); none of an older version."""

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}


def digests_of(results: Sequence[QuestionResult], weights: str, prompt: str, sampling: Mapping[str, Any]) -> dict:
    """The digests of a record, by name.

    Args:
        weights: digest of the model folder (`runtime.digests`), or of an endpoint's address and model.
        prompt: the template's text.
    """
    questions = digest_of(sorted(result.digest for result in results))
    return {
        "weights": weights,
        "prompt": digest_of(prompt),
        "questions": questions,
        "sampling": digest_of(dict(sampling)),
    }


def in_column(results: Iterable[QuestionResult], column: Mapping[str, Sequence[str]]) -> list[QuestionResult]:
    """The results of a column's questions.

    Args:
        column: their "domains" and "sources", as `Record.columns` has them; an empty list leaves all in.
    """
    domains, sources = column["domains"], column["sources"]
    return [
        result
        for result in results
        if (not domains or result.domain in domains) and (not sources or result.source in sources)
    ]


def write(folder: Path, results: Iterable[QuestionResult], record: Record) -> None:
    """Write both files into a run's folder, evaluation.json last: where it stands the other one is complete."""
    files.write_jsonl(folder / RESULTS, (asdict(result) for result in results))
    files.write_json(folder / RECORD, record.to_json())


def read(folder: Path) -> tuple[Record, list[QuestionResult]]:
    """Both files of a run's folder.

    Raises:
        DataError: the folder holds no finished evaluation, or one of another format; a line that is none; an id that
            stands twice. Names the file and the line.
    """
    record_file, results_file = folder / RECORD, folder / RESULTS
    if not record_file.is_file() or not results_file.is_file():
        raise DataError(
            f"{folder}: no finished evaluation: {RECORD} and {RESULTS} are not both there; give the run directory of "
            "an `evaluate` stage that has ended"
        )
    try:
        row = json.loads(record_file.read_text(encoding="utf-8"))
        if row["format"] != FORMAT:
            raise DataError(f"{record_file}: format {row['format']!r}; this version reads {FORMAT}")
        of, columns = row.get("of", {}), row.get("columns", {})
        record = Record(row["digests"], row["sampling"], row["scores"], of, columns)
        missing = [name for name in ("weights", *COMPARED) if not isinstance(record.digests.get(name), str)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{record_file}: not the record of an evaluation: {error!r}") from error
    if missing:
        raise DataError(f"{record_file}: no digest of {', '.join(missing)}")
    results: list[QuestionResult] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(results_file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            result = _question_result(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{results_file}, line {number}: not the results of a question: {error!r}") from error
        if result.id in first_line:
            first = first_line[result.id]
            raise DataError(f"{results_file}, line {number}: question {result.id!r} already stands in line {first}")
        first_line[result.id] = number
        results.append(result)
    return record, results


def _question_result(row: Mapping[str, Any]) -> QuestionResult:
    samples = [
        SampleResult(
            **{**sample, "status": VerdictStatus(sample["status"]), "finish": FinishReason(sample["finish"])}
        )
        for sample in row["samples"]
    ]
    if any(sample.scored and not 0 <= sample.value <= 1 for sample in samples):
        raise ValueError("a value outside [0, 1]")
    return QuestionResult(row["id"], row["digest"], tuple(samples), row.get("domain", ""), row.get("source", ""))
