"""Recipe of asking finished models held-out questions; the stage is `r1mega.stages.evaluate`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from r1mega.config.cluster import Cluster
from r1mega.config.inputs import Input
from r1mega.config.load import nearest
from r1mega.config.model import Model
from r1mega.config.section import AnchoredPath, OnResume, Section
from r1mega.data.question import Domain
from r1mega.data.settings import AnswerFormat
from r1mega.data.sources.registry import labels
from r1mega.errors import ConfigError
from r1mega.families.registry import read_language_model
from r1mega.families.spec import ModelSpec
from r1mega.recipe.answering import Answering
from r1mega.recipe.asking import Evaluated, stop_faults
from r1mega.recipe.recipe import ScoredModels

TAKEN = ("checkpoints", "hf", "hf_steps", "samples", "figures", "wandb", "logs", "journal", "tokenizer")
"""Folders of a run directory, which no model may be called."""
ModelName = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
"""Of a model's folder within the run directory, and in the summary."""


class Column(Section):
    """Which of the questions a score of its own is of: those of these domains and of these tables."""

    domains: tuple[Domain, ...] = ()
    """Empty: of any."""
    sources: tuple[str, ...] = ()
    """Labels of tables, as questions.json has them (a file's name without its ending, or the kind of what is made);
    empty: any."""


class Evaluate(Answering, Evaluated):
    """Held-out questions answered by finished models, no trainer: one, or several on the same questions."""

    runs = "r1mega.stages.evaluate:run"
    script = "eval_stage"
    checks_data = "r1mega.preflight.questions:check_held_out"
    learns_from = "nothing"

    stage: Literal["evaluate"]
    models: dict[ModelName, AnchoredPath] = Field(default_factory=dict)
    """Instead of [model]: name -> Hugging Face folder. All are asked the same, one after the other; those that are
    served alike by one server, which takes each folder's weights. What each comes to stands in RUN/NAME, as what a
    single one does in RUN."""
    columns: Annotated[dict[str, Column], OnResume.FREE] = Field(default_factory=dict)
    """Name -> the questions of which a score of its own is given: { reasoning = { domains = ["math"] } }."""

    @property
    def answer_format(self) -> AnswerFormat:
        """`evaluation.format`, resolved."""
        chat = self.endpoint is not None and self.endpoint.form == "chat"
        return self.evaluation.format or ("any" if chat else "r1_zero")

    def scored(self) -> ScoredModels:
        asked = {
            "sampling": self.sampling.model_dump(mode="json"),
            "evaluation": self.evaluation.model_dump(mode="json", exclude={"format", "every_steps"}),
        }
        columns = {name: column.model_dump(mode="json") for name, column in self.columns.items()}
        return ScoredModels(tuple(self.models) or ("",), columns, asked)

    def alone(self) -> Mapping[str, "Evaluate"]:
        """Name -> this recipe with that one of `models` as its [model]."""
        return {
            name: self.model_copy(update={"model": Model(path=path), "models": {}})
            for name, path in self.models.items()
        }

    def faults(self) -> list[str]:
        if not self.models:
            return super().faults() + self._column_faults()
        faults: list[str] = []
        if self.model != Model():
            faults.append("models: [model] is there as well; leave one of the two out")
        if self.endpoint is not None:
            faults.append("models: an endpoint answers, and no folder of ours; leave [models] out, or [endpoint]")
        faults += [
            f"models.{name}: a run directory has a folder of that name already; choose another"
            for name in self.models
            if name in TAKEN
        ]
        for name, path in self.models.items():
            if (path / ".metadata").is_file():
                faults.append(
                    f"models.{name}: {path} is a Megatron checkpoint, the engine needs a Hugging Face folder; "
                    "`r1mega convert to-hf` writes it"
                )
            elif path.exists() and not (path / "config.json").is_file():
                faults.append(f"models.{name}: no file {path / 'config.json'}: name the folder that has it")
        faults += self.prompt.faults() + stop_faults(self.sampling.stop) + self.question_faults()
        return faults + self._column_faults()

    def _column_faults(self) -> list[str]:
        """Columns of no question; what is in a table but too long to be asked is seen when it is read."""
        tables = self.evaluation.questions
        known, domains = labels(tables), [source.domain for source in tables]
        faults: list[str] = []
        for name, column in self.columns.items():
            if not column.domains and not column.sources:
                faults.append(f"columns.{name}: says of no question; give domains, sources, or both")
            faults += [
                f"columns.{name}.domains: no table of [[evaluation.questions]] is of {domain!r}: {', '.join(domains)}"
                for domain in column.domains
                if domain not in domains
            ]
            faults += [
                f"columns.{name}.sources: no table of [[evaluation.questions]] is called {source!r}"
                f"{nearest(source, known)}: {', '.join(known)}"
                for source in column.sources
                if source not in known
            ]
            if not faults and not any(
                domain in (column.domains or domains) and label in (column.sources or known)
                for label, domain in zip(known, domains, strict=True)
            ):
                faults.append(f"columns.{name}: none of its sources is of its domains")
        return faults

    def faults_on(self, machine: Cluster, spec: ModelSpec | None) -> list[str]:
        """Of each of `models` that is there; they are never in memory at once, nor are their servers."""
        faults = super().faults_on(machine, spec)
        for name, recipe in self.alone().items():
            path = self.models[name]
            if not (path / "config.json").is_file():
                continue
            try:
                found = recipe.faults_on(machine, read_language_model(path))
            except ConfigError as error:
                found = [str(error)]
            faults += [f"models.{name}: {fault}" for fault in found if fault not in faults]
        return faults

    def inputs(self) -> Sequence[Input]:
        folders = [Input(f"models.{name}", path, model=True) for name, path in self.models.items()]
        return [*super().inputs(), *folders]
