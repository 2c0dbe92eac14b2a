"""What of a run is shown elsewhere, beside the run directory, which has all of it."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from r1mega.config.section import Section


class Wandb(Section):
    """Weights & Biases: one run there for each run directory. Nothing of a run depends on it."""

    mode: Literal["auto", "offline", "online", "disabled"] = "auto"
    """auto: as WANDB_MODE in the environment says; without it online where `wandb login` has left a key, otherwise
    offline files in the run directory. Where another choice and WANDB_MODE differ, the one that shows less to others
    holds: disabled before offline before online. Where an online run cannot reach its server, it writes the files,
    which `slurm/wandb_sync.sh` sends."""
    project: str = "r1mega"
    entity: str | None = None
    """Whose project it is; without it the default of whoever is logged in."""
    group: str | None = None
    """Which runs are shown together; without it WANDB_RUN_GROUP, or else the chain whose stage this is."""
    tags: tuple[Annotated[str, StringConstraints(min_length=1, max_length=64)], ...] = ()
    transcripts: int = Field(default=32, ge=0, le=1000)
    """Answers of a rollout in its table, spread evenly over all of it, each text cut at 4,000 characters; 0 makes no
    tables. samples/ has all answers whole."""
    transcripts_every: int = Field(default=10, gt=0)
    """Optimiser steps between two such tables, or a hundredth of the steps taken where that is more."""
    references: bool = True
    """Whether checkpoints and exported models are listed as artifacts: where they lie, and whose policy they are.
    Their weights stay where they are."""
    alerts: bool = True
    """Whether a warning or alert of events.jsonl is raised there, once for each cause."""
