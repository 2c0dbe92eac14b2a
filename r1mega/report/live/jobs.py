"""What has become of the jobs of a launched run (launch.json): asked of their launcher, and waited for no longer than
people wait."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from r1mega.launchers import tree
from r1mega.launchers.job import Phase
from r1mega.launchers.record import LaunchRecord

PATIENCE_S = 3.0
"""How long the first answer is waited for; a busy Slurm answers later, and the next look has it."""
ASK_EVERY_S = 20.0
"""A scheduler is not asked more often."""


@dataclass(frozen=True)
class StageJobSeen:
    """A stage's job."""

    id: str
    phase: Phase
    reason: str = ""

    def __str__(self) -> str:
        return f"job {self.id}{f' ({self.reason})' if self.reason else ''}"


class JobsSeen:
    """Of one run directory."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._known: dict[str, StageJobSeen] = {}
        self._fault = ""
        self._asked_at = -ASK_EVERY_S
        self._answer: threading.Thread | None = None
        self.stages: tuple[str, ...] = ()
        """Of a launched chain, in its order; empty of a stage by itself, and where nothing was launched."""

    def look(self, *, ask: bool = True) -> tuple[dict[str, StageJobSeen], list[str]]:
        """The last known job of every stage, and what could not be asked or read.

        Args:
            ask: False: of a run that is done, whose launcher need not be asked.
        """
        try:
            record = LaunchRecord.read(self._run_dir)
        except Exception as error:  # whatever stands in the file
            return self._known, [str(error)]
        if record is None:
            return {}, []
        jobs = [job for job in record.latest().values() if job is not None]
        alone = any(job.job.run_dir.resolve() == self._run_dir.resolve() for job in jobs)
        self.stages = () if alone else record.stages
        asking = self._answer is not None and self._answer.is_alive()
        if ask and not asking and time.monotonic() - self._asked_at >= ASK_EVERY_S:
            self._asked_at = time.monotonic()
            self._answer = threading.Thread(target=self._ask, args=(record,), daemon=True)
            self._answer.start()
            self._answer.join(PATIENCE_S)
        late = self._answer is not None and self._answer.is_alive()
        faults = [self._fault] if self._fault else []
        return self._known, [*faults, "its launcher has not answered yet: jobs are as they were"] if late else faults

    def _ask(self, record: LaunchRecord) -> None:
        try:
            found = tree.states(record)
        except Exception as error:
            self._fault = f"its jobs cannot be asked for: {error}"
            return
        self._fault = ""
        self._known = {
            name: StageJobSeen(job.id, state.phase, state.reason) for name, (job, state) in found.items() if job
        }
