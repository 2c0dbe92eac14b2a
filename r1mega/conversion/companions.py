"""What travels with a model's weights: tokenizer, chat template, generation config, licence, and a model card."""

import importlib.metadata
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from r1mega.conversion.folders import Folder
from r1mega.errors import ConversionError
from r1mega.families.spec import Kind

TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Any one of these makes a tokenizer."""
# fmt: off
PATTERNS = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.*", "generation_config.json", "LICENSE*", "LICENCE*", "NOTICE*",
    "configuration_*.py", "modeling_*.py",
)
# fmt: on


def find_tokenizer(source: Path, given: Path | None) -> Path:
    """The folder whose tokenizer goes with a model: the one that was named, the model's own, or its run's.

    Raises:
        ConversionError: none has a tokenizer.
    """
    run = source.resolve().parent.parent  # of RUN/checkpoints/step_N
    places = [given] if given is not None else [source, run / "tokenizer", run / "hf"]
    for place in places:
        if any((place / name).is_file() for name in TOKENIZER):
            return place
    wanted = ", ".join(TOKENIZER[:-1]) + f" or {TOKENIZER[-1]}"
    raise ConversionError(
        f"{given or source}: no tokenizer ({wanted}); name its folder with --tokenizer, or convert without: "
        "--no-tokenizer"
    )


def copy_companions(source: Path, tokenizer: Path | None, out: Path) -> list[str]:
    """Copy them; a file of the tokenizer's folder comes before the source's of that name. Returns what was copied.

    Without a tokenizer, only what is not the tokenizer's is copied.
    """
    found: dict[str, Path] = {}
    for folder in (source, *([tokenizer] if tokenizer is not None else [])):
        found |= {p.name: p for pattern in PATTERNS for p in sorted(folder.glob(pattern)) if p.is_file()}
    if tokenizer is None:
        kept = ("generation_config.json",)
        found = {n: p for n, p in found.items() if n in kept or n.startswith(("LIC", "NOTICE", "config", "model"))}
    for name, file in found.items():
        shutil.copyfile(file, out / name)
    return sorted(found)


def write_generation_config(source: Folder, out: Path) -> None:
    """The special tokens of the model, where the source brought no file of its own."""
    file = out / "generation_config.json"
    if not file.exists():
        spec = source.spec
        fields = {"bos_token_id": spec.bos, "eos_token_id": spec.eos, "pad_token_id": spec.pad}
        file.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def version() -> str:
    """This system's own."""
    try:
        return importlib.metadata.version("r1mega")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def num_parameters(folder: Folder) -> int:
    """Elements of the main model: MTP layers and what they repeat are not counted."""
    return sum(math.prod(row.shape) for row in folder.table if not row.mtp and row.kind is not Kind.COPY)


def elements_by_dtype(folder: Folder) -> dict[str, int]:
    """How many elements each dtype has, copies not counted."""
    counts: dict[str, int] = {}
    for row in folder.table:
        if row.kind is not Kind.COPY:
            name = str(folder.dtype(row)).removeprefix("torch.")
            counts[name] = counts.get(name, 0) + math.prod(row.shape)
    return counts


def write_card(source: Folder, written: Folder, out: Path, *, dtype: str, copied: list[str]) -> None:
    """README.md: whence the model comes, what it is, and what converted it."""
    front: dict[str, Any] = {"library_name": "transformers" if not written.stored_whole else "r1mega"}
    licence = _licence(source.path)
    if licence:
        front["license"] = licence
    count = sum(len(row.hf) for row in written.table)
    extra = sum(math.prod(row.shape) for row in source.table if row.mtp and row.kind is not Kind.COPY)
    lines = [
        "---",
        *(f"{key}: {value}" for key, value in front.items()),
        "---",
        "",
        f"# {source.path.resolve().name}",
        "",
        f"| | |\n|---|---|\n| source | {source.form} folder `{source.path.resolve().name}` |",
        f"| form | {written.form} |",
        f"| family | {source.spec.family} |",
        f"| parameters | {num_parameters(source):,}{f' and {extra:,} in MTP layers' if extra else ''} |",
        f"| tensors | {count:,} under Hugging Face names |",
        f"| dtype | {dtype} |",
        f"| converted by | r1mega {version()}, torch {torch.__version__} |",
        "",
        "Every tensor was read back and compared with its source (count, shape, dtype, SHA-256).",
    ]
    if licence is None and not any(n.startswith(("LICENSE", "LICENCE")) for n in copied):
        lines.append("The source stated no licence.")
    (out / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _licence(folder: Path) -> str | None:
    """The licence in the front matter of a folder's own card."""
    file = folder / "README.md"
    if not file.is_file():
        return None
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:]:
        if line.strip() == "---":
            break
        if line.startswith("license:"):
            return line.removeprefix("license:").strip()
    return None


def describe_dtypes(counts: Mapping[str, int]) -> str:
    """Element counts by dtype, the most frequent first."""
    return ", ".join(f"{name} ({n:,})" for name, n in sorted(counts.items(), key=lambda item: -item[1]))
