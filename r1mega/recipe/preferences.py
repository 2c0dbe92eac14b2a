"""Recipe of making preference data: answers sampled and judged; the stage is `r1mega.stages.preferences`."""

from collections.abc import Sequence
from typing import Literal

from r1mega.config.cluster import Cluster
from r1mega.config.inputs import Input
from r1mega.data.pairing import AnswerSettings, PairSettings
from r1mega.data.scope import Scope
from r1mega.families.spec import ModelSpec
from r1mega.recipe.answering import Making
from r1mega.recipe.judged_by import JudgedBy
from r1mega.rewards.preference import Comparing
from r1mega.rewards.safety import Marking


class Pairs(PairSettings, Comparing):
    """Which answers are held against each other, how the judge compares them, and which pairs are kept."""


class MakePreferences(Making):
    """Preference data for a reward model (report 2.3.4): a finished model answers, a judge says which answer is
    better, or which is safe."""

    runs = "r1mega.stages.preferences:run"
    script = "rejection_stage"
    checks_data = "r1mega.preflight.questions:check_preference_questions"
    learns_from = "nothing"

    stage: Literal["preferences"]
    label: Literal["preference", "safety"] = "preference"
    """preference: pairs of answers, of which the judge has chosen one (pairs.jsonl). safety: answers that the judge
    has marked safe or unsafe (labelled.jsonl)."""
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
        faults = super().faults() + self.judge.faults("judge")
        if self.label == "preference":
            faults += self.pairs.faults(self.answers.per_question)
            other, is_set = "safety", self.safety != Marking()
        else:
            other, is_set = "pairs", self.pairs != Pairs()
        if is_set:
            faults.append(f'{other}: has no effect with label = "{self.label}": take it out')
        return faults

    def inputs(self) -> Sequence[Input]:
        return [*super().inputs(), *self.judge.inputs("judge")]

    def faults_on(self, machine: Cluster, spec: ModelSpec | None) -> list[str]:
        faults = super().faults_on(machine, spec)
        found = self.judge.faults_on("judge", self.holds(), machine)
        return faults + [fault for fault in found if fault.removeprefix("judge.model: ") not in faults]

    def lacks(self) -> Sequence[str]:
        return [*super().lacks(), *self.judge.lacks("judge")]

    def leaves(self) -> Sequence[str]:
        return ("pairs.jsonl",) if self.label == "preference" else ("labelled.jsonl",)
