"""What stands in a Hugging Face folder: its config, its safetensors files and their index."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from r1mega.errors import ConfigError, WeightMappingError
from r1mega.weights import fp8
from r1mega.weights.safetensors import Entry, read_header

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
"""Size above which a new safetensors file is begun, as Hugging Face divides them."""


def read_config(folder: Path) -> tuple[dict[str, Any], bool]:
    """(fields, quantised): config.json without its quantization_config, and whether it has one.

    Raises:
        ConfigError: no such file, not JSON, or quantised in another way than DeepSeek's.
    """
    file = folder / "config.json"
    fields = _read_json(file, ConfigError)
    quantization = fields.pop("quantization_config", None)
    if quantization is not None:
        fp8.check_config(quantization, str(file))
    return fields, quantization is not None


def config_to_write(hf: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """config.json of a model whose weights are written as `dtype`, under the name before transformers 5 as well."""
    name = str(dtype).removeprefix("torch.")
    return {**hf, "dtype": name, "torch_dtype": name}


def read_files(folder: Path) -> tuple[list[tuple[Path, Entry]], list[str]]:
    """Every tensor of every file, and what the index says wrongly.

    Raises:
        WeightMappingError: no safetensors, an unreadable index, or files that are torn; lists them all.
    """
    index = folder / INDEX
    weight_map: dict[str, str] | None = None
    if index.is_file():
        fields = _read_json(index, WeightMappingError)
        weight_map = fields.get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise WeightMappingError(f"{index}: no weight_map of names to files")
    names = sorted({p.name for p in folder.glob("*.safetensors")})
    if weight_map is not None:
        # Others may lie beside, such as Meta's consolidated.safetensors.
        names = sorted(set(weight_map.values()) | {n for n in names if n.startswith("model")})
    if not names:
        raise WeightMappingError(f"{folder}: no safetensors file")
    entries: list[tuple[Path, Entry]] = []
    torn = []
    for name in names:
        if not (folder / name).is_file():
            named = weight_map is not None and name in weight_map.values()
            torn.append(f"{folder / name}: {f'missing, {INDEX} names it' if named else 'no file, or a broken link'}")
            continue
        try:
            entries += [(folder / name, entry) for entry in read_header(folder / name)]
        except WeightMappingError as e:
            torn.append(str(e))
    if torn:
        raise WeightMappingError("\n  ".join([f"{folder}: {len(torn)} file(s) cannot be used:", *torn]))
    return entries, [] if weight_map is None else _index_faults(weight_map, entries)


def _index_faults(weight_map: dict[str, str], entries: list[tuple[Path, Entry]]) -> list[str]:
    held: dict[str, list[str]] = {}
    for file, entry in entries:
        held.setdefault(entry.name, []).append(file.name)
    faults = [
        f"{name}: {INDEX} says {file}, found in {' and '.join(held.get(name, ['no file']))}"
        for name, file in weight_map.items()
        if file not in held.get(name, [])
    ]
    return faults + [f"{name}: in {held[name][0]}, not in {INDEX}" for name in held if name not in weight_map]


def _read_json(file: Path, error: type[Exception]) -> dict[str, Any]:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise error(f"{file}: cannot be read ({e.strerror})") from e
    except ValueError as e:
        raise error(f"{file}: not JSON ({e})") from e
    if not isinstance(fields, dict):
        raise error(f"{file}: expected a JSON object, found {type(fields).__name__}")
    return fields
