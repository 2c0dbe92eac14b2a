"""What the recipes of stages have in which a finished model answers: our own server of a folder, or an endpoint."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from r1mega.config.cluster import Cluster
from r1mega.config.model import Model
from r1mega.data.settings import PromptSettings
from r1mega.data.sources.registry import Sources
from r1mega.data.sources.source import QuestionSource
from r1mega.endpoint.settings import Endpoint
from r1mega.families.spec import ModelSpec
from r1mega.recipe.asking import Asking, Sampling, stop_faults
from r1mega.runtime import env

QUESTION = "{question}"
"""What a question takes the place of."""


class AnswerSampling(Sampling):
    """How answers are drawn, with the report's defaults (2.4); it lets an answer have 32,768 tokens."""

    temperature: float = Field(default=0.6, ge=0.01)
    top_p: float = Field(default=0.95, gt=0, le=1)


class AskedEndpoint(Endpoint):
    """The server that answers in place of our own, and how a question is put to it."""

    form: Literal["chat", "completions"] = "chat"
    """chat: a user's message, which the server puts into the model's own template. completions: the text that
    `prompt` makes of the question, in a named template."""
    system: str | None = None
    """chat: what stands before the user's message."""
    user: str = QUESTION
    """chat: the user's message, with {question} in it; a verifier finds an answer in a box or in answer tags, so ask
    for one of them: "{question}\\n\\nPut your final answer within \\\\boxed{}."."""


class Answering(Asking):
    """A finished model that answers: of a Hugging Face folder, which our own server serves, or of an endpoint."""

    model: Model = Model()
    endpoint: AskedEndpoint | None = None
    sampling: AnswerSampling

    @property
    def serves(self) -> bool:
        return self.endpoint is None

    def faults(self) -> list[str]:
        if self.endpoint is None:
            return super().faults()
        faults: list[str] = []
        if self.model != Model():
            faults.append(
                "model: the endpoint answers, and no folder of ours: leave [model] out, or [endpoint]; both would "
                "leave open whose answers these are"
            )
        if self.endpoint.form == "completions" and (self.endpoint.system, self.endpoint.user) != (None, QUESTION):
            faults.append('endpoint: system and user are of form = "chat"; completions are sent what prompt says')
        if self.endpoint.form == "chat" and self.prompt.without_examples != PromptSettings():
            faults.append(
                'prompt: the server puts a question of form = "chat" into the model\'s own template; take [prompt] '
                "out and say what is to be said in endpoint.system and endpoint.user, or set endpoint.form = "
                '"completions"'
            )
        elif not self.prompt.named:
            faults.append(
                f"prompt.template: {self.prompt.template} is rendered with the model's tokenizer, which an endpoint "
                'does not give; use endpoint.form = "chat", or "r1_zero" or "tiny"'
            )
        faults += self.prompt_faults()
        if QUESTION not in self.endpoint.user:
            faults.append(f"endpoint.user: {QUESTION} is not in it, so that every question would be the same")
        return faults + stop_faults(self.sampling.stop) + self.question_faults()

    def faults_on(self, machine: Cluster, spec: ModelSpec | None) -> list[str]:
        """An endpoint needs neither engine nor device here."""
        return super().faults_on(machine, spec) if self.endpoint is None else []

    def lacks(self) -> Sequence[str]:
        return missing_key("endpoint", self.endpoint)

    def begins_as(self) -> tuple[Any, ...]:
        asked = self.endpoint
        return ("endpoint", asked.url, asked.model, asked.extra) if asked else ()

    def tokenizer_files(self) -> Sequence[str]:
        return () if self.endpoint else super().tokenizer_files()


class Making(Answering):
    """A finished model's answers become something to train on."""

    questions: Sources = Field(min_length=1)
    """What is asked: tables [[questions]], a source each. Questions of the held-out side are left out and counted, as
    in every stage: what is made here is trained on."""

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


def missing_key(setting: str, endpoint: Endpoint | None) -> Sequence[str]:
    """What is to be done where the key of an endpoint, the table of that name, is not set on this machine."""
    name = endpoint.api_key_env if endpoint else ""
    if not name or env.secret(name) is not None:
        return ()
    return (f"{setting}.api_key_env: the environment variable {name} is not set; export it where the stage runs",)
