"""One server for the stages of a chain, from the first that needs one to the last; `rollout.kept` draws its owner."""

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import Field

from r1mega.config.section import Section
from r1mega.recipe.recipe import Recipe
from r1mega.runtime import env

FOLDER = ".server"
"""Within the chain's run directory: the server's log, and the record of which one runs."""


class ServerOfChain(Section):
    """The table [server] of a pipeline."""

    keep: bool = True
    """Whether stages hand their server on, where the next one asks the same architecture under the same layout: it
    takes the weights of that stage's folder, and answers as one that was started of it. Its memory stays taken while
    stages between them train."""
    max_model_len: int = Field(default=0, ge=0)
    """Tokens of the chain's longest prompt and answer, for which the server is laid out from the start; 0: for those
    of the stage that starts it, and it is started anew where a later one needs more."""


class Keeping:
    """While entered, the stages that this process starts hand their server on; afterwards none is left."""

    def __init__(self, run_dir: Path, settings: ServerOfChain) -> None:
        """run_dir: the chain's, which this process alone uses."""
        self._folder, self._settings = run_dir / FOLDER, settings

    def __enter__(self) -> Self:
        self._keeper = None
        if self._settings.keep:
            from r1mega.rollout.kept import Keeper
            from r1mega.runtime.process import Identity

            owner = Identity.of(os.getpid())
            assert owner is not None, "this process runs"
            self._keeper = Keeper(owner, self._folder, self._settings.max_model_len)
            self._keeper.end()  # one whose chain was killed a moment ago may still be ending
            self._keeper.tell()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keeper is not None:
            env.keep_server(None)
            self._keeper.end()

    def before(self, to_come: Iterable[Recipe]) -> None:
        """End the server where none of the stages that are still to run needs one."""
        if self._keeper is not None and not any(recipe.serves for recipe in to_come):
            self._keeper.end()
