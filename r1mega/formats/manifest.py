"""The file that makes a folder a checkpoint of this system, and says which model is in it. Imports no megatron."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1mega.errors import CheckpointError

FORMAT = 1
MANIFEST = "policy.json"
METADATA = ".metadata"


def read_model_fields(folder: Path) -> dict[str, Any]:
    """The fields of the config.json of the model in a checkpoint, whose manifest and `.metadata` are as written.

    Data files are not read here: each of their chunks has a CRC-32 of its own, which reading it compares.

    Raises:
        CheckpointError: no manifest, a torn one, or other bytes than were written.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise CheckpointError(f"{folder}: not a checkpoint of this system ({MANIFEST} is missing)")
    manifest = _read(file)
    if not isinstance(manifest.get("model"), dict) or not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"{file}: torn, or of an older version: it names no model or no files; convert again")
    _check_digest(file, manifest)
    written, metadata = manifest["files"].get(METADATA), folder / METADATA
    if metadata.is_file() and (written is None or written["crc32"] != zlib.crc32(metadata.read_bytes())):
        raise CheckpointError(f"{metadata}: torn: other bytes than were written (CRC-32); restore the file")
    return manifest["model"]


def saved_tp(folder: Path) -> int:
    """Tensor-parallel ranks of the run that saved a checkpoint, on which the stored vocabulary depends.

    Raises:
        CheckpointError: the manifest, which `read_model_fields` reads, names no such number.
    """
    layout = _read(folder / MANIFEST).get("layout", {"tp": 1})  # a converted folder is of no layout
    tp = layout.get("tp") if isinstance(layout, dict) else None
    if type(tp) is not int or tp < 1:
        raise CheckpointError(f"{folder / MANIFEST}: torn (layout = {layout!r}, which says no tp)")
    return tp


def write_weights_only(folder: Path, model: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Write the manifest of a checkpoint that holds a model's weights and nothing of a run; its files are there.

    Of data files it says the length alone: each of their chunks has a CRC-32 of its own.
    """
    files: dict[str, dict[str, int]] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".distcp":
            files[file.name] = {"bytes": file.stat().st_size}
        elif file.name in (METADATA, "common.pt", "metadata.json"):
            content = file.read_bytes()
            files[file.name] = {"bytes": len(content), "crc32": zlib.crc32(content)}
    manifest = {"format": FORMAT, "reference": False, "ranks": 0, "weights_only": True}
    manifest |= {"model": dict(model), "extra": dict(extra), "files": files}
    manifest["crc32"] = digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _read(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
        raise CheckpointError(f"{file}: torn ({type(e).__name__}: {e})") from e
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{file}: torn (expected a JSON object, found {type(manifest).__name__})")
    return manifest


def _check_digest(file: Path, manifest: Mapping[str, Any]) -> None:
    if manifest.get("crc32") != digest(manifest):
        raise CheckpointError(f"{file}: other bytes than were written (CRC-32)")


def read_manifest(folder: Path) -> dict[str, Any]:
    """A checkpoint's policy.json.

    Raises:
        CheckpointError: missing, torn, changed, or of another version.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise CheckpointError(f"{folder}: not a checkpoint ({MANIFEST} is missing)")
    manifest = _read(file)
    if manifest.get("weights_only"):
        raise CheckpointError(f"{folder}: holds weights and no run to resume; start a stage from it with model.path")
    keys = {"format", "reference", "ranks", "model", "extra", "layout", "optimizer", "files", "crc32"}
    if not keys <= manifest.keys():
        raise CheckpointError(f"{file}: torn, or not of a training run (expected {', '.join(sorted(keys))})")
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"{file}: format {manifest['format']}, this version reads {FORMAT}")
    _check_digest(file, manifest)
    return manifest


def digest(manifest: Mapping[str, Any]) -> int:
    """CRC-32 of what a manifest says, but for the number itself."""
    content = {key: value for key, value in manifest.items() if key != "crc32"}
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
