"""What the recipes of stages that train have: optimiser, batch, checkpoints, and what is watched on the way."""

from typing import Annotated

from r1mega.config.cluster import Cluster
from r1mega.config.section import OnResume
from r1mega.config.training import Batch, Experts, Health, Optimizer, Save
from r1mega.families.spec import ModelSpec
from r1mega.layout.laws import length_faults, model_faults
from r1mega.recipe.from_model import FromModel
from r1mega.recipe.health import health_faults


class Training(FromModel):
    """Settings and laws that every training stage has."""

    optimizer: Optimizer
    batch: Annotated[Batch, OnResume.FREE]
    health: Annotated[Health, OnResume.FREE] = Health()
    experts: Annotated[Experts, OnResume.FREE] = Experts()
    save: Annotated[Save, OnResume.FREE]

    def longest(self) -> tuple[int, str] | None:
        """Tokens that some sequence will have, as far as settings alone tell, and the setting that tells."""
        return None

    def warmup_faults(self, num_steps: int, setting: str) -> list[str]:
        """Whether warm-up leaves a step at the full learning rate.

        Args:
            setting: what bounds the steps.
        """
        warmup = self.optimizer.warmup_steps
        if warmup < num_steps:
            return []
        return [
            f"optimizer.warmup_steps: {warmup} leaves no step at the full learning rate; {setting} is {num_steps}"
        ]

    def health_faults(self, num_steps: int, setting: str, *, whole: int = 1) -> list[str]:
        """As `recipe.health.health_faults`."""
        return health_faults(self.health, self.save, num_steps=num_steps, setting=setting, whole=whole)

    def faults(self) -> list[str]:
        faults = super().faults()
        if self.save.keep_every % self.save.every_steps:
            faults.append(
                f"save.keep_every: {self.save.keep_every} is no multiple of save.every_steps = "
                f"{self.save.every_steps}, so that not all of these steps are saved"
            )
        return faults

    def faults_on(self, machine: Cluster, spec: ModelSpec | None) -> list[str]:
        if spec is None:
            return super().faults_on(machine, spec)
        faults = model_faults(spec, machine.trainer, self.batch)
        fits = not faults  # what a rank holds follows from a layout that fits
        if longest := self.longest():
            faults += length_faults(longest[0], spec, self.batch, longest[1])
        return faults + (super().faults_on(machine, spec) if fits else [])
