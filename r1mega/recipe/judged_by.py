"""The model that judges in a stage without a trainer: settings and laws that its recipes share."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from r1mega.config.cluster import Cluster
from r1mega.config.inputs import Input
from r1mega.config.section import AnchoredPath, OnResume, Section
from r1mega.endpoint.settings import Endpoint
from r1mega.families.registry import read_model
from r1mega.recipe.answering import missing_key
from r1mega.recipe.asking import engine_faults
from r1mega.recipe.memory import Holds, memory_faults


class JudgedBy(Section):
    """The model that judges: behind an endpoint, or of a folder."""

    endpoint: Endpoint | None = None
    """A server that is there already."""
    model: AnchoredPath | None = None
    """A Hugging Face folder, which our own server serves once that of the answers has ended, and which is asked in
    its own chat template."""
    max_model_len: int = Field(default=16_384, gt=0)
    """Of a folder's server: tokens of a question to the judge and its answer, at most; where the model has fewer
    positions, so many. What they do not do for has no judgement."""
    max_failed: Annotated[float, OnResume.FREE] = Field(default=0.05, ge=0, le=1)
    """Share of the latest 64 judgements that may fail through no fault of the answers; past it the run stops and says
    why."""

    def faults(self, setting: str) -> list[str]:
        """What is wrong with the settings of the table `setting`, before anything is read."""
        if (self.endpoint is None) != (self.model is None):
            return []
        return [f"{setting}: give endpoint (a server) or model (a folder that is served here), not both or neither"]

    def inputs(self, setting: str) -> Sequence[Input]:
        """The folder, where there is one."""
        return [Input(f"{setting}.model", self.model, model=True)] if self.model else []

    def faults_on(self, setting: str, holds: Holds, machine: Cluster) -> list[str]:
        """Why the folder is not served on a machine."""
        if self.model is not None and (self.model / "config.json").is_file():
            known = read_model(self.model)
            found = engine_faults(machine, known) + memory_faults(holds, machine, known)
            return [f"{setting}.model: {fault}" for fault in found]
        return [] if self.model is None else engine_faults(machine, None)

    def lacks(self, setting: str) -> Sequence[str]:
        """What is to be done where its key is not set on this machine."""
        return missing_key(f"{setting}.endpoint", self.endpoint)
