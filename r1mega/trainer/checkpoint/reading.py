"""Which checkpoints on disk are whole: every file's length and CRC-32 against the manifest."""

import logging
from collections.abc import Sequence
from pathlib import Path

from r1mega.errors import CheckpointError
from r1mega.formats.manifest import read_manifest
from r1mega.trainer.checkpoint.writing import file_digest
from r1mega.trainer.mesh import Mesh

log = logging.getLogger(__name__)


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
