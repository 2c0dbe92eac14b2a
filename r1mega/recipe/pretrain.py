"""Recipe of pretraining a tiny base model on text made from tasks; the stage is `r1mega.stages.pretrain`."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from r1mega.config.cluster import Cluster
from r1mega.config.load import nearest
from r1mega.config.section import OnResume, Section
from r1mega.data.constraint_text import ConstraintText
from r1mega.data.settings import AnswerStyles
from r1mega.data.sources.reasoning_gym import TASKS, Task
from r1mega.data.worked_steps import StepLanguage, tape
from r1mega.families.spec import ModelSpec
from r1mega.recipe.health import health_notes
from r1mega.recipe.training import Training


class PretrainData(Section):
    """Clean text made from tasks: correct answers in several styles, so that RL has something to choose."""

    num_documents: int = Field(gt=0)
    """Documents generated; training passes over them as often as `num_steps` asks."""
    styles: AnswerStyles
    step_words: tuple[StepLanguage, ...] = ()
    """Languages of the words in which the worked steps are written, each step in one of them at random; none: signs
    and digits alone. For tasks whose steps are a running result (chain_sum, products)."""
    slips: float = Field(default=0.0, ge=0, lt=1)
    """Share of the worked steps whose result is 1 or 2 off; the steps and the answer behind it follow from it. Such a
    base slips as often when it is sampled at T = 1, and has the skill all the same. For tasks as `step_words`."""
    examples: float = Field(default=0.0, ge=0, lt=1)
    """Share of the tasks' documents whose question stands behind one or two others, as turns of one conversation and
    with right answers in its style and its languages: such a base can be prompted with examples."""
    learn: Literal["all", "answers"] = "all"
    """Which tokens are targets. A question's numbers are drawn at random: nothing is to be learnt from predicting
    them, and their gradient is noise."""
    part: int = Field(default=0, ge=0, lt=1000)
    """Which part of the endless text this stage reads; a stage that trains on takes another part."""
    vocab_size: int = Field(default=384, ge=300)
    """Size of the byte-level BPE trained on this text (single digits; special tokens and tags included)."""


class Pretrain(Training):
    """Pretraining of a base model: next-token cross-entropy + MTP loss (DeepSeek-V3 report 2.2)."""

    runs = "r1mega.stages.pretrain:run"
    script = "sft_stage"
    checks_data = "r1mega.preflight.questions:check_tasks"
    learns_from = "text"

    stage: Literal["pretrain"]
    tasks: tuple[Task, ...] = Field(min_length=1)
    data: PretrainData
    text: ConstraintText | None = None
    """Documents in the constraint language beside those of the tasks."""
    num_steps: Annotated[int, OnResume.LENGTH] = Field(gt=0)
    """Optimiser steps; with `max_seconds` also set, whichever comes first ends the stage."""
    documents_per_step: int = Field(gt=0)
    max_seconds: float = Field(default=0.0, ge=0)
    """End the stage after this much training time (0: no bound). The schedule then follows time, not steps."""
    mtp_loss_weight: float = Field(default=0.3, ge=0)
    """lambda of the V3 report's Eq. 25 (0.3 for most of pretraining, later 0.1)."""
    expert_bias_rate: float = Field(default=0.001, ge=0)
    """gamma: step of the auxiliary-loss-free load balancing bias, after each optimiser step."""

    def faults(self) -> list[str]:
        faults, styles = super().faults(), self.data.styles
        total = styles.think + styles.tags + styles.steps + styles.plain
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            faults.append(f"data.styles: the shares sum to {total:g}, they must sum to 1")
        other = [task.name for task in self.tasks if task.name in TASKS and TASKS[task.name].steps is not tape]
        said = ", ".join(name for name, row in TASKS.items() if row.steps is tape)
        if self.data.step_words and other:
            faults.append(f"data.step_words: the steps of {other[0]} cannot be said in words, those of {said} can")
        if self.data.slips and other:
            faults.append(
                f"data.slips: the steps of {other[0]} have no running result to slip in, those of {said} have"
            )
        faults += self.text.faults() if self.text is not None else []
        per_step, num_documents = self.documents_per_step, self.data.num_documents
        if per_step > num_documents:
            faults.append(f"documents_per_step: {per_step} exceeds data.num_documents = {num_documents}")
        faults += self.health_faults(self.num_steps, "num_steps")
        return faults + self.warmup_faults(self.num_steps, "num_steps")

    def notes(self) -> Sequence[str]:
        once = self.num_steps * self.documents_per_step <= self.data.num_documents
        return health_notes(self.health, once=once)

    def faults_on(self, machine: Cluster, spec: ModelSpec | None) -> list[str]:
        return _task_faults(self.tasks) + super().faults_on(machine, spec)


def _task_faults(tasks: Sequence[Task]) -> list[str]:
    """Names of tasks that no text is written of."""
    faults: list[str] = []
    for name in (task.name for task in tasks if task.name not in TASKS):
        known = f"the supported ones are {', '.join(TASKS)}"
        faults.append(f"tasks: unknown task {name!r}{nearest(name, TASKS)}: {known}")
    return faults
