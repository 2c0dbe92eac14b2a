"""What rank 0 does to make one checkpoint of all ranks' parts: wait for them, join them, give the folder its name."""

import contextlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from r1mega.errors import CheckpointError, RanksLostError
from r1mega.formats.manifest import MANIFEST, digest
from r1mega.formats.torch_dist import StoredChunk, StoredTensor, cover_faults, metadata_files
from r1mega.runtime.files import put_folder, sync
from r1mega.trainer.checkpoint.writing import data_file, part_file, write_file

POLL_S = 0.05


def publish(temporary: Path, folder: Path, manifest: dict[str, Any], parts: list[dict[str, Any]]) -> None:
    """Make one checkpoint of all ranks' files, and give it its name.

    Args:
        manifest: what policy.json says, but for the files and its own digest.
        parts: as `collect_parts` returns them.

    Raises:
        CheckpointError: as `write_metadata`.
    """
    manifest["files"] = write_metadata(temporary, parts)
    manifest["crc32"] = digest(manifest)
    write_file(temporary / MANIFEST, lambda file: file.write(json.dumps(manifest, indent=2).encode()))
    # Names are synced before the folder is renamed: after a power cut it is there whole, or not at all.
    sync(temporary)
    put_folder(temporary, folder)


def collect_parts(folder: Path, num_ranks: int, gone: Callable[[], bool], silence_s: float) -> list[dict[str, Any]]:
    """Every rank's part, as they come; their files are removed.

    Args:
        gone: whether waiting has become pointless.
        silence_s: how long to wait for ranks of which nothing more comes to the folder.

    Raises:
        CheckpointError: a rank could not write its part, or `gone` came true.
        RanksLostError: for so long nothing came of any rank that is waited for.
    """
    seen, since = (num_ranks, 0), time.monotonic()
    while True:
        for failure in sorted(folder.glob("failed_*")):
            raise CheckpointError(f"rank {int(failure.name.removeprefix('failed_'))}: {failure.read_text()}")
        missing = [rank for rank in range(num_ranks) if not (folder / part_file(rank)).is_file()]
        if not missing:
            break
        if gone():
            raise CheckpointError(f"ranks {missing} have not written their parts")
        now = len(missing), _bytes_of(folder, missing)
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() > since + silence_s:
            raise RanksLostError(
                f"rank 0 waited for ranks {missing}: gone, or nothing more came of their parts within "
                f"cluster.trainer.collective_timeout_s = {silence_s:g} s"
            )
        time.sleep(POLL_S)
    parts = [json.loads((folder / part_file(rank)).read_text()) for rank in range(num_ranks)]
    for rank in range(num_ranks):
        (folder / part_file(rank)).unlink()
    return parts


def _bytes_of(folder: Path, ranks: Sequence[int]) -> int:
    """How much of these ranks' tensors has come to the folder."""
    found = 0
    for rank in ranks:
        with contextlib.suppress(OSError):  # not begun, or just taken back
            found += (folder / data_file(rank)).stat().st_size
    return found


def write_metadata(folder: Path, parts: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Write what makes all ranks' files one distributed checkpoint; returns every file's length and digest.

    Raises:
        CheckpointError: the parts do not make up whole tensors; lists them all.
    """
    tensors: dict[str, list[dict[str, Any]]] = defaultdict(list)
    objects: dict[str, StoredChunk] = {}
    for part in parts:
        for entry in part["entries"]:
            if "sizes" in entry:
                tensors[entry["key"]].append(entry | {"file": part["data"]})
            else:
                objects[entry["key"]] = StoredChunk((), (), part["data"], entry["at"], entry["length"])
    expected = {key: shape for part in parts for key, shape in part["expected"].items()}
    faults = [f"{key}: 0 of {math.prod(shape)} elements" for key, shape in expected.items() if key not in tensors]
    faults += [fault for key, entries in tensors.items() for fault in _not_whole(key, entries)]
    if faults:
        raise CheckpointError("\n  ".join(["the ranks' parts do not make up whole tensors:", *faults]))
    stored = {key: _stored(entries) for key, entries in tensors.items()}
    files = {name: written for part in parts for name, written in part["files"].items()}
    for name, content in metadata_files(stored, objects, "").items():
        files[name] = write_file(folder / name, lambda file, content=content: file.write(content))
    return files


def _stored(entries: list[dict[str, Any]]) -> StoredTensor:
    first = entries[0]
    places = [StoredChunk(tuple(e["offset"]), tuple(e["sizes"]), e["file"], e["at"], e["length"]) for e in entries]
    return StoredTensor(
        getattr(torch, first["dtype"]), tuple(first["shape"]), {place.offset: place for place in places}
    )


def _not_whole(key: str, entries: list[dict[str, Any]]) -> Iterator[str]:
    """What is wrong with the boxes of a tensor; nothing where they cover it once."""
    if len({(e["dtype"], *e["shape"]) for e in entries}) > 1:
        yield f"{key}: parts of different tensors"
        return
    boxes = [(tuple(e["offset"]), tuple(e["sizes"])) for e in entries]
    yield from (f"{key}: {fault}" for fault in cover_faults(tuple(entries[0]["shape"]), boxes))
