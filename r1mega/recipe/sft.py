"""Recipe of supervised fine-tuning on conversations; the stage is `r1mega.stages.sft`."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from r1mega.config.inputs import Input
from r1mega.config.section import AnchoredPath, OnResume
from r1mega.data.settings import Conversations, SFTData, ValidationData
from r1mega.families.registry import with_positions
from r1mega.families.spec import ModelSpec
from r1mega.recipe.memory import Holds
from r1mega.recipe.training import Training


class SFT(Training):
    """Supervised fine-tuning on conversations: cold start (2.3.1), the 800K set (2.3.3), distillation (2.4)."""

    runs = "r1mega.stages.sft:run"
    checks_data = "r1mega.preflight.conversations:check_conversations"
    learns_from = "conversations"
    keeps_data = True

    stage: Literal["sft"]
    max_positions: int = Field(default=0, ge=0)
    """Raise the model's max_position_embeddings to this, its rotary positions unchanged; 0 leaves it. The report's
    context is longer than the 4,096 positions that Qwen2.5-Math states."""
    chat_template: AnchoredPath | None = None
    """A Jinja file that writes conversations, and goes with the trained model; none: the tokenizer's own."""
    data: Annotated[SFTData, OnResume.FILES_BY_TOKENS]
    validation: ValidationData | None = None
    num_epochs: Annotated[int, OnResume.LENGTH] = Field(gt=0)
    """Passes over the data, each in its own order (report: 2 to 3)."""
    max_steps: Annotated[int, OnResume.LENGTH] = Field(default=0, ge=0)
    """Optimiser steps after which the stage ends all the same, and which the schedule then counts to; 0: no bound."""
    max_seconds: float = Field(default=0.0, ge=0)
    """End the stage after this much training time (0: no bound). The schedule then follows time, not steps."""
    batch_size: int = Field(gt=0)
    """Of an optimiser step, in `batch_unit` (report: 128, for the students 64)."""
    batch_unit: Literal["samples", "chunks"] = "samples"
    """The report does not say which. samples: conversations; at 128 an epoch of the 800K is 6,288 steps. chunks:
    packed chunks of data.max_tokens; at 128 it is about 1,030 steps."""
    reduction: Literal["token_mean", "sequence_mean"] = "token_mean"
    """token_mean: over all targets of the batch; sequence_mean: over a conversation's targets, then conversations."""
    mtp: Literal["off", "detached", "joint"] = "joint"
    """off: MTP layers are neither run nor trained; detached: they learn from a detached trunk; joint: their loss
    reaches the trunk, as in pretraining. Without effect where the model has none."""
    mtp_loss_weight: float = Field(default=0.1, ge=0)
    """lambda of the V3 report's Eq. 25 (0.1 late in pretraining)."""
    expert_bias: Literal["frozen", "update"] = "frozen"
    """Whether the router's load-balancing bias moves at each optimiser step."""
    expert_bias_rate: float = Field(default=0.001, ge=0)

    def faults(self) -> list[str]:
        faults, validation = super().faults(), self.validation
        if self.model.path is None:
            faults.append(
                "model.path: SFT starts from a model's weights and its tokenizer: give the folder that has them"
            )
        if self.chat_template is not None and not self.chat_template.is_file():
            faults.append(f"chat_template: no file {self.chat_template}; configs/chat_templates has some")
        if not self.data.files and not self.data.dataset:
            faults.append("data: give files (JSONL or parquet), or dataset (a name)")
        if self.batch.chunk_tokens < self.data.max_tokens:
            faults.append(
                f"batch.chunk_tokens: {self.batch.chunk_tokens} is less than data.max_tokens = "
                f"{self.data.max_tokens}, and a chunk holds whole conversations"
            )
        if validation is not None and bool(validation.files or validation.dataset) == bool(validation.share):
            faults.append(
                "validation: give files or dataset (conversations of its own), or share, not both or neither"
            )
        return faults + (self.warmup_faults(self.max_steps, "max_steps") if self.max_steps else [])

    def longest(self) -> tuple[int, str]:
        return self.data.max_tokens, "data.max_tokens"

    def holds(self) -> Holds:
        return dataclasses.replace(super().holds(), mtp_learns=self.mtp != "off")

    def adapted(self, spec: ModelSpec) -> ModelSpec:
        return with_positions(spec, self.max_positions)

    def conversations(self) -> Sequence[tuple[str, Conversations]]:
        """What is read, by the names of the settings that say so."""
        return [("data", self.data), *([("validation", self.validation)] if self.validation else [])]

    def inputs(self) -> Sequence[Input]:
        return list(self._inputs())

    def _inputs(self) -> Iterator[Input]:
        for name, of in self.conversations():
            yield from (Input(f"{name}.files", file) for file in of.files)
            if of.dataset and not of.on_the_hub:
                yield Input(f"{name}.dataset", Path(of.dataset))

    def unseen(self) -> Sequence[str]:
        return [
            f"{name}.dataset: {of.dataset!r}, split {of.split!r}, is on the hub or in its cache: not looked at here"
            for name, of in self.conversations()
            if of.on_the_hub
        ]
