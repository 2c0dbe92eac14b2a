"""Checkpoints of a policy: everything that a resumed run needs to continue bit for bit at the layout that saved them.

A folder holds a Megatron distributed checkpoint of weights, reference and optimiser (`writing.py`), each rank's
random states and other files of its own, and `policy.json`, with every file's length and digest. Saving stops the
training loop for a copy in memory; threads write the copy, and rename the folder into place when all is on disk.
Loading at another layout of ranks continues the same training, up to rounding.
"""

import dataclasses
import hashlib
import json
import logging
import pickle
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from megatron.core import tensor_parallel

from r1mega.errors import CheckpointError, RanksLostError
from r1mega.formats.manifest import FORMAT, MANIFEST, digest, read_manifest
from r1mega.formats.reader import Reader
from r1mega.runtime.files import put_folder, sync
from r1mega.trainer.checkpoint.slices import REFERENCE, holdings
from r1mega.trainer.checkpoint.writing import (
    Contents,
    collect_parts,
    file_digest,
    given_up,
    leave_failure,
    write_file,
    write_metadata,
    write_part,
)
from r1mega.trainer.mesh import Mesh

if TYPE_CHECKING:
    from r1mega.trainer.policy import Policy

log = logging.getLogger(__name__)

AXES = ("tp", "pp", "vpp", "ep", "etp", "cp", "dp")


def save(
    policy: "Policy",
    folder: Path,
    extra: dict[str, Any],
    own: Mapping[str, bytes],
    then: Callable[[], None] = lambda: None,
) -> None:
    """Copy the state, and let `policy.saving` write the checkpoint and put it at `folder`, replacing an older one.

    Every rank calls this, and none waits for another. If the one before is still being written, this waits for it.

    Args:
        extra: the first rank's counts.
        own: files of each rank's.
        then: called in the writing thread of the first rank when the checkpoint stands.

    Raises:
        CheckpointError: the save before this one has failed.
        RanksLostError: it has, since a rank has stopped writing its part, or the first one waits for it no longer.
    """
    policy.saving.wait()  # first: its copy must be gone before there is another
    rank, num_ranks = policy.mesh.rank, policy.mesh.world_size
    held = holdings(policy)
    boxes = [dataclasses.replace(box, values=box.values.detach().to("cpu", copy=True)) for box in held.live]
    boxes += held.saved_reference(policy)
    files = {**own, f"random_{rank}.pkl": pickle.dumps(_random_states())}
    contents = Contents(boxes, held.expected(policy), held.objects, files)
    manifest = _as_json(_manifest_of(policy, extra))
    temporary = folder.with_name(f".{folder.name}.{policy.next_save()}.tmp")
    abandoned, silence_s = policy.saving.abandoned.is_set, policy.mesh.layout.collective_timeout_s

    def write() -> None:
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            write_part(temporary, rank, contents)
            if rank == 0:
                _publish(temporary, folder, manifest, collect_parts(temporary, num_ranks, abandoned, silence_s))
        except BaseException as error:
            contents.boxes.clear()
            if rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)  # or a full disk stays full
            elif leave_failure(temporary, rank, error):
                return  # the first rank says it
            elif given_up(temporary, error):
                error = RanksLostError("the first rank waits for this one's part no longer")
            kind = RanksLostError if isinstance(error, RanksLostError) else CheckpointError
            raise kind(
                f"{folder}: could not be saved ({error}); the checkpoints before it are whole: mend this and "
                "continue with --resume"
            ) from error
        if rank == 0:
            then()

    policy.saving.start(write)


def _publish(temporary: Path, folder: Path, manifest: dict[str, Any], parts: list[dict[str, Any]]) -> None:
    """Make one checkpoint of all ranks' files, and give it its name."""
    manifest["files"] = write_metadata(temporary, parts)
    manifest["crc32"] = digest(manifest)
    write_file(temporary / MANIFEST, lambda file: file.write(json.dumps(manifest, indent=2).encode()))
    sync(temporary)
    put_folder(temporary, folder)


def _manifest_of(policy: "Policy", extra: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "reference": policy.reference is not None,
        "ranks": policy.mesh.world_size,
        "layout": _layout(policy),
        "optimizer": {"step": max(group["step"] for group in policy.optimizer.param_groups)},
        "model": dict(policy.spec.hf),
        "extra": extra,
    }


def _layout(policy: "Policy") -> dict[str, int]:
    layout = policy.mesh.layout
    return {axis: layout.expert_tp if axis == "etp" else getattr(layout, axis) for axis in AXES}


# ---- what is on disk ----------------------------------------------------------------------------------------


def newest_whole(mesh: Mesh, folders: Sequence[Path]) -> Path | None:
    """The last of `folders`, oldest first, whose files are all as they were written. Every rank calls this.

    Damaged ones are named in a warning.

    Raises:
        CheckpointError: there are folders, and all are damaged; lists them.
    """
    damaged: list[str] = []
    for folder in reversed(folders):
        faults = damage(mesh, folder)
        if not faults:
            for text in damaged if mesh.first else ():
                log.warning("damaged checkpoint, using %s instead: %s", folder, text)
            return folder
        damaged.append("; ".join(faults))
    if damaged:
        raise CheckpointError("\n  ".join(["no checkpoint is whole:", *damaged]))
    return None


def damage(mesh: Mesh, folder: Path) -> list[str]:
    """What of a checkpoint is not as it was written; nothing where it is whole. The ranks read a share each."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        manifest, mine = None, [str(error)]
    else:
        names = sorted(manifest["files"])[mesh.rank :: mesh.world_size]
        mine = [f for name in names if (f := _damage_of(folder / name, manifest["files"][name]))]
    return list(dict.fromkeys(fault for part in mesh.gather(mine) for fault in part))


def _damage_of(file: Path, written: dict[str, int]) -> str:
    try:
        size = file.stat().st_size
        if size != written["bytes"]:
            return f"{file}: {size} bytes, {written['bytes']} were written"
        return "" if file_digest(file) == written else f"{file}: other bytes than were written (CRC-32)"
    except OSError as error:
        return f"{file}: {error.strerror}"


def _as_json(value: Any) -> Any:
    """A copy that later changes do not reach, as JSON gives it back."""
    return json.loads(json.dumps(value))


# ---- loading ------------------------------------------------------------------------------------------------


def load(policy: "Policy", folder: Path, *, verified: bool = False) -> dict[str, Any]:
    """Fill a freshly built policy from a checkpoint of any layout; returns its `extra`. Every rank calls this.

    Args:
        verified: `newest_whole` has just found it whole.

    Raises:
        CheckpointError: missing, damaged, written by another version, or of another model.
    """
    manifest = read_manifest(folder)
    if manifest["model"] != _as_json(dict(policy.spec.hf)):
        changed = sorted(k for k in policy.spec.hf if policy.spec.hf[k] != manifest["model"].get(k))
        raise CheckpointError(f"{folder}: belongs to another model; these fields differ: {', '.join(changed)}")
    if not verified and (faults := damage(policy.mesh, folder)):
        raise CheckpointError("\n  ".join([f"{folder}: damaged, or torn:", *faults]))
    found = holdings(policy)
    reader = Reader(folder)
    reader.fill([*found.weights(policy), *(box for part in found.held for box in part.moments())])
    for group in policy.optimizer.param_groups:
        group["step"] = manifest["optimizer"]["step"]
    policy.reference = None
    if manifest["reference"]:
        policy.refresh_reference()  # makes room; overwritten here
        assert policy.reference is not None
        parts = [part.whole(policy.reference[part.name]) for part in found.held]
        reader.fill([dataclasses.replace(box, key=REFERENCE + box.key) for box in parts])
    _restore_random(policy, folder, manifest)
    return manifest["extra"]


# ---- random states ------------------------------------------------------------------------------------------


def _random_states() -> dict[str, Any]:
    tracker: Any = tensor_parallel.get_cuda_rng_tracker()
    return {
        "torch": torch.get_rng_state().numpy(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
        "megatron": {k: v.cpu().numpy() for k, v in tracker.get_states().items()},
        "cuda": torch.cuda.get_rng_state().numpy() if torch.cuda.is_available() else None,
    }


def _restore_random(policy: "Policy", folder: Path, manifest: dict[str, Any]) -> None:
    """Each rank's own states; at another layout, whose ranks are others, states derived from the first rank's."""
    same = {"vpp": 1, **manifest["layout"]} == _layout(policy)
    file = folder / f"random_{policy.mesh.rank if same else 0}.pkl"
    try:
        data = file.read_bytes()
        states = pickle.loads(data)
    except (OSError, EOFError, ValueError, AttributeError, pickle.UnpicklingError) as e:
        raise CheckpointError(f"{file}: torn or missing ({type(e).__name__})") from e
    if same:
        _set_random_states(states)
        return
    seed = int.from_bytes(hashlib.sha256(data).digest()[:4], "big") >> 1
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    if policy.mesh.first:
        then, now = (", ".join(f"{k} {v}" for k, v in at.items()) for at in (manifest["layout"], _layout(policy)))
        log.warning(
            "%s was saved at %s and is loaded at %s: training goes on up to rounding, with new random states",
            folder, then, now,
        )  # fmt: skip


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(torch.from_numpy(states["torch"]))
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])
    if states.get("cuda") is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(states["cuda"]))
    tracker: Any = tensor_parallel.get_cuda_rng_tracker()
    tracker.set_states({k: torch.from_numpy(v) for k, v in states["megatron"].items()})
