"""What stands in a Hugging Face folder: its config, its safetensors files and their index."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1mega.errors import ConfigError, WeightMappingError
from r1mega.families.fields import read_json
from r1mega.families.quantization import quantization_faults
from r1mega.formats.safetensors import Entry, read_header
from r1mega.runtime.files import dump_json

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
"""Size above which a new safetensors file is begun, as Hugging Face divides them."""


def read_config(folder: Path) -> tuple[dict[str, Any], bool]:
    """(fields, quantised): config.json without its quantization_config, and whether it has one.

    How weights are stored is looked at here although a family looks at it too: a folder may be asked for the weights
    of a model that is known already, and its other fields are then nobody's.

    Raises:
        ConfigError: no such file, not JSON, or quantised in another way than DeepSeek's.
    """
    file = folder / "config.json"
    fields = read_json(file, ConfigError)
    quantization = fields.pop("quantization_config", None)
    if quantization is not None and (faults := quantization_faults(quantization)):
        raise ConfigError(f"{file}: {'; '.join(faults)}")
    return fields, quantization is not None


def write_config(
    folder: Path, hf: Mapping[str, Any], dtype: str, quantization: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write config.json of a model whose weights are written as `dtype`; returns its fields.

    The dtype stands there under the key of before transformers 5 as well.

    Args:
        dtype: torch's name of it, "bfloat16".
    """
    fields = {**hf, "dtype": dtype, "torch_dtype": dtype}
    if quantization is not None:
        fields["quantization_config"] = dict(quantization)
    dump_json(folder / "config.json", fields)
    return fields


def shard_names(num_shards: int) -> list[str]:
    """Names of a folder's safetensors files, as Hugging Face gives them."""
    if num_shards == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{num_shards:05d}.safetensors" for i in range(1, num_shards + 1)]


def write_index(folder: Path, weight_map: Mapping[str, str], total_bytes: int) -> None:
    """Write the index of a folder of several files.

    Args:
        weight_map: the file of each tensor.
    """
    dump_json(folder / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": dict(weight_map)})


def read_files(folder: Path) -> tuple[list[tuple[Path, Entry]], list[str]]:
    """Every tensor of every file, and what the index says wrongly.

    Raises:
        WeightMappingError: no safetensors, an unreadable index, or files that are torn; lists them all.
    """
    index = folder / INDEX
    weight_map: dict[str, str] | None = None
    if index.is_file():
        fields = read_json(index, WeightMappingError)
        weight_map = fields.get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise WeightMappingError(f"{index}: no weight_map of names to files")
    names = sorted({p.name for p in folder.glob("*.safetensors")})
    if weight_map is not None:
        # Others may lie there too, such as Meta's consolidated.safetensors.
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
