"""Checkpoints of a policy: everything that a resumed run needs to continue bit for bit at the layout that saved them.

A folder holds a Megatron distributed checkpoint of weights, reference and optimiser (`writing.py`), each rank's
random states and other files of its own, and `policy.json`, with every file's length and digest. Saving stops the
training loop for a copy in memory; threads write the copy, and rename the folder into place when all is on disk.
Loading at another layout of ranks continues the same training, up to rounding.
"""

import dataclasses
import json
import logging
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from r1mega.errors import CheckpointError, RanksLostError
from r1mega.formats.manifest import FORMAT, read_manifest
from r1mega.formats.reader import CheckpointReader
from r1mega.runtime.background import Background
from r1mega.trainer.checkpoint import random_states
from r1mega.trainer.checkpoint.publishing import collect_parts, publish
from r1mega.trainer.checkpoint.reading import damage
from r1mega.trainer.checkpoint.slices import Slices, find_slices, places_in_memory
from r1mega.trainer.checkpoint.writing import Contents, given_up, leave_failure, write_part
from r1mega.trainer.policy import Policy

log = logging.getLogger(__name__)

AXES = ("tp", "pp", "vpp", "ep", "etp", "cp", "dp")


class Checkpointer:
    """Saves a policy while it trains, and loads it at any layout. All ranks have one, and call it at the same steps.

        checkpointer = Checkpointer(policy)
        checkpointer.save(run_dir.checkpoint(40), {"step": 40}, asynchronous=True)  # a copy in memory, then on
        ... the next step ...
        checkpointer.check()  # tells of a disk that was full

    One checkpoint at a time is being written. Each rank writes its own part in a thread, and none waits for another:
    rank 0's thread alone waits for the parts, in the folder, and makes the checkpoint of them.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._writing = Background("checkpoint")
        self._unique, self._num_saves = "", 0
        self._slices: tuple[tuple[int, ...], Slices] | None = None
        """And where in memory they were found."""

    # ---- saving -----------------------------------------------------------------------------------------

    def save(
        self,
        folder: Path,
        extra: dict[str, Any],
        own: Mapping[str, bytes] | None = None,
        *,
        asynchronous: bool = False,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Write all that a resumed run needs; the folder appears complete or not at all, in an older one's place.

        If the save before is still being written, this waits for it.

        Args:
            extra: plain JSON that `load` returns; rank 0's counts.
            own: other files of this rank's, by name; they lie in the folder with the rest.
            asynchronous: return when the state is copied; `check` or `wait` tell how writing went.
            then: called on rank 0, in the thread that writes, when the folder stands.

        Raises:
            CheckpointError: it, or an asynchronous one before it, could not be written.
            RanksLostError: a rank has stopped writing its part of the one before, or rank 0 waits for it no longer.
        """
        self._writing.wait()  # first: its copy must be gone before there is another
        with self._policy.optimizer_here():
            contents = self._copy(own or {})
        manifest = _as_json(self._manifest(extra))
        # The name is agreed on here: the threads that write may enter no collective.
        temporary = folder.with_name(f".{folder.name}.{self._next_name()}.tmp")
        self._writing.start(lambda: self._write(temporary, folder, contents, manifest, then))
        if not asynchronous:
            self._writing.wait()
            self._policy.mesh.barrier()

    def check(self) -> None:
        """Raise what was not told yet of a save that failed; return at once in any case. Raises as `save`."""
        self._writing.check()

    def wait(self) -> None:
        """Return when the last save stands. Raises as `save`."""
        self._writing.wait()

    def abandon(self, grace_s: float) -> None:
        """Give the last save some time to stand, on the way out with an error of another kind; raises nothing."""
        self._writing.abandon(grace_s)

    @property
    def busy(self) -> bool:
        """Whether a save is being written."""
        return self._writing.busy

    def slices(self) -> Slices:
        """What this rank has; found once, and again where weights or states have moved in memory."""
        places = places_in_memory(self._policy)
        if self._slices is None or self._slices[0] != places:
            self._slices = places, find_slices(self._policy)
        return self._slices[1]

    def _copy(self, own: Mapping[str, bytes]) -> Contents:
        """This rank's part of the state as it is now, on the host."""
        slices = self.slices()
        boxes = [dataclasses.replace(box, values=box.values.detach().to("cpu", copy=True)) for box in slices.live]
        boxes += slices.saved_reference(self._policy)
        files = {**own, f"random_{self._policy.mesh.rank}.pkl": random_states.random_states()}
        return Contents(boxes, slices.expected(self._policy), slices.objects, files)

    def _write(
        self, temporary: Path, folder: Path, contents: Contents, manifest: dict[str, Any], then: Callable[[], None]
    ) -> None:
        """What runs in this rank's thread."""
        rank = self._policy.mesh.rank
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            write_part(temporary, rank, contents)
            if rank == 0:
                abandoned, silence_s = self._writing.abandoned.is_set, self._policy.mesh.layout.collective_timeout_s
                parts = collect_parts(temporary, self._policy.mesh.world_size, abandoned, silence_s)
                publish(temporary, folder, manifest, parts)
        except BaseException as error:
            contents.boxes.clear()
            if rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)  # or a full disk stays full
            elif leave_failure(temporary, rank, error):
                return  # rank 0 says it
            elif given_up(temporary, error):
                error = RanksLostError("the first rank waits for this one's part no longer")
            kind = RanksLostError if isinstance(error, RanksLostError) else CheckpointError
            raise kind(
                f"{folder}: could not be saved ({error}); the checkpoints before it are whole: mend this and "
                "continue with --resume"
            ) from error
        if rank == 0:
            then()

    def _next_name(self) -> str:
        """A name for the next save's temporary folder, the same on every rank, and never used before."""
        if not self._unique:
            self._unique = self._policy.mesh.from_first(lambda: secrets.token_hex(4))
        self._num_saves += 1
        return f"{self._unique}{self._num_saves}"

    def _manifest(self, extra: dict[str, Any]) -> dict[str, Any]:
        policy = self._policy
        return {
            "format": FORMAT,
            "reference": policy.reference is not None,
            "ranks": self._policy.mesh.world_size,
            "layout": self._layout(),
            "optimizer": {"step": max(group["step"] for group in policy.optimizer.param_groups)},
            "model": dict(policy.spec.hf),
            "extra": extra,
        }

    def _layout(self) -> dict[str, int]:
        layout = self._policy.mesh.layout
        return {axis: layout.expert_tp if axis == "etp" else getattr(layout, axis) for axis in AXES}

    # ---- loading ----------------------------------------------------------------------------------------

    def load(self, folder: Path, *, verified: bool = False) -> dict[str, Any]:
        """Fill a freshly built policy from a checkpoint of any layout; returns the `extra` of its `save`.

        Args:
            verified: `reading.newest_whole` has just read all of it.

        Raises:
            CheckpointError: missing, damaged, written by another version, or of another model.
        """
        policy = self._policy
        with policy.optimizer_here():
            manifest = read_manifest(folder)
            if manifest["model"] != _as_json(dict(policy.spec.hf)):
                changed = sorted(k for k in policy.spec.hf if policy.spec.hf[k] != manifest["model"].get(k))
                raise CheckpointError(
                    f"{folder}: belongs to another model; these fields differ: {', '.join(changed)}"
                )
            if not verified and (faults := damage(self._policy.mesh, folder)):
                raise CheckpointError("\n  ".join([f"{folder}: damaged, or torn:", *faults]))
            slices, reader = self.slices(), CheckpointReader(folder)
            reader.fill([*slices.weights(policy), *slices.moments()])
            for group in policy.optimizer.param_groups:
                group["step"] = manifest["optimizer"]["step"]
            policy.reference = None
            if manifest["reference"]:
                policy.refresh_reference()  # makes room; overwritten here
                reader.fill(slices.reference(policy))
            self._restore_random_states(folder, manifest["layout"])
        return manifest["extra"]

    def _restore_random_states(self, folder: Path, saved: dict[str, int]) -> None:
        """Each rank's own states; at another layout, whose ranks are others, states derived from rank 0's."""
        layout = self._layout()
        same = {"vpp": 1, **saved} == layout
        random_states.restore(folder / f"random_{self._policy.mesh.rank if same else 0}.pkl", same_layout=same)
        if not same and self._policy.mesh.first:
            then, now = (", ".join(f"{k} {v}" for k, v in at.items()) for at in (saved, layout))
            log.warning(
                "%s was saved at %s and is loaded at %s: training goes on up to rounding, with new random states",
                folder, then, now,
            )  # fmt: skip


def _as_json(value: Any) -> Any:
    """A copy that later changes do not reach, as JSON gives it back."""
    return json.loads(json.dumps(value))
