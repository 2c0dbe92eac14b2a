"""What the recipes of all stages have: settings, laws, what is read, and the function that runs the stage."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from r1mega.config.cluster import Cluster
from r1mega.config.inputs import Input
from r1mega.config.model import Model
from r1mega.config.section import OnResume, RunSettings
from r1mega.config.watching import Wandb
from r1mega.families.spec import Head, ModelSpec
from r1mega.recipe.memory import Holds, memory_faults


@dataclass(frozen=True)
class ScoredModels:
    """What a stage that evaluates leaves judged, question by question (`evaluation.results`)."""

    models: tuple[str, ...]
    """Names of the models, each of which has a folder of that name in the run directory; ("",): the one model's
    results are in the run directory itself."""
    columns: Mapping[str, Mapping[str, Sequence[str]]]
    """Name -> "domains" and "sources" of the questions that have a score of their own
    (`evaluation.results.in_column`)."""
    asked: Mapping[str, Any]
    """Settings that have to agree where the models of two such stages are compared question by question."""


class Recipe(RunSettings):
    """Settings of one stage; a subclass a stage. What differs from stage to stage is said by these members.

    A fault is one sentence: which setting, what is wrong with it, and what would be right.
    """

    runs: ClassVar[str]
    """module:function that is the stage; takes (recipe, cluster, run directory)."""
    script: ClassVar[str]
    """Of slurm/, without .sh, that runs the stage on Slurm."""
    checks_data: ClassVar[str]
    """module:function that reads the stage's data as the stage would; takes (recipe, model or None, folder of the
    tokenizer or None) and `brief`, whether what the stage reads first thing and takes long is left to it."""
    learns_from: ClassVar[Literal["text", "conversations", "preferences", "rewards", "nothing"]]
    """What trains the model; "nothing": there is no trainer."""
    head: ClassVar[Head] = "lm"
    """What the model that it trains or asks, if there is one, ends in."""
    samples: ClassVar[bool] = False
    """Whether an engine answers questions."""
    keeps_data: ClassVar[bool] = False
    """Whether a run that resumes has all it learns from in its run directory, and needs the files no more."""

    wandb: Annotated[Wandb, OnResume.FREE] = Wandb()

    @property
    def begins_with(self) -> Model:
        """The model that it starts from; `Model()`, which names nothing, where it needs none."""
        return Model()

    @property
    def trains(self) -> bool:
        """Whether there is a trainer."""
        return self.learns_from != "nothing"

    @property
    def serves(self) -> bool:
        """Whether a server of ours runs a model."""
        return self.samples

    def ranks(self, machine: Cluster) -> int:
        """Processes of the stage: the trainer's ranks, or one where there is no trainer."""
        return machine.trainer.ranks if self.trains else 1

    def faults(self) -> list[str]:
        """Faults of the settings by themselves; weights and data that are not there yet are none (`inputs`)."""
        return []

    @classmethod
    def outdated(cls, table: Mapping[str, Any]) -> list[str]:
        """Settings of an earlier form in a config's tables, each with the form that there is now."""
        return []

    def faults_on(self, machine: Cluster, spec: ModelSpec | None) -> list[str]:
        """What cannot be done on a machine, whose layout by itself `layout.laws` has judged.

        Args:
            spec: the model, as `adapted` has made it, where anything is known of it.
        """
        return [] if spec is None else memory_faults(self.holds(), machine, spec)

    def resolved(self, machine: Cluster) -> Self:
        """These settings, those filled in that were left to the machine."""
        return self

    def faults_of_code(self) -> list[str]:
        """Faults of the user's own code that settings name; it is run to find them, in a process of its own."""
        return []

    def holds(self) -> Holds:
        """What of the model stays in memory."""
        return Holds(trainer=self.trains, engine=self.serves)

    def adapted(self, spec: ModelSpec) -> ModelSpec:
        """The model that the stage makes of the one it starts from.

        Raises:
            ConfigError: it cannot be made of this one.
        """
        return spec

    def inputs(self) -> Sequence[Input]:
        """Files and folders of data that the stage reads, and other models' folders; an earlier stage may write
        them."""
        return ()

    def reward_models(self) -> Mapping[str, Path]:
        """Setting -> the folder of a reward model that scores answers."""
        return {}

    def leaves(self) -> Sequence[str]:
        """What later stages may read of a finished run: files and folders by their names in the run directory."""
        return ("hf",) if self.trains else ()

    def scored(self) -> ScoredModels | None:
        """Whose answers a finished run leaves judged; None where the stage does not evaluate finished models."""
        return None

    def lacks(self) -> Sequence[str]:
        """What the stage cannot start without and this machine's environment lacks, a line each, with what to do."""
        return ()

    def unseen(self) -> Sequence[str]:
        """A line for whatever the stage reads that nobody looks at before it."""
        return ()

    def notes(self) -> Sequence[str]:
        """A line for what is not wrong, and may well not be meant."""
        return ()

    def tokenizer_files(self) -> Sequence[str]:
        """Files of a tokenizer that the stage needs of the folder that it starts from."""
        return ()


def imported(entry: str) -> Callable[..., Any]:
    """The function that "module:function" names, imported now: what a recipe names may reach torch."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)
