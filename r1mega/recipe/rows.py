"""What recipes have of stages that train on rows of files and datasets, each tokenised once: SFT, reward models."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from r1mega.config.inputs import Input
from r1mega.config.section import AnchoredPath, OnResume
from r1mega.data.settings import Conversations, ValidationData
from r1mega.errors import ConfigError
from r1mega.recipe.health import health_notes
from r1mega.recipe.training import Training


class TrainingOnRows(Training):
    """Settings and laws of data, validation and length that both have."""

    keeps_data = True

    chat_template: AnchoredPath | None = None
    """A Jinja file that writes conversations, and goes with the trained model; none: the tokenizer's own."""
    data: Conversations
    validation: ValidationData | None = None
    num_epochs: Annotated[int, OnResume.LENGTH] = Field(gt=0)
    """Passes over the data, each in its own order."""
    max_steps: Annotated[int, OnResume.LENGTH] = Field(default=0, ge=0)
    """Optimiser steps after which the stage ends all the same, and which the schedule then counts to; 0: no bound."""
    max_seconds: float = Field(default=0.0, ge=0)
    """End the stage after this much training time (0: no bound). The schedule then follows time, not steps."""

    def faults(self) -> list[str]:
        faults, validation = super().faults(), self.validation
        if self.chat_template is not None and not self.chat_template.is_file():
            faults.append(f"chat_template: no file {self.chat_template}; configs/chat_templates has some")
        if not self.data.files and not self.data.dataset:
            faults.append("data: give files (JSONL or parquet), or dataset (a name)")
        if validation is not None and bool(validation.files or validation.dataset) == bool(validation.share):
            faults.append("validation: give files or dataset (rows of its own), or share, not both or neither")
        faults += self.health_faults(self.max_steps, "max_steps")
        return faults + (self.warmup_faults(self.max_steps, "max_steps") if self.max_steps else [])

    def num_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the stage. Raises ConfigError where warm-up takes them all."""
        num_steps = self.num_epochs * steps_per_epoch
        num_steps = min(num_steps, self.max_steps) if self.max_steps else num_steps
        if self.optimizer.warmup_steps >= num_steps:
            raise ConfigError(
                f"optimizer.warmup_steps: {self.optimizer.warmup_steps} leaves no step at the full learning rate; "
                f"the stage has {num_steps}: {self.num_epochs} epochs of {steps_per_epoch}, or max_steps"
            )
        return num_steps

    def notes(self) -> Sequence[str]:
        return health_notes(self.health, once=self.num_epochs == 1)

    def tables(self) -> Sequence[tuple[str, Conversations]]:
        """What is read, by the names of the settings that say so."""
        return [("data", self.data), *([("validation", self.validation)] if self.validation else [])]

    def inputs(self) -> Sequence[Input]:
        return list(self._inputs())

    def _inputs(self) -> Iterator[Input]:
        for name, of in self.tables():
            yield from (Input(f"{name}.files", file) for file in of.files)
            if of.dataset and not of.on_the_hub:
                yield Input(f"{name}.dataset", Path(of.dataset))

    def unseen(self) -> Sequence[str]:
        return [
            f"{name}.dataset: {of.dataset!r}, split {of.split!r}, is on the hub or in its cache: not looked at here"
            for name, of in self.tables()
            if of.on_the_hub
        ]
