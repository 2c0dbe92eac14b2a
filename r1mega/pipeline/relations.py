"""What a chain's stages should have done to each other, as claims that its evaluations bear out or not.

    [[relations]]
    claim = "Dev1 falls on reasoning and rises on instructions"
    all = [ { a = "r1_zero", b = "dev1", column = "reasoning", is = "lower" },
            { a = "r1_zero", b = "dev1", column = "instructions", is = "higher" } ]

A part says how B's score stands to A's; `outcome` judges it on the questions that both have answered. A claim holds
where all of its parts do, and is reversed where the interval of one lies wholly on the other side.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from r1mega.config.section import Section
from r1mega.pipeline.table import ModelScores


class RelationPart(Section):
    """How one model's score in a column stands to another's."""

    a: str
    """The model that B is held against."""
    b: str
    """The model that the claim is about."""
    column: str
    """Of the evaluations' columns."""
    claimed: Literal["higher", "lower", "not_lower"] = Field(alias="is")
    """higher, lower: the 95% interval of B - A lies wholly above, or below, 0. not_lower: it lies above -margin."""
    margin: float = Field(default=0.0, ge=0, lt=1)
    """By how much B may be lower, of not_lower alone: 0.03 lets three points pass."""

    def faults(self) -> list[str]:
        faults: list[str] = []
        if self.a == self.b:
            faults.append(f"a and b are both {self.a!r}: name two models")
        if self.margin and self.claimed != "not_lower":
            faults.append(f'margin: has no effect with is = "{self.claimed}": take it out, or set is = "not_lower"')
        return faults


class Relation(Section):
    """A claim, in words and as parts of which each can be judged."""

    claim: str
    """In a sentence, as it is printed."""
    all: tuple[RelationPart, ...] = Field(min_length=1)
    """The claim holds where all of these do."""


def faults(relations: Sequence[Relation]) -> list[str]:
    """What is wrong with claims by themselves."""
    found = [
        f"relations.{i}.all.{j}.{fault}"
        for i, relation in enumerate(relations)
        for j, part in enumerate(relation.all)
        for fault in part.faults()
    ]
    claims = [relation.claim for relation in relations]
    return found + [
        f"relations.{i}.claim: {claim!r} stands there twice" for i, claim in enumerate(claims) if claim in claims[:i]
    ]


def faults_with(relations: Sequence[Relation], evaluations: ModelScores) -> list[str]:
    """What claims name that the chain's evaluations do not have, or ask otherwise of one model than of the other."""
    found: list[str] = []
    for i, relation in enumerate(relations):
        for j, part in enumerate(relation.all):
            where = f"relations.{i}.all.{j}"
            names = ("a", part.a), ("b", part.b)
            unknown = [evaluations.no_model(f"{where}.{n}", m) for n, m in names if m not in evaluations.models]
            if part.column not in evaluations.columns:
                unknown.append(evaluations.no_column(f"{where}.column", part.column))
            without = [m for _, m in names if evaluations.stage_of(m, part.column) is None]
            if unknown:
                found += unknown
            elif without:
                found.append(f"{where}: no evaluation scores {' and '.join(without)} in column {part.column!r}")
            elif not evaluations.asked_alike(part.a, part.b, part.column):
                stages = [evaluations.stage_of(m, part.column) for _, m in names]
                found.append(
                    f"{where}: stages {stages[0]} and {stages[1]} ask {part.a} and {part.b} otherwise (questions, "
                    "their seed, samples or sampling), so that they cannot be compared question by question"
                )
    return found
