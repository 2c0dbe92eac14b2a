"""Recipe of making preference data: answers sampled and judged; the stage is `r1mega.stages.preferences`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from r1mega.config.cluster import Cluster
from r1mega.config.inputs import Input
from r1mega.config.section import AnchoredPath, OnResume, Section
from r1mega.data.pairing import AnswerSettings, PairSettings
from r1mega.data.scope import Scope
from r1mega.data.sources.registry import Sources
from r1mega.data.sources.source import QuestionSource
from r1mega.endpoint.settings import Endpoint
from r1mega.families.registry import read_model
from r1mega.families.spec import ModelSpec
from r1mega.recipe.answering import Answering, missing_key
from r1mega.recipe.asking import engine_faults
from r1mega.recipe.memory import memory_faults
from r1mega.rewards.preference import Comparing
from r1mega.rewards.safety import Marking


class Pairs(PairSettings, Comparing):
    """Which answers are held against each other, how the judge compares them, and which pairs are kept."""


class JudgedBy(Section):
    """The model that judges: behind an endpoint, or of a folder."""

    endpoint: Endpoint | None = None
    """A server that is there already."""
    model: AnchoredPath | None = None
    """A Hugging Face folder, which our own server serves once that of the answers has ended, and which is asked in
    its own chat template."""
    max_model_len: int = Field(default=16_384, gt=0)
    """Of a folder's server: tokens of a question to the judge and its answer, at most; where the model has fewer
    positions, so many. A pair for which they do not do has no judgement."""
    max_failed: Annotated[float, OnResume.FREE] = Field(default=0.05, ge=0, le=1)
    """Share of the latest 64 judgements that may fail through no fault of the answers; past it the run stops and says
    why."""


class MakePreferences(Answering):
    """Preference data for a reward model (report 2.3.4): a finished model answers, a judge says which answer is
    better, or which is safe."""

    runs = "r1mega.stages.preferences:run"
    checks_data = "r1mega.preflight.questions:check_preference_questions"
    learns_from = "nothing"

    stage: Literal["preferences"]
    label: Literal["preference", "safety"] = "preference"
    """preference: pairs of answers, of which the judge has chosen one (pairs.jsonl). safety: answers that the judge
    has marked safe or unsafe (labelled.jsonl)."""
    questions: Sources = Field(min_length=1)
    """What is asked: tables [[questions]], a source each. Questions of the held-out side are left out and counted, as
    in every stage: what is made here is trained on."""
    answers: AnswerSettings = AnswerSettings()
    pairs: Pairs = Pairs()
    safety: Marking = Marking()
    judge: JudgedBy

    @property
    def scope(self) -> Scope:
        """`answers.scope`, resolved."""
        return self.answers.scope or ("summary" if self.label == "preference" else "response")

    @property
    def serves(self) -> bool:
        return super().serves or self.judge.model is not None

    def faults(self) -> list[str]:
        faults, judge = super().faults(), self.judge
        if (judge.endpoint is None) == (judge.model is None):
            faults.append(
                "judge: give endpoint (a server) or model (a folder that is served here), not both or neither"
            )
        if self.label == "preference":
            faults += self.pairs.faults(self.answers.per_question)
            other, is_set = "safety", self.safety != Marking()
        else:
            other, is_set = "pairs", self.pairs != Pairs()
        if is_set:
            faults.append(f'{other}: has no effect with label = "{self.label}": take it out')
        return faults

    def question_faults(self) -> list[str]:
        return super().question_faults() + [
            f"questions.{i}.weight: each question is asked alike here; take fewer with num"
            for i, source in enumerate(self.questions)
            if source.weight is not None
        ]

    def tables(self) -> dict[str, Sequence[QuestionSource]]:
        return {"questions": self.questions}

    def asking_only(self, tables: Mapping[str, tuple[QuestionSource, ...]]) -> dict[str, object]:
        return {"questions": tables["questions"]}

    def inputs(self) -> Sequence[Input]:
        judge = self.judge.model
        return [*super().inputs(), *([Input("judge.model", judge, model=True)] if judge else [])]

    def faults_on(self, machine: Cluster, spec: ModelSpec | None) -> list[str]:
        judge, faults = self.judge.model, super().faults_on(machine, spec)
        if judge is not None and (judge / "config.json").is_file():
            known = read_model(judge)
            found = engine_faults(self.stage, machine, known) + memory_faults(self.holds(), machine, known)
            faults += [f"judge.model: {fault}" for fault in found if fault not in faults]
        elif judge is not None:
            faults += [fault for fault in engine_faults(self.stage, machine, None) if fault not in faults]
        return faults

    def lacks(self) -> Sequence[str]:
        return [*super().lacks(), *missing_key("judge.endpoint", self.judge.endpoint)]

    def leaves(self) -> Sequence[str]:
        return ("pairs.jsonl",) if self.label == "preference" else ("labelled.jsonl",)
