"""Sections that every stage which trains has: optimiser, batch, checkpoints, and what is watched on the way."""

from typing import Literal

from pydantic import Field

from r1mega.config.section import Section


class Optimizer(Section):
    """Adam with decoupled weight decay, and the learning-rate schedule."""

    lr: float = Field(gt=0)
    """Peak learning rate."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Final learning rate as a share of `lr`; used by the cosine and linear schedules."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    """Optimiser steps of linear warm-up from 0 to `lr`."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    clip_grad: float = Field(default=1.0, ge=0)
    """Bound on the global gradient norm; 0 does not clip."""


class Batch(Section):
    """How documents are laid out for the trainer. It changes speed and memory, never the result."""

    chunk_tokens: int = Field(gt=0)
    """Length of a packed chunk in tokens; documents are packed best-fit and do not see each other."""
    chunks_per_micro_batch: int = Field(default=1, gt=0)


class Save(Section):
    """Checkpoints of a run."""

    every_steps: int = Field(gt=0)
    """Optimiser steps between checkpoints; the last step is always saved."""
    keep_last: int = Field(default=2, gt=0)
    """How many of the newest checkpoints stay on disk. The second is used where the first is found damaged."""
    keep_every: int = Field(default=0, ge=0)
    """Checkpoints of steps that this divides stay for ever, and in an RL run the answers they would need to go on;
    0 keeps none but the newest."""
    asynchronous: bool = True
    """Whether training goes on while a checkpoint is written, with a copy of the state in memory until it is."""
    hf_every: int = Field(default=0, ge=0)
    """Optimiser steps between Hugging Face folders, hf_steps/step_N in the run directory; written beside training
    from a copy of the weights in the first rank's memory, which must hold the whole model; all ranks wait while it
    is gathered. 0: only the final weights, in hf."""


class Health(Section):
    """What becomes of an optimiser step whose numbers are wrong: its loss or its gradient norm is not finite, or far
    above what it was lately. The same on every rank, whichever of them met it.

    stop: the run ends with a message that names the step and what it learnt from; nothing is changed. log: the step
    is taken and written down. skip: its update is not taken: weights, moments, Adam's step count and expert biases
    stay as they are, and the step counts, for the learning rate and for the place in the data. drop_data: as skip,
    and the documents, or questions, that the step learnt from never come again. roll_back: the run ends with exit
    code 75, on which launchers start it again, and goes on from its last checkpoint with the data behind the step,
    so that nothing of what came between is learnt from.
    """

    non_finite: Literal["stop", "skip", "roll_back", "drop_data"] = "stop"
    """Of a loss or a gradient norm that is infinite or no number. Such an update is never taken."""
    spike: Literal["off", "log", "stop", "skip", "roll_back", "drop_data"] = "log"
    """Of one that is further above the median of the steps before than `loss_z` or `grad_norm_z` allows."""
    window: int = Field(default=64, ge=8)
    """Steps whose updates were taken that a step is held against; until there are so many, none is a spike."""
    loss_z: float = Field(default=10.0, ge=0)
    """Distance above the median, in standard deviations as the window's median absolute deviation estimates them; one
    is never taken for less than 2% of the median. 0: losses are not judged."""
    grad_norm_z: float = Field(default=10.0, ge=0)
    """The same of gradient norms, before clipping; 0: they are not judged."""
    limit: int = Field(default=20, gt=0)
    """Steps of a run that may be skipped, rolled back or have their data dropped; at one more the run stops.
    A roll-back ends the process with 75, as a lost rank does, and whoever starts it again counts it as a crash:
    a Slurm job, and by default `launchers/local.py`, gives up after 10."""

    def acts(self, action: str) -> list[str]:
        """The settings that choose an action."""
        return [name for name in ("non_finite", "spike") if getattr(self, name) == action]


class Experts(Section):
    """Watching the routers of a mixture of experts. It changes nothing of the training."""

    load_every: int = Field(default=10, ge=0)
    """Optimiser steps between rows of experts.jsonl, every expert's load in every layer; 0 writes none. The summary
    figures are on every step's line."""
    min_load: float = Field(default=0.01, ge=0, lt=1)
    """An expert that gets less than this of the even load is starved."""
    max_share: float = Field(default=0.9, gt=0, le=1)
    """An expert that more than this share of a layer's tokens choose is crowded; 1 looks for none."""
    patience: int = Field(default=20, gt=0)
    """Steps in a row with a starved or a crowded expert after which a layer's router counts as collapsed and is
    warned of, once."""
