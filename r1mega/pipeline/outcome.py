"""What a chain came to: the table of its models' scores, and which of its relations its evaluations bear out.

{"table": {"columns": {"reasoning": "Reasoning", ...},
           "rows": [{"model": "dev1", "label": "R1-Dev1", "weights": "<digest>",
                     "cells": {"reasoning": {"mean": 0.71, "se": 0.02, "low": 0.67, "high": 0.75,
                                             "num_questions": 400, "num_answers": 1600, "without_score": 0}}}, ...]},
 "relations": [{"claim": "...", "outcome": "HOLDS", "reversed": false,
                "parts": [{"a": "r1_zero", "b": "dev1", "column": "reasoning", "is": "lower", "margin": 0.0,
                           "holds": true, "reversed": false, "num_questions": 400, "left_out": 0,
                           "mean_a": 0.78, "mean_b": 0.71, "difference": {"mean", "se", "low", "high"},
                           "mcnemar": {...}, "prompts": "the same"}, ...]}, ...]}

A relation is judged as `r1mega compare` judges two checkpoints, by the paired bootstrap of `evaluation.compare` and
its guards: B is higher where it is better there, lower where it is worse, and not lower where the interval of B - A
lies above -margin. What has to agree are the questions of the column, one by one, and how answers were sampled.
The prompt may differ, and the format that counts as right with it: models of a chain are asked each in its own
template, and students in their family's, as in the report. Where that is so, `prompts` says it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from r1mega.errors import DataError
from r1mega.evaluation.compare import Outcome, PairedComparison, compare
from r1mega.evaluation.results import QuestionResult, Record, in_column, read
from r1mega.evaluation.scores import score
from r1mega.pipeline.relations import Relation, RelationPart
from r1mega.pipeline.table import ModelScores, ModelTable
from r1mega.recipe.recipe import Recipe

HOLDS, FAILS, NOT_JUDGED = "HOLDS", "DOES NOT HOLD", "NOT JUDGED"
MAY_DIFFER = ("format",)
"""Settings of the sampling record that may be another for the second model: what its template asks for."""

Json = dict[str, Any]


@dataclass(frozen=True)
class JudgedAnswers:
    """One model's judged answers to a column's questions."""

    record: Record
    results: Sequence[QuestionResult]


class JudgedModels:
    """The judged answers of a chain's evaluations, by model and column."""

    def __init__(self, answers: Mapping[tuple[str, str], JudgedAnswers]) -> None:
        self._answers = answers
        self.models = list(dict.fromkeys(model for model, _ in answers))
        self.columns = list(dict.fromkeys(column for _, column in answers))

    @classmethod
    def of(cls, run_dir: Path, evaluations: ModelScores) -> "JudgedModels":
        """What a chain's evaluations have left in its run directory.

        Raises:
            DataError: one of them left no evaluation, or one that cannot be read.
        """
        answers: dict[tuple[str, str], JudgedAnswers] = {}
        for model, folder, columns in evaluations.folders():
            record, results = read(run_dir / folder)
            for column, questions in columns.items():
                answers[model, column] = JudgedAnswers(record, in_column(results, questions))
        return cls(answers)

    def get(self, model: str, column: str) -> JudgedAnswers | None:
        """A model's answers in a column; None where it has none."""
        return self._answers.get((model, column))


def outcome_of(
    table: ModelTable, relations: Sequence[Relation], run_dir: Path, recipes: Mapping[str, Recipe]
) -> Json:
    """The table and the relations of a finished chain (see the module).

    Args:
        recipes: of its stages, by their names.

    Raises: as `JudgedModels.of`.
    """
    evaluated = JudgedModels.of(run_dir, ModelScores(table, recipes))
    return {
        "table": _filled(table, evaluated),
        "relations": [judged(relation, evaluated) for relation in relations],
    }


def _filled(table: ModelTable, evaluated: JudgedModels) -> Json:
    columns = list(table.columns) or evaluated.columns
    rows: list[Json] = []
    for model in list(table.rows) or evaluated.models:
        cells = {column: answers for column in columns if (answers := evaluated.get(model, column)) is not None}
        weights = next((answers.record.digests["weights"] for answers in cells.values()), None)
        filled = {column: _cell(answers.results) for column, answers in cells.items()}
        rows.append({"model": model, "label": table.label(model), "weights": weights, "cells": filled})
    return {"columns": {column: table.heading(column) for column in columns}, "rows": rows}


def _cell(results: Sequence[QuestionResult]) -> Json:
    """A score with its interval; without one where no answer could be scored."""
    if not any(result.scored for result in results):
        return {"num_questions": 0, "num_answers": 0, "without_score": len(results)}
    scores = score(results)
    return {
        **asdict(scores.pass_at_1),
        "num_questions": scores.num_questions,
        "num_answers": scores.num_scored,
        "without_score": len(scores.without_score),
    }


def judged(relation: Relation, evaluated: JudgedModels) -> Json:
    """A relation with its parts, each with the comparison that decides it, or why there is none."""
    parts = [_judged_part(part, evaluated) for part in relation.all]
    is_reversed = any(part["reversed"] for part in parts)
    if all(part["holds"] for part in parts):
        outcome = HOLDS
    elif any("why" in part for part in parts) and not is_reversed:
        outcome = NOT_JUDGED
    else:
        outcome = FAILS
    return {"claim": relation.claim, "outcome": outcome, "reversed": is_reversed, "parts": parts}


def _judged_part(part: RelationPart, evaluated: JudgedModels) -> Json:
    told: Json = {**part.model_dump(by_alias=True), "holds": False, "reversed": False}
    try:
        a, b = (_wanted(evaluated, model, part.column) for model in (part.a, part.b))
        _refuse_other_questions(a, b)
        found = compare(a.results, b.results, margin=part.margin)
    except DataError as error:
        return {**told, "why": str(error)}
    holds, is_reversed = verdict(part, found)
    alike = a.record.digests["prompt"] == b.record.digests["prompt"] and not _other_settings(a, b, MAY_DIFFER)
    plain = found.to_json()
    kept = ("num_questions", "left_out", "mean_a", "mean_b", "difference", "mcnemar")
    return {
        **told,
        "holds": holds,
        "reversed": is_reversed,
        **{name: plain[name] for name in kept},
        "prompts": "the same" if alike else "each model's own",
    }


def verdict(part: RelationPart, found: PairedComparison) -> tuple[bool, bool]:
    """Whether a part holds, and whether it is reversed, by a comparison at its margin."""
    better, worse = found.outcome is Outcome.BETTER, found.outcome is Outcome.WORSE
    if part.claimed == "not_lower":
        return found.difference.low > -part.margin, worse
    return (better, worse) if part.claimed == "higher" else (worse, better)


def _wanted(evaluated: JudgedModels, model: str, column: str) -> JudgedAnswers:
    answers = evaluated.get(model, column)
    if answers is None:
        raise DataError(f"no evaluation has a score of model {model!r} in column {column!r}")
    return answers


def _refuse_other_questions(a: JudgedAnswers, b: JudgedAnswers) -> None:
    """Raises DataError where two models were not asked the same questions, or were sampled otherwise."""
    one, other = ({result.id: result.digest for result in of.results} for of in (a, b))
    if one != other:
        different = sum(one.get(id) != other.get(id) for id in {*one, *other})
        raise DataError(f"the two were not asked the same: {different} of {len({*one, *other})} questions differ")
    names = sorted({*a.record.sampling, *b.record.sampling} - {*MAY_DIFFER})
    if different := _other_settings(a, b, names):
        raise DataError(f"the two were not sampled alike: {', '.join(different)}")


def _other_settings(a: JudgedAnswers, b: JudgedAnswers, names: Sequence[str]) -> list[str]:
    found = [(name, a.record.sampling.get(name), b.record.sampling.get(name)) for name in names]
    return [f"sampling.{name} = {one!r} and {other!r}" for name, one, other in found if one != other]
