"""What stages have that train on rows which were tokenised once: their place, and what is validated."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from r1mega.data.epochs import Epochs
from r1mega.data.token_store import TokenStore
from r1mega.errors import DataError
from r1mega.runtime.progress import Stopwatch
from r1mega.runtime.run_dir import RunDir
from r1mega.stages.records import Carried, Records
from r1mega.trainer.mesh import Mesh

log = logging.getLogger(__name__)


class DataPosition(Carried):
    """Where in which data a run stands."""

    def __init__(self, data: TokenStore, epochs: Epochs, run_dir: RunDir) -> None:
        self._digest, self._epochs, self._run_dir = data.about["digest"], epochs, run_dir

    def state(self, step: int) -> dict[str, Any]:
        return {"data": self._digest, "place": self._epochs.place(step)}

    def restore(self, state: Mapping[str, Any], checkpoint: Path) -> None:
        """Raises DataError: the checkpoint's place is one in other data."""
        if state["data"] != self._digest:
            raise DataError(
                f"{self._run_dir.path}: --resume with other rows, template or tokenizer than the run's own "
                f"(their tokens have digest {self._digest}, the checkpoint's {state['data']}): put them back, or "
                "start a new run"
            )


class Validation:
    """Rows that are not trained on, measured between steps."""

    def __init__(
        self,
        every: int,
        measure: Callable[[], dict[str, Any]],
        mesh: Mesh,
        run_dir: RunDir,
        records: Records,
        told: Mapping[str, str],
    ) -> None:
        """
        Args:
            measure: metrics of the current weights; every rank calls it and gets the same.
            told: metric -> how it is said in the log.
        """
        self._every, self._measure, self._told = every, measure, told
        self._mesh, self._run_dir, self._records = mesh, run_dir, records

    def due(self, step: int, *, last: bool) -> bool:
        return last or step % self._every == 0

    def run(self, step: int, *, last: bool) -> None:
        """Unless a run that this one resumes has done so at this step."""
        if self._mesh.from_first(lambda: self._logged(step)):
            return
        with Stopwatch() as watch:
            found = self._measure()
        self._records.log("validation", step, {**found, "seconds/validation": watch.seconds})
        if self._mesh.first:
            told = ", ".join(form.format(found[name]) for name, form in self._told.items() if name in found)
            log.info("step %d: validation %s", step, told)

    def _logged(self, step: int) -> bool:
        return any(row["kind"] == "validation" and row["step"] == step for row in self._run_dir.metrics())
