"""Recipe of supervised fine-tuning on conversations; the stage is `r1mega.stages.sft`."""

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from r1mega.config.section import OnResume
from r1mega.data.settings import SFTData
from r1mega.families.registry import with_positions
from r1mega.families.spec import ModelSpec
from r1mega.recipe.memory import Holds
from r1mega.recipe.rows import TrainingOnRows


class SFT(TrainingOnRows):
    """Supervised fine-tuning on conversations: cold start (2.3.1), the 800K set (2.3.3), distillation (2.4)."""

    runs = "r1mega.stages.sft:run"
    script = "sft_stage"
    checks_data = "r1mega.preflight.conversations:check_conversations"
    learns_from = "conversations"

    stage: Literal["sft"]
    max_positions: int = Field(default=0, ge=0)
    """Raise the model's max_position_embeddings to this, its rotary positions unchanged; 0 leaves it. The report's
    context is longer than the 4,096 positions that Qwen2.5-Math states."""
    data: Annotated[SFTData, OnResume.FILES_BY_TOKENS]
    num_epochs: Annotated[int, OnResume.LENGTH] = Field(gt=0)
    """Passes over the data, each in its own order (report: 2 to 3)."""
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
        faults = super().faults()
        if self.model.path is None:
            faults.append(
                "model.path: SFT starts from a model's weights and its tokenizer: give the folder that has them"
            )
        if self.batch.chunk_tokens < self.data.max_tokens:
            faults.append(
                f"batch.chunk_tokens: {self.batch.chunk_tokens} is less than data.max_tokens = "
                f"{self.data.max_tokens}, and a chunk holds whole conversations"
            )
        return faults

    def longest(self) -> tuple[int, str]:
        return self.data.max_tokens, "data.max_tokens"

    def holds(self) -> Holds:
        return dataclasses.replace(super().holds(), mtp_learns=self.mtp != "off")

    def adapted(self, spec: ModelSpec) -> ModelSpec:
        return with_positions(spec, self.max_positions)
