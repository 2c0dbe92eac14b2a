"""What a run writes while it trains: checkpoints and Hugging Face folders, and which checkpoints stay."""

import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from r1mega.config.training import Save
from r1mega.errors import CheckpointError
from r1mega.runtime import heartbeat
from r1mega.runtime.background import Background
from r1mega.runtime.run_dir import RunDir
from r1mega.trainer.checkpoint.checkpointer import Checkpointer
from r1mega.trainer.checkpoint.reading import newest_whole
from r1mega.trainer.mesh import Mesh
from r1mega.trainer.policy import Policy
from r1mega.weights import hf_io

ALONE_GRACE_S = 60.0
"""How long a run that ends with an error lets what is being written become whole."""
RANKS_GRACE_S = 3.0
"""How long it does where other ranks may be gone; the launcher gives a failed run little more."""


def last_checkpoint(mesh: Mesh, run_dir: RunDir) -> Path | None:
    """The run's newest checkpoint that is whole. Every rank calls this.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    return newest_whole(mesh, mesh.from_first(lambda: [run_dir.checkpoint(s) for s in run_dir.saved_steps()]))


def refuse_another_runs(run_dir: RunDir, checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Hold a checkpoint's state against the run: the same step of another run is another policy.

    Raises:
        CheckpointError: it was saved by another run. (What an older version saved does not say.)
    """
    found, mine = state.get("policy"), run_dir.lineage
    if found is not None and (found["run"] not in mine.runs or found["start"] != mine.start):
        raise CheckpointError(
            f"{checkpoint}: saved by run {found['run']}, and {run_dir.path} holds run {mine.runs[0]}: remove it, or "
            "resume in the run directory that it is from"
        )


class Saves:
    """Writes while the training loop goes on. Every rank has one; all call its methods at the same steps."""

    def __init__(self, policy: Policy, run_dir: RunDir, settings: Save, tokenizer_dir: Path | None) -> None:
        """tokenizer_dir: whose files go along with Hugging Face folders."""
        self._policy, self._run_dir, self._settings = policy, run_dir, settings
        self._tokenizer_dir = tokenizer_dir
        self._checkpointer = Checkpointer(policy)
        self._exports = Background("export")
        # Set in the thread that writes and asked between two steps: an event, so that neither waits for the other.
        self._stands = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
            return
        grace_s = RANKS_GRACE_S if self._policy.mesh.world_size > 1 else ALONE_GRACE_S
        for job in (self._checkpointer, self._exports):
            job.abandon(0.0 if issubclass(kind, KeyboardInterrupt) else grace_s)

    def resume(self, checkpoint: Path) -> dict[str, Any]:
        """Fill the policy from a checkpoint that `last_checkpoint` has found whole; returns the state saved with it.

        Raises:
            CheckpointError: it is of another model, or was saved by another run.
        """
        state = self._checkpointer.load(checkpoint, verified=True)
        refuse_another_runs(self._run_dir, checkpoint, state)
        return state

    def checkpoint(self, step: int, state: dict[str, Any], own: dict[str, bytes] | None = None) -> None:
        """Save, and say whose policy it is; see `Checkpointer.save`.

        Returns when the state is copied, unless `save.asynchronous` is off.

        The last export ends first: a run that resumes at this step does not come by that one's again.
        """
        self._exports.join()
        state = {**state, "policy": self._run_dir.lineage.policy(step)}
        self._checkpointer.save(
            self._run_dir.checkpoint(step), state, own, asynchronous=self._settings.asynchronous, then=self._saved
        )

    def export_if_due(self, step: int) -> None:
        """A Hugging Face folder of the current weights, every `save.hf_every` steps."""
        every = self._settings.hf_every
        if every and step % every == 0:
            heartbeat.phase("export", step)
            identity = self._run_dir.lineage.policy(step)
            folder = self._run_dir.hf_step(step)
            hf_io.export(self._policy, folder, self._tokenizer_dir, identity=identity, beside=self._exports)

    def make_up(self, step: int) -> None:
        """The folder of the step at which a run resumes, where a kill took it. Every rank calls this.

        The step's checkpoint may have come to stand while its folder was still being written.
        """
        every, folder = self._settings.hf_every, self._run_dir.hf_step(step)
        if every and step and step % every == 0 and self._policy.mesh.from_first(lambda: not folder.exists()):
            self.export_if_due(step)

    def check(self) -> None:
        """Between two steps: raise what was not told yet of writing that failed.

        Raises:
            CheckpointError, OSError: a checkpoint or a folder could not be written; nothing half-written is left.
            RanksLostError: a rank has stopped writing its part of a checkpoint, or was too slow at it.
        """
        self._checkpointer.check()
        self._exports.check()

    def wait(self) -> None:
        """Return when all is on disk. Raises as `check`."""
        self._checkpointer.wait()
        self._exports.wait()

    def settled(self) -> bool:
        """Whether a checkpoint has come to stand since this was last asked; on rank 0 alone."""
        stands = self._stands.is_set()
        self._stands.clear()
        return stands

    def _saved(self) -> None:
        self._run_dir.prune_checkpoints(self._settings.keep_last, self._settings.keep_every)
        self._stands.set()
