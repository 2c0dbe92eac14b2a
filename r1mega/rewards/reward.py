"""What a reward is: settings that judge. Three kinds, told apart by who is asked, and when.

A *rule* judges an answer as it arrives, while others are still being sampled: by its text, its question and, where
it needs them, the other answers to the question. A *model* needs the trainer's ranks: it scores a rollout's answers
in one forward pass that all ranks take part in, between rollout and update, by a scorer that is handed in. An
*endpoint* is asked over the network, also as an answer arrives (`rewards.endpoint_reward`).

    class Brevity(RuleReward):
        kind: Literal["brevity"] = "brevity"
        max_chars: int = Field(default=200, gt=0)

        def judge(self, prompt: Prompt, answer: Answer, group: Sequence[Answer]) -> Score:
            return scored(float(len(answer.text) <= self.max_chars))

Its settings class is the reward: frozen, checked without its library, and sent to a worker process as it is. So a
file of a reward imports pydantic alone; the library that it judges with is imported inside `judge`.

A rule runs in a worker (`rewards.pool`) within limits of time and memory. One that needs other limits than most says
`needs = Limits(wall_s=600)`; a verifier does the same, and its questions then have them. A config may set each,
`cpu_s`, `wall_s` and `memory_mib`, in a rule's table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Protocol, Self, runtime_checkable

from pydantic import Field

from r1mega.config.scheduled import Scheduled, border_faults
from r1mega.config.section import Section
from r1mega.data.question import Domain
from r1mega.rewards.worker import Limits
from r1mega.samples import Completion, Document, Prompt, VerdictStatus


@dataclass(frozen=True)
class Answer:
    """One answer as a rule sees it: `Answer("<think>1+1=2</think><answer>2</answer>", num_tokens=14)`."""

    text: str
    """The template's prefill and the completion together. Untrusted."""
    num_tokens: int
    """Length of the completion, the end token included."""
    truncated: bool = False
    """Whether it was cut at the length limit."""


def answer_of(prompt: Prompt, completion: Completion) -> Answer:
    """A completion as rules see it."""
    return Answer(prompt.prefill + completion.text, len(completion.token_ids), completion.truncated)


@dataclass(frozen=True)
class Score:
    """What one reward says of one answer; made by `scored`, `unscorable` or `failed`."""

    status: VerdictStatus
    value: float = 0.0
    """Before weighting; counts only where `status` is scored."""
    reason: str = ""


def scored(value: float, reason: str = "") -> Score:
    """The answer is worth `value`. All that the answer itself causes is scored, 0 with a reason where it must be:
    unreadable, too deep, too slow. A policy must not escape a bad reward by being hard to judge."""
    return Score(VerdictStatus.SCORED, value, reason)


def unscorable(reason: str) -> Score:
    """The question or its truth cannot be judged, whatever the answer."""
    return Score(VerdictStatus.UNSCORABLE, reason=reason)


def failed(reason: str) -> Score:
    """The infrastructure broke: a worker, a sandbox, an endpoint. Never a zero."""
    return Score(VerdictStatus.FAILED, reason=reason)


Weight = Annotated[float, Field(ge=0)]


class Reward(Section):
    """Settings of every reward; a table [rewards.NAME], or a number where the weight is all there is to say."""

    kind: Any
    """Which reward: a name of `rewards.registry`. Its table's name where left out."""
    weight: Scheduled[Weight] = Scheduled.always(1.0)
    """What its value is multiplied by in the sum; at 0 it is measured and logged, and adds nothing. A number, or a
    schedule (`config.scheduled`)."""
    domains: tuple[Domain, ...] = ()
    """Domains of the questions whose answers it judges; none named: all."""
    from_step: int = Field(default=0, ge=0)
    """Optimiser steps of the run before it is asked at all."""
    last_steps: int | None = Field(default=None, gt=0)
    """In place of from_step: it is asked in so many last steps of the run (report: preference rewards only in the
    last 400 of 1,700, since longer led to reward hacking)."""

    def asked(self, prompt: Prompt, step: int) -> bool:
        """Whether it judges answers to `prompt` after `step` optimiser steps; a reward `of_run`."""
        return step >= self.begins() and (not self.domains or prompt.domain in self.domains)

    def begins(self, num_steps: int | None = None) -> int:
        """Optimiser steps before it is asked; `num_steps`, the run's, may be left out of a reward `of_run`."""
        if self.last_steps is None:
            return self.from_step
        if num_steps is None:
            raise ValueError(f"last_steps = {self.last_steps} counts from the end of a run, which is not known here")
        return num_steps - self.last_steps

    def of_run(self, num_steps: int, max_new_tokens: Scheduled[int]) -> Self:
        """This reward in a run of so many optimiser steps: nothing in it counts from the end any more.

        Args:
            max_new_tokens: the run's length limit of an answer, for what follows it.
        """
        if self.last_steps is None and not self.weight.counts_from_the_end:
            return self
        told = {"from_step": self.begins(num_steps), "last_steps": None, "weight": self.weight.of_run(num_steps)}
        return self.model_copy(update=told)

    def at(self, step: int) -> Self:
        """This reward, of a run, with what its judging depends on as that is after `step` optimiser steps."""
        return self

    def schedule_faults(self, num_steps: int, every: int) -> list[str]:
        """What does not happen between two rollouts, each of `every` steps: "setting: what and how to mend it"."""
        faults = [f"weight.{fault}" for fault in self.weight.faults(num_steps, every)]
        if self.last_steps is not None and self.from_step:
            return [*faults, "from_step, last_steps: say one of them, from which step it is asked"]
        name = "from_step" if self.last_steps is None else "last_steps"
        given = self.from_step if self.last_steps is None else self.last_steps
        return faults + border_faults(name, given, self.begins(num_steps), num_steps, every)

    def content(self) -> str:
        """Digest of what it judges by beside its settings; "" where they are all there is."""
        return ""

    def lacks(self) -> Sequence[str]:
        """What it cannot be asked without and this machine's environment lacks: a setting and what to do, each."""
        return ()


class RuleReward(Reward):
    """A reward that judges each answer as it arrives, in any thread or process; deterministic."""

    whole_group: ClassVar[bool] = False
    """Whether it needs all answers to the question at once; others may be asked before the rest have come."""
    imports: ClassVar[tuple[str, ...]] = ()
    """Modules that take long to import: workers have them before they judge, since no answer's time is theirs."""
    needs: ClassVar[Limits] = Limits()
    """What judging one answer may use, where the config says nothing else."""

    cpu_s: float | None = Field(default=None, gt=0)
    """Processor seconds that judging one answer may take in its worker; none given: what the rule and the question's
    verifier need, 5 for most. An answer that takes more scores 0."""
    wall_s: float | None = Field(default=None, gt=0)
    """Seconds, waiting included; none given: 120 for most."""
    memory_mib: int | None = Field(default=None, gt=0)
    """Memory that judging one answer may take; none given: 1,024 for most."""

    def limits(self, prompt: Prompt) -> Limits:
        """What judging an answer to `prompt` may use."""
        given = {"cpu_s": self.cpu_s, "wall_s": self.wall_s, "memory_mib": self.memory_mib}
        return replace(self.needed(prompt), **{name: value for name, value in given.items() if value is not None})

    def needed(self, prompt: Prompt) -> Limits:
        """`needs`, or what the question's verifier says."""
        return self.needs

    def judge(self, prompt: Prompt, answer: Answer, group: Sequence[Answer]) -> Score:
        """What `answer` is worth.

        Args:
            group: all answers to the prompt, this one among them, where `whole_group` asks for them; otherwise
                empty.

        Raises:
            ConfigError: the question names something that there is not, such as an unknown verifier.
            MemoryError: which is taken for the answer's doing.
            Exception: anything else counts as `failed`; what the answer itself causes must be caught and scored.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Unread:
    """An answer that a model gives no score, through the answer's own doing."""

    outcome: str
    """Under which it is counted, `rewards/NAME/OUTCOME`."""
    reason: str


@dataclass(frozen=True)
class ToRead:
    """What a model reads of an answer where it has a tokenizer and a chat template of its own (`TextScorer`)."""

    question: str
    text: str
    """Of the answer, or a part of it. Untrusted."""


class ModelReward(Reward):
    """A reward that a model gives; all ranks of the trainer take part (`trainer.scoring`)."""

    outcomes: ClassVar[tuple[str, ...]] = ()
    """Those of its `Unread`."""

    def documents(
        self, asked: "Sequence[tuple[Prompt, Completion]]"
    ) -> "Sequence[Document | ToRead | Score | Unread]":
        """What the model reads of each answer (`document`), or why it reads nothing; for many answers at once."""
        return [self.document(prompt, completion) for prompt, completion in asked]

    def document(self, prompt: Prompt, completion: Completion) -> Document | Score:
        """What the model reads of an answer, or the score of one that has nothing to read.

        By default prompt and completion whole; the targets, from `learn_from` on, are the completion.
        """
        return Document(prompt.token_ids + completion.token_ids, len(prompt.token_ids))

    def value(self, score: float) -> float:
        """What a model's score is worth; one that is not finite has to stay so."""
        return score

    def unread(self, why: Unread, values: Sequence[float]) -> Score:
        """What an answer is worth that the model gives no score.

        Args:
            values: of the answers of the same rollout that have one, and whose verdicts stand.
        """
        raise NotImplementedError


class Scorer(Protocol):
    """The model of a `ModelReward`, on the trainer's ranks."""

    def score(self, documents: Sequence[Document]) -> Sequence[float]:
        """One value for each document, in order; not finite where the model broke.

        A collective: every rank calls it with the documents of its data-parallel share, which may be none, and has
        the same values as the other ranks of its copy of the model.
        """
        ...


@runtime_checkable
class TextScorer(Scorer, Protocol):
    """A `Scorer` that reads words in a chat template of its own."""

    def documents(self, said: Sequence[ToRead]) -> Sequence[Document | Unread]:
        """What it reads of each, or why it reads nothing. On rank 0 alone."""
        ...
