"""`r1mega convert`: what the command line shows of this room. Torch is imported inside the commands."""

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r1mega.config.load import load_cluster
from r1mega.config.training import Batch
from r1mega.errors import ConversionError
from r1mega.layout.laws import check_layout

if TYPE_CHECKING:
    from r1mega.conversion.convert import ConversionReport, Options

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Model folders: Hugging Face's and Megatron's, one into the other, inspected, compared.",
)

Processes = Annotated[int | None, typer.Option("--processes", min=1, help="Default: one for each core.")]
TokenizerDir = Annotated[Path | None, typer.Option("--tokenizer", help="Its folder, where the model has none.")]
NoTokenizer = Annotated[bool, typer.Option("--no-tokenizer", help="Convert a model that has none.")]
Out = Annotated[Path, typer.Argument(help="A folder that does not exist; it appears when it is complete.")]


class DType(StrEnum):
    """What to-hf writes weights as."""

    BF16 = "bf16"
    FP8_BLOCK = "fp8-block"
    FP8_BLOCK_UE8M0 = "fp8-block-ue8m0"


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@app.command("to-megatron")
def to_megatron(
    hf_dir: Annotated[Path, typer.Argument(help="A Hugging Face folder.")],
    out: Out,
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="Refuse a model that its layout cannot hold.")
    ] = None,
    processes: Processes = None,
    tokenizer: TokenizerDir = None,
    no_tokenizer: NoTokenizer = False,
) -> None:
    """Write a Megatron checkpoint of the weights, which loads into any layout and is a stage's model.path."""
    from r1mega.conversion.convert import convert
    from r1mega.conversion.folders import open_folder

    source = open_folder(hf_dir)
    if source.stored_whole:
        raise ConversionError(f"{hf_dir}: is a Megatron checkpoint already; `r1mega convert to-hf` is the other way")
    if cluster is not None:
        layout = load_cluster(cluster).trainer
        check_layout(source.spec, layout, Batch(chunk_tokens=layout.tp))
    options = _options(processes, tokenizer, no_tokenizer)
    _show(convert(hf_dir, out, "megatron", None, options), out)


@app.command("to-hf")
def to_hf(
    checkpoint: Annotated[Path, typer.Argument(help="A Megatron checkpoint, or a Hugging Face folder to recast.")],
    out: Out,
    dtype: Annotated[DType | None, typer.Option("--dtype", help="Default: as stored; FP8 becomes bf16.")] = None,
    processes: Processes = None,
    tokenizer: TokenizerDir = None,
    no_tokenizer: NoTokenizer = False,
) -> None:
    """Write a Hugging Face folder of a checkpoint's weights.

    fp8-block is the form of DeepSeek-V3, fp8-block-ue8m0 that of DeepSeek-V3.1, whose scales are powers of two.
    """
    from r1mega.conversion.convert import convert

    options = _options(processes, tokenizer, no_tokenizer)
    _show(convert(checkpoint, out, "hf", dtype.value if dtype else None, options), out)


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="A Hugging Face folder or a Megatron checkpoint.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
) -> None:
    """Say what a folder holds, or everything that is wrong with it."""
    from r1mega.conversion.describe import describe

    print("\n".join(describe(folder, with_tensors=tensors)))


@app.command()
def verify(
    a: Annotated[Path, typer.Argument(help="A Hugging Face folder or a Megatron checkpoint.")],
    b: Annotated[Path, typer.Argument(help="Another.")],
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", min=0, help="Largest difference of two elements; default: bitwise.")
    ] = None,
) -> None:
    """Compare two folders tensor by tensor; exit 2 with every difference."""
    from r1mega.conversion.verify import verify as compare

    same = compare(a, b, tolerance)
    how = "bitwise equal" if tolerance is None else f"equal within {tolerance:g} (largest {same.largest:.3g})"
    print(f"{a} and {b}: {same.num_tensors} tensors, {how}")


def _options(processes: int | None, tokenizer: Path | None, no_tokenizer: bool) -> "Options":
    from r1mega.conversion.convert import Options

    if tokenizer is not None and no_tokenizer:
        raise ConversionError(f"--tokenizer {tokenizer} and --no-tokenizer contradict each other: give one of them")
    return Options(processes or _cores(), tokenizer, no_tokenizer)


def _show(report: "ConversionReport", out: Path) -> None:
    kept = f", {report.num_kept} of {report.num_parts} parts kept from before" if report.num_kept else ""
    repeated = f" and {report.num_repeated} repeated, equal to their originals" if report.num_repeated else ""
    rate = report.num_bytes / 1e6 / max(report.convert_s, 1e-9)
    print(
        f"{out}: {report.num_tensors} tensors{repeated}, {report.num_bytes / 1e9:.3f} GB in {report.convert_s:.1f} s "
        f"({rate:.0f} MB/s), audited in {report.audit_s:.1f} s{kept}"
    )
    if report.num_left_out:
        print(f"{out}: without {report.num_left_out} inverse frequencies, those of config.json's rope")
    print(f"{out}: " + (f"with the tokenizer of {report.tokenizer}" if report.tokenizer else "without a tokenizer"))
