"""The table of a chain: which models are its rows, which scores its columns, and who has evaluated them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from pydantic import Field

from r1mega.config.load import nearest
from r1mega.config.section import Section
from r1mega.recipe.recipe import Recipe

Questions = Mapping[str, Sequence[str]]
"""Of a column: their "domains" and "sources" (`evaluation.results.in_column`)."""


class ModelTable(Section):
    """A table like the report's: a row a model, a column a score, with 95% intervals."""

    evaluations: str | tuple[str, ...]
    """The stage, or the stages, whose evaluations it is made of. Their models and columns are known by the names
    they have there; a stage that evaluates a single model calls it by the stage's own name."""
    rows: dict[str, str] = Field(default_factory=dict)
    """Model -> what its row is called, in the order of the rows; empty: all of them, by their own names."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column -> its heading, in the order of the columns; empty: all of them, by their own names."""

    @property
    def stages(self) -> tuple[str, ...]:
        """`evaluations`, as a list."""
        return (self.evaluations,) if isinstance(self.evaluations, str) else self.evaluations

    def faults(self, stages: Sequence[str]) -> list[str]:
        """ModelScores that are no stage of a chain, given its stages' names."""
        faults = [
            f"table.evaluations: no stage is named {name!r}{nearest(name, stages)}"
            for name in self.stages
            if name not in stages
        ]
        if not self.stages:
            faults.append("table.evaluations: names no stage; name the one that evaluates")
        for what, names in (("rows", self.rows), ("columns", self.columns)):
            twice = [name for name, num in Counter(names.values()).items() if num > 1]
            faults += [f"table.{what}: two are called {name!r}" for name in twice]
        return faults

    def label(self, model: str) -> str:
        """What a model is called in the table, and in what is said of it."""
        return self.rows.get(model, model)

    def heading(self, column: str) -> str:
        """What a column is called."""
        return self.columns.get(column, column)


class ModelScores:
    """Which stage has each score of each model: what a chain's evaluations will leave, by their settings."""

    def __init__(self, table: ModelTable, recipes: Mapping[str, Recipe]) -> None:
        """
        Args:
            recipes: of a chain's stages, by their names; the table's `evaluations` are among them.
        """
        self._table = table
        self._scored = {stage: recipes[stage].scored() for stage in table.stages}
        self._places: dict[tuple[str, str], list[str]] = {}
        for stage, scored in self._scored.items():
            for model, column in product(scored.models, scored.columns) if scored else ():
                self._places.setdefault((model or stage, column), []).append(stage)

    @property
    def models(self) -> list[str]:
        """Of all evaluations, in their order."""
        return list(dict.fromkeys(model for model, _ in self._places))

    @property
    def columns(self) -> list[str]:
        """Of all evaluations, in their order."""
        return list(dict.fromkeys(column for _, column in self._places))

    def folders(self) -> Iterator[tuple[str, str, Mapping[str, Questions]]]:
        """Each model, the folder of its results within the chain's run directory, and its columns."""
        for stage, scored in self._scored.items():
            if scored is not None:
                for model in scored.models:
                    yield model or stage, f"{stage}/{model}".rstrip("/"), scored.columns

    def stage_of(self, model: str, column: str) -> str | None:
        """The stage that has a model's score in a column; None where none has."""
        return next(iter(self._places.get((model, column), ())), None)

    def asked_alike(self, a: str, b: str, column: str) -> bool:
        """Whether two models that have a score in a column are asked the same there, as far as settings say."""
        one, other = (self._scored[str(self.stage_of(model, column))] for model in (a, b))
        return one is other or (one is not None and other is not None and one.asked == other.asked)

    def faults(self) -> list[str]:
        """What the table has no score for, or two."""
        faults: list[str] = []
        for stage, scored in self._scored.items():
            if scored is None:
                faults.append(f"table.evaluations: stage {stage} leaves no judged answers; name one that evaluates")
            elif not scored.columns:
                faults.append(
                    f"table.evaluations: stage {stage} has no [columns], by which its scores are known: "
                    '[columns] and below it reasoning = { domains = ["math"] }'
                )
        faults += [
            f"table.evaluations: {' and '.join(stages)} both score model {model} in column {column}; leave one out"
            for (model, column), stages in self._places.items()
            if len(stages) > 1
        ]
        faults += [
            self.no_model(f"table.rows.{model}", model) for model in self._table.rows if model not in self.models
        ]
        return faults + [
            self.no_column(f"table.columns.{column}", column)
            for column in self._table.columns
            if column not in self.columns
        ]

    def no_model(self, where: str, model: str) -> str:
        """That a name at some place is no model's."""
        return f"{where}: no evaluation has a model {model!r}{nearest(model, self.models)}: {', '.join(self.models)}"

    def no_column(self, where: str, column: str) -> str:
        """That a name at some place is no column's."""
        known = ", ".join(self.columns)
        return f"{where}: no evaluation has a column {column!r}{nearest(column, self.columns)}: {known}"
