"""The file that makes a folder a checkpoint of this system, and says which model is in it. Imports no megatron."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1mega.errors import CheckpointError

FORMAT = 1
MANIFEST = "policy.json"


def read_model_fields(folder: Path) -> dict[str, Any]:
    """The fields of the config.json of the model in a checkpoint.

    Raises:
        CheckpointError: no manifest, or a torn one.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise CheckpointError(f"{folder}: not a checkpoint of this system ({MANIFEST} is missing)")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        return dict(manifest["model"])
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{file}: torn ({type(e).__name__}: {e})") from e


def saved_tp(folder: Path) -> int:
    """Tensor-parallel ranks of the run that saved a checkpoint, on which the stored vocabulary depends.

    Raises:
        CheckpointError: the manifest, which `read_model_fields` reads, names no such number.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    tp = manifest.get("layout", {"tp": 1}).get("tp")  # a converted folder is of no layout
    if type(tp) is not int or tp < 1:
        raise CheckpointError(f"{folder / MANIFEST}: torn (layout.tp = {tp!r})")
    return tp


def write_weights_only(folder: Path, model: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Write the manifest of a checkpoint that holds a model's weights and nothing of a run."""
    manifest = {"format": FORMAT, "reference": False, "ranks": 0, "weights_only": True}
    manifest |= {"model": dict(model), "extra": dict(extra)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """A checkpoint's policy.json.

    Raises:
        CheckpointError: missing, torn, changed, or of another version.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise CheckpointError(f"{folder}: not a checkpoint ({MANIFEST} is missing)")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
        raise CheckpointError(f"{file}: torn ({e})") from e
    if isinstance(manifest, dict) and manifest.get("weights_only"):
        raise CheckpointError(f"{folder}: holds weights and no run to resume; start a stage from it with model.path")
    keys = {"format", "reference", "ranks", "model", "extra", "layout", "optimizer", "files", "crc32"}
    if not isinstance(manifest, dict) or not keys <= manifest.keys():
        raise CheckpointError(f"{file}: torn, or not of a training run (expected {', '.join(sorted(keys))})")
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"{file}: format {manifest['format']}, this version reads {FORMAT}")
    if manifest["crc32"] != digest(manifest):
        raise CheckpointError(f"{file}: other bytes than were written (CRC-32)")
    return manifest


def digest(manifest: Mapping[str, Any]) -> int:
    """CRC-32 of what a manifest says, but for the number itself."""
    content = {key: value for key, value in manifest.items() if key != "crc32"}
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
