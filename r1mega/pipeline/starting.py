"""How a chain's stages start: each a process of its own, forked where the imports are there already, or afresh."""

import contextlib
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from r1mega.pipeline.plan import Planned
from r1mega.runtime import openmp, process
from r1mega.runtime.preloaded import Preloaded, PreloadError
from r1mega.runtime.ranks import Child

log = logging.getLogger(__name__)

BEFORE = ("typer", "r1mega.conversion.commands", "r1mega.recipe.load", "r1mega.runtime.run_dir")
ASKING = ("reasoning_gym", "transformers.models.auto.tokenization_auto")
AFTER = ("r1mega.report.show", "matplotlib.backends.backend_agg")
"""What a stage's process imports before its stage's module, in it where questions are asked, and at its end."""


def can_be_forked(plan: Planned) -> bool:
    """Whether a stage may run in a fork: one process, on the CPU. Several ranks are processes that start by
    themselves, and what the GPU's libraries do at their import is not known to survive a fork."""
    return plan.machine.device == "cpu" and plan.recipe.ranks(plan.machine) == 1


class Starts:
    """What starts the processes of a chain's stages; none of them outlives this process."""

    def __init__(self, plans: Sequence[Planned]) -> None:
        """
        Args:
            plans: of the stages that may have to run. One alone would gain nothing from another process's imports.
        """
        forked = [plan for plan in plans if plan.runs != "no" and can_be_forked(plan)]
        stages = dict.fromkeys(plan.recipe.runs.partition(":")[0] for plan in forked)
        asking = ASKING if any(plan.recipe.samples for plan in forked) else ()
        self._modules = (*BEFORE, *stages, *asking, *AFTER) if len(forked) > 1 else ()
        self._preloaded: Preloaded | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._give_up()

    def start(self, plan: Planned, arguments: Sequence[str]) -> Child:
        """A stage's process.

        Args:
            arguments: of `r1mega`.
        """
        if self._modules and can_be_forked(plan):
            try:
                return self._fork(arguments, plan.machine.environment.of_trainer)
            except PreloadError as error:
                log.warning("stages start by themselves, with imports of their own: no process to fork: %s", error)
                self._modules = ()
                self._give_up()
        command = [sys.executable, "-m", "r1mega.cli", *arguments]
        # Guarded: it ends with this process, however that ends. A signal reaches it once, from here.
        return process.spawn(command, environment=process.child_environment(), log_file=None, pass_signals=True)

    def _fork(self, arguments: Sequence[str], variables: Mapping[str, str]) -> Child:
        environment = process.child_environment(**variables, **openmp.preload())
        if self._preloaded is None:
            self._preloaded = Preloaded(self._modules, environment)
        return self._preloaded.start(arguments, environment, Path.cwd(), sys.stdout, sys.stderr)

    def _give_up(self) -> None:
        if self._preloaded is not None:
            with contextlib.suppress(OSError):
                self._preloaded.close()
        self._preloaded = None
