"""What the recipes of stages have in which an engine answers questions."""

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import Field, field_validator

from r1mega.config.cluster import Cluster
from r1mega.config.inputs import Input
from r1mega.config.load import nearest
from r1mega.config.scheduled import Scheduled
from r1mega.config.section import Section
from r1mega.data.settings import Evaluation, PromptSettings
from r1mega.data.sources.source import QuestionSource
from r1mega.families.spec import ModelSpec
from r1mega.layout.engine_laws import engine_model_faults
from r1mega.recipe.from_model import FromModel
from r1mega.recipe.old_questions import old_questions
from r1mega.recipe.without_truth import evaluation_faults
from r1mega.rewards import code
from r1mega.rewards.sandbox.sound import fault_of_this_machine
from r1mega.rewards.verifiers import VERIFIERS
from r1mega.rollout.kernels import kernel_faults


class Drawing(Section):
    """What is the same throughout a run of how answers are drawn from the engine."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the fewest tokens whose probabilities sum to this (report's evaluations: 0.95). GRPO takes 1 alone:
    below it the engine's logprobs are of another distribution than the policy's."""
    stop: tuple[str, ...] = ()
    """Strings of an answer's text that end it as well; such an answer counts as ended, not as truncated. Its text
    ends with the string. Its tokens end with the one that completes it, and in GRPO all of them are learnt: but no
    end token, so that the policy does not learn from these answers to end without the string."""

    @property
    def longest(self) -> int:
        """The most tokens that an answer may ever have."""
        raise NotImplementedError


class Sampling(Drawing):
    """How answers are drawn from the engine (`rollout.engine.SamplingParams`, which has the same fields)."""

    temperature: float = Field(default=1.0, ge=0.01)
    """T, no less than the engine takes (0.01); log-probabilities are of logits / T."""
    max_new_tokens: int = Field(gt=0)
    """Length limit of an answer; one that reaches it is truncated."""

    @field_validator("temperature", "max_new_tokens", mode="before")
    @classmethod
    def _no_schedule(cls, value: object) -> object:
        if isinstance(value, list | tuple | Scheduled):
            raise ValueError("should be one value: this stage takes no optimiser steps, which a schedule counts")
        return value

    @property
    def longest(self) -> int:
        return self.max_new_tokens


class Asking(FromModel):
    """Settings and laws of a stage that asks an engine questions."""

    samples = True
    shows_examples: ClassVar[bool] = False
    """Whether examples may stand before a question."""

    prompt: PromptSettings = PromptSettings()
    """How a question is put to the model."""
    sampling: Drawing

    def faults(self) -> list[str]:
        faults, path = super().faults(), self.model.path
        if path is None:
            faults.append("model.path: the engine needs a Hugging Face folder to start from, not a bare config")
        elif (path / ".metadata").is_file():
            faults.append(
                f"model.path: {path} is a Megatron checkpoint, the engine needs a Hugging Face folder to start "
                "from; `r1mega convert to-hf` writes it"
            )
        return faults + self.prompt_faults() + stop_faults(self.sampling.stop) + self.question_faults()

    def prompt_faults(self) -> list[str]:
        """What is wrong with how questions are put, before anything is read."""
        if self.prompt.few_shot is None or self.shows_examples:
            return self.prompt.faults()
        return [
            f"prompt.few_shot: a {self.stage} stage asks without examples, as the model will be asked; they stand "
            'before the questions of stage = "rejection" alone',
            *self.prompt.faults(),
        ]

    def question_faults(self) -> list[str]:
        """What is wrong with the tables of questions, before anything is read."""
        return [
            f"{where}.{fault}"
            for where, source in self.sources().items()
            for fault in [*source.faults(), *_verifier_faults(source)]
        ]

    def tables(self) -> dict[str, Sequence[QuestionSource]]:
        """The lists of tables of questions, by what they are for."""
        raise NotImplementedError

    def sources(self) -> dict[str, QuestionSource]:
        """All tables of questions, by the names that `--set` has for them."""
        names = {"evaluation": "evaluation.questions"}
        return {
            f"{names.get(what, what)}.{i}": source
            for what, sources in self.tables().items()
            for i, source in enumerate(sources)
        }

    def inputs(self) -> Sequence[Input]:
        named = {"prompt.template": self.prompt.file, "prompt.few_shot": self.prompt.few_shot}
        return [Input(setting, path) for setting, path in named.items() if path] + [
            Input(f"{where}.{name}", path)
            for where, source in self.sources().items()
            for name, path in source.inputs()
        ]

    def unseen(self) -> Sequence[str]:
        return [f"{where}: {source.unseen}" for where, source in self.sources().items() if source.unseen]

    def seen(self) -> Self | None:
        """This recipe with the sources alone that are on this machine, none of which are asked to be many; None where
        that leaves nothing to train on or to evaluate."""
        here = {what: tuple(s for s in of if not s.unseen) for what, of in self.tables().items()}
        if here == dict(self.tables()):
            return self
        return self.model_copy(update=self.asking_only(here)) if all(here.values()) else None

    def asking_only(self, tables: Mapping[str, tuple[QuestionSource, ...]]) -> dict[str, object]:
        """The settings that change where these of its tables alone are asked."""
        raise NotImplementedError

    @classmethod
    def outdated(cls, table: Mapping[str, Any]) -> list[str]:
        old = old_questions(table)
        if "template" in table:
            put = table["template"]
            old.append(
                f'template: is written otherwise now: [prompt] and below it template = "{put}"; with --set, '
                f"prompt.template={put}"
            )
        return old

    def faults_on(self, machine: Cluster, spec: ModelSpec | None) -> list[str]:
        faults = engine_faults(machine, spec)
        named = {name for source in self.sources().values() for name in source.verifiers()}
        if named & set(code.NAMES) and (fault := fault_of_this_machine()) is not None:
            faults.append(fault)
        return faults + super().faults_on(machine, spec)


class Evaluated(Asking):
    """Of a stage that asks held-out questions, which no stage trains on."""

    evaluation: Evaluation

    def question_faults(self) -> list[str]:
        faults = super().question_faults() + evaluation_faults(self.evaluation.questions)
        return faults + [
            f"evaluation.questions.{i}.weight: an evaluation asks each of its questions alike; take fewer with num"
            for i, source in enumerate(self.evaluation.questions)
            if source.weight is not None
        ]

    def tables(self) -> dict[str, Sequence[QuestionSource]]:
        return {"evaluation": self.evaluation.questions}

    def asking_only(self, tables: Mapping[str, tuple[QuestionSource, ...]]) -> dict[str, object]:
        return {"evaluation": self.evaluation.model_copy(update={"questions": tables["evaluation"]})}


def engine_faults(machine: Cluster, spec: ModelSpec | None) -> list[str]:
    """Why our own engine does not serve a model on a machine; of the model, where anything is known of it."""
    faults: list[str] = []
    if machine.device == "cpu" and importlib.util.find_spec("vllm") is None:
        faults.append("vLLM is not installed in this environment; run `make env`")
    if spec is None:
        return faults
    of_model = engine_model_faults(machine, spec)
    if machine.device == "cpu" and spec.head == "lm":
        faults += kernel_faults(spec)
    return faults + of_model


def stop_faults(stop: tuple[str, ...]) -> list[str]:
    """Stop strings that end every answer at once, or none; what needs the tokenizer: `data.special_tokens`."""
    faults: list[str] = []
    if "" in stop:
        faults.append("sampling.stop: an empty string would end every answer at once; leave it out")
    faults += [f"sampling.stop: {string!r} is there twice; leave one out" for string in _repeated(stop)]
    for string in dict.fromkeys(stop):
        others = [o for o in stop if o and o in string and o != string]
        if others:
            faults.append(
                f"sampling.stop: {string!r} ends no answer, since it contains {others[0]!r}, which ends it no later; "
                "take one of them out"
            )
    return faults


def _repeated(stop: tuple[str, ...]) -> list[str]:
    return [string for string, num in Counter(stop).items() if num > 1]


def _verifier_faults(source: QuestionSource) -> list[str]:
    """Names of verifiers that there are not."""
    return [
        f"verifier: unknown verifier {name!r}{nearest(name, VERIFIERS)}: math, choice, code, code_fix, constraints, "
        "harmless, none, or a family of reasoning-gym; where a column of that name says it for each row, "
        f"verifier_column = {name!r}"
        for name in source.verifiers()
        if name not in VERIFIERS
    ]
