"""What a model folder holds, in a dozen lines."""

import math
from pathlib import Path

from r1mega.conversion.card import describe_dtypes, describe_head, elements_by_dtype, num_parameters
from r1mega.conversion.folders import HFFolder, check_copies, open_folder
from r1mega.families.spec import Kind
from r1mega.formats.torch_dtypes import dtype_name


def describe(path: Path, *, with_tensors: bool = False) -> list[str]:
    """Lines about a folder, which is checked whole: names, shapes, dtypes, what it repeats.

    Args:
        with_tensors: one more line a tensor.

    Raises:
        ConversionError, ConfigError, WeightMappingError, CheckpointError: what is wrong with it.
    """
    folder = open_folder(path)
    check_copies(folder)
    spec = folder.spec
    own = [row for row in folder.table if row.kind is not Kind.COPY]
    copies = folder.repeated() if isinstance(folder, HFFolder) else []
    in_mtp = sum(math.prod(row.shape) for row in own if row.mtp)
    files = folder.files()
    lines = [
        f"{path}: {folder.form} folder",
        f"family      {spec.family}: {spec.num_layers} layers of {spec.hidden_size}, vocabulary {spec.vocab_size}",
        f"parameters  {num_parameters(folder):,}" + (f", and {in_mtp:,} in MTP layers" if in_mtp else ""),
        f"tensors     {sum(len(row.hf) for row in own):,} under Hugging Face names, {len(own):,} under Megatron's",
        f"elements    {describe_dtypes(elements_by_dtype(folder))}",
        f"files       {len(files)}, {sum(f.stat().st_size for f in files) / 1e9:.3f} GB",
    ]
    if spec.head == "score":
        lines.append(f"head        {describe_head(spec)}")
    if isinstance(folder, HFFolder) and folder.quantised:
        lines.append("quantised   FP8 (e4m3, blocks of 128 x 128), read as bfloat16")
    if isinstance(folder, HFFolder) and folder.left_out:
        lines.append(f"left out    {len(folder.left_out)} inverse frequencies, those of config.json's rope")
    if copies:
        lines.append(f"repeats     {', '.join(copies)}: equal to their originals")
    lines.append("complete    every tensor of the model is there once, with the shape that its config gives it")
    if folder.stored_whole:
        lines.append("not read    the tensors' data, whose checksums `verify` and `to-hf` compare as they read it")
    if with_tensors:
        for row in folder.table:
            if folder.has(row):
                dtype = dtype_name(folder.dtype(row))
                lines += [f"{name}  {shape}  {dtype}" for name, shape in zip(row.hf, row.hf_shapes, strict=True)]
    return lines
