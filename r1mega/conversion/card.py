"""The card of a converted model, and the counts that it states."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from r1mega.conversion.folders import Folder
from r1mega.families.spec import Kind, ModelSpec
from r1mega.formats import companions
from r1mega.formats.torch_dtypes import dtype_name


def num_parameters(folder: Folder) -> int:
    """Elements of the main model: MTP layers and what they repeat are not counted."""
    return sum(math.prod(row.shape) for row in folder.table if not row.mtp and row.kind is not Kind.COPY)


def elements_by_dtype(folder: Folder) -> dict[str, int]:
    """How many elements each dtype has, copies not counted."""
    counts: dict[str, int] = {}
    for row in folder.table:
        if row.kind is not Kind.COPY:
            name = dtype_name(folder.dtype(row))
            counts[name] = counts.get(name, 0) + math.prod(row.shape)
    return counts


def write_card(source: Folder, written: Folder, out: Path, *, dtype: str, checked: str) -> None:
    """README.md: whence the model comes, what it is, and what converted it.

    Args:
        checked: what the audit has made sure of.
    """
    extra = sum(math.prod(row.shape) for row in source.table if row.mtp and row.kind is not Kind.COPY)
    name = source.path.resolve().name
    rows = {
        "source": f"{source.form} folder `{name}`",
        "form": written.form,
        "family": source.spec.family,
        "parameters": f"{num_parameters(source):,}{f' and {extra:,} in MTP layers' if extra else ''}",
        **({"head": describe_head(source.spec)} if source.spec.head == "score" else {}),
        "tensors": f"{sum(len(row.hf) for row in written.table):,} under Hugging Face names",
        "dtype": dtype,
        "converted by": f"r1mega {companions.version()}, torch {torch.__version__}",
    }
    library = "r1mega" if written.stored_whole else "transformers"
    licences = companions.origin(source.path)
    companions.write_card(out, licences, library=library, title=name, rows=rows, said=[checked])


def describe_head(spec: ModelSpec) -> str:
    """Of a model of scores."""
    return f"one score a text ({spec.hf['architectures'][0]})"


def describe_dtypes(counts: Mapping[str, int]) -> str:
    """Element counts by dtype, the most frequent first."""
    return ", ".join(f"{name} ({n:,})" for name, n in sorted(counts.items(), key=lambda item: -item[1]))
