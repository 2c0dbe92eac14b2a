"""How long ranks wait for a sign of each other's life, and when one of them counts as slow. Reaches no torch."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from r1mega.config.section import OnResume, Section

BEATS_OF_SILENCE = 4
"""Fewer beats than these may be missed by a busy file system alone."""


class Watchdog(Section):
    """Signs of life of the trainer's ranks: files of the run directory, which each rank's own thread writes.

    A rank that waits longer for the others than `collective_timeout_s` and `first_rank_timeout_s` of the trainer's
    layout allow, or one that is silent, ends all of them with 75, so that the run is started again; before that every
    rank leaves the stacks of its threads in logs/stacks.
    """

    beat_s: Annotated[float, OnResume.FREE] = Field(default=5.0, gt=0)
    """Seconds between two signs. Each costs a small file's replacement; the first rank reads all ranks' at this
    rate. What is decided reaches every rank within three of them, and a collective's own time limit is six later."""
    silence_s: Annotated[float, OnResume.FREE] = Field(default=300.0, gt=0)
    """A rank that gives no sign for so long is stopped, or its host or its file system is gone. Longer than a shared
    file system may show one host's files to another as they were (NFS: a minute), and than Python may be held up by
    one call (reading a tokenizer, say)."""
    straggler_factor: Annotated[float, OnResume.FREE] = Field(default=1.5, gt=1)
    """A rank that computes for longer than so many times the median of all is slow."""
    straggler_steps: Annotated[int, OnResume.FREE] = Field(default=5, gt=0)
    """For so many optimiser steps in a row, before it is reported."""

    @model_validator(mode="after")
    def _several_beats(self) -> Self:
        if self.silence_s < BEATS_OF_SILENCE * self.beat_s:
            raise ValueError(
                f"silence_s = {self.silence_s:g} is less than {BEATS_OF_SILENCE} times beat_s = {self.beat_s:g}: a "
                "rank would be taken for lost because of a file that came late; raise the one or lower the other"
            )
        return self
