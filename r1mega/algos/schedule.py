"""Learning-rate schedules as a function of progress through the stage."""

import math
from typing import Literal, Protocol


class Schedule(Protocol):
    """What decides the learning rate; a stage's optimizer section is one."""

    @property
    def lr(self) -> float:
        """Learning rate after warm-up."""
        ...

    @property
    def min_lr_ratio(self) -> float:
        """Final learning rate over `lr`, for the decaying schedules."""
        ...

    @property
    def schedule(self) -> Literal["constant", "cosine", "linear"]: ...

    @property
    def warmup_steps(self) -> int: ...


def learning_rate(schedule: Schedule, step: int, progress: float) -> float:
    """Learning rate of the optimiser step about to be taken.

    Args:
        schedule: peak, shape, final ratio and warm-up.
        step: steps already taken; warm-up counts these: its first step runs at lr / warmup_steps, its last at lr.
        progress: share of the stage already done, 0 to 1 (steps, or time where the stage is bounded by time).
    """
    warmup = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    if schedule.schedule == "constant":
        return schedule.lr * warmup
    left = 1.0 - min(1.0, progress)
    share = 0.5 * (1.0 - math.cos(math.pi * left)) if schedule.schedule == "cosine" else left
    return schedule.lr * warmup * (schedule.min_lr_ratio + (1.0 - schedule.min_lr_ratio) * share)
