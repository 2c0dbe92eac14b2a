"""Converting a model folder: in parts, over processes, resumable, audited, and complete or absent.

Beside OUT stands a work folder while a conversion runs: `plan.json` (what is converted, into what), `parts/` (the
records of the parts that are written and synced), `out/` (what will be OUT). A killed conversion leaves it, and the
same command goes on from it.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r1mega.conversion.card import describe_dtypes, elements_by_dtype, write_card
from r1mega.conversion.folders import Folder, HFFolder, check_copies, open_folder
from r1mega.conversion.workers import MB, ConversionJob, Workers, audit_part, write_part
from r1mega.conversion.writers import DType, Form, Part
from r1mega.errors import ConversionError, WeightMappingError
from r1mega.formats import companions, fp8_blocks
from r1mega.formats.hf_files import SHARD_BYTES
from r1mega.runtime import locks
from r1mega.runtime.files import make_folder, sync, write_json
from r1mega.runtime.progress import Bar, Stopwatch

PART_BYTES = 512 * 2**20
"""What one process writes, syncs and records at once: what a kill costs at most, times the processes."""

FP8_CHECKED = (
    "Every tensor was read back: FP8 blocks, multiplied out, are within half a step of e4m3 of their source, and "
    "every other tensor is its source, rounded to bf16 (count, shape, dtype, XXH3-128)."
)
CHECKED: Mapping[DType | None, str] = {
    None: "Every tensor was read back and compared with its source (count, shape, dtype, XXH3-128).",
    "bf16": "Every tensor was read back and is its source rounded to bf16 (count, shape, dtype, XXH3-128).",
    "fp8-block": FP8_CHECKED,
    "fp8-block-ue8m0": FP8_CHECKED,
}
"""What the audit makes sure of, in the words of the card."""


@dataclass(frozen=True)
class Options:
    """How a conversion runs; never what comes out but for the sizes."""

    num_processes: int
    tokenizer: Path | None = None
    """Folder of the tokenizer, where it is not the model's own."""
    without_tokenizer: bool = False
    shard_bytes: int = SHARD_BYTES
    part_bytes: int = PART_BYTES


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did."""

    num_tensors: int
    """Under Hugging Face names, each once."""
    num_repeated: int
    """Tensors that the source has a second time under another name, compared with their originals."""
    num_bytes: int
    num_parts: int
    num_kept: int
    """Parts that an earlier, killed run had written."""
    convert_s: float
    audit_s: float
    tokenizer: Path | None = None
    """The folder whose tokenizer went along."""
    num_left_out: int = 0
    """Tensors of the source that are no weights, equal to what its config.json gives: inverse frequencies."""


def convert(source: Path, out: Path, form: Form, dtype: DType | None, options: Options) -> ConversionReport:
    """Write the model in `source` to `out`, which appears when all of it is written, synced and audited.

    Args:
        source: a Hugging Face folder or a Megatron checkpoint.
        form: what `out` will be.
        dtype: of an "hf" folder; None keeps the source's (FP8 blocks become bf16).

    Raises:
        ConversionError: `out` exists, another conversion writes it, no tokenizer, the disk is full, or the source
            changed meanwhile.
        ConfigError, WeightMappingError, CheckpointError: what is wrong with the source, or what the audit found.
    """
    work = out.absolute().parent / f".{out.name}.converting"
    if os.path.lexists(out) and work.is_dir() and not (work / "out").exists():
        shutil.rmtree(work, ignore_errors=True)  # left by a kill just after OUT had appeared
    _check_absent(out)
    folder = open_folder(source)
    tokenizer = None
    if not options.without_tokenizer:
        tokenizer = companions.find_tokenizer(source, options.tokenizer, folder.spec.vocab_size)
    companion_files = companions.collect(companions.origin(source), tokenizer)
    num_repeated = check_copies(folder)
    job = ConversionJob(source, form, dtype, work / "out", options.part_bytes, options.shard_bytes)
    plan = _plan(folder, job)
    try:
        with _work_folder(work, plan):
            _check_absent(out)  # another process may have made it while this one waited or read
            report = _run(folder, job, work, companion_files, options.num_processes)
            left_out = len(folder.left_out) if isinstance(folder, HFFolder) else 0
            report = replace(report, num_repeated=num_repeated, tokenizer=tokenizer, num_left_out=left_out)
            if _plan(open_folder(source), job) != plan:
                raise ConversionError(f"{source}: changed while it was converted; run again, nothing was kept")
            _check_absent(out)
            (work / "out").rename(out)
            sync(work.parent)
            shutil.rmtree(work)
            return report
    except OSError as e:
        if e.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise ConversionError(f"{out}: appeared during the conversion, which is kept in {work}") from e
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConversionError(
            f"{out}: the disk is full; what is written is kept in {work}: make room and run the same command again, "
            "or remove it"
        ) from e


def _check_absent(out: Path) -> None:
    if os.path.lexists(out):  # a dangling link is something too
        raise ConversionError(f"{out}: exists; choose another folder, or remove it")


def _run(
    folder: Folder, job: ConversionJob, work: Path, companion_files: Mapping[str, Path], num_processes: int
) -> ConversionReport:
    """Fill the work folder's `out`."""
    writer = job.writer()
    gone = writer.create(job.out)
    records = {n: r for n, r in _finished(work, writer.parts).items() if n not in gone}
    todo = [part for part in writer.parts if part.number not in records]
    total = sum(part.num_bytes for part in writer.parts)
    kept = total - sum(part.num_bytes for part in todo)
    free = shutil.disk_usage(work).free
    if free < total - kept:
        raise ConversionError(
            f"{work.parent}: the disk is full: {(total - kept) / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB free"
        )

    def keep(record: Any) -> None:
        write_json(work / "parts" / f"{record['part']:06d}.json", record)
        records[record["part"]] = record

    with Workers(job, min(num_processes, len(writer.parts))) as workers:
        with Stopwatch() as converting, Bar("converting", total // MB, unit="MB", done=kept // MB) as bar:
            workers.run(write_part, [(part, None) for part in todo], bar, keep)
        in_order = [records[part.number] for part in writer.parts]
        writer.finish(job.out, in_order, _save_id(in_order))
        faults: list[str] = []
        with Stopwatch() as auditing, Bar("auditing", total // MB, unit="MB") as bar:
            workers.run(audit_part, list(zip(writer.parts, in_order, strict=True)), bar, faults.extend)
    if faults:
        shutil.rmtree(work / "parts")  # another run writes them anew
        summary = f"{job.out}: what was written is not what was read ({len(faults)} faults); nothing of it is kept:"
        raise WeightMappingError("\n  ".join([summary, *faults]))
    written = open_folder(job.out)
    companions.copy(companion_files, job.out)
    companions.write_generation_config(folder.spec, job.out)
    write_card(folder, written, job.out, dtype=_dtype_name(job, written), checked=CHECKED[job.dtype])
    for file in sorted(job.out.rglob("*")):
        sync(file)
    sync(job.out)
    num_tensors = sum(len(row.hf) for row in folder.table)
    return ConversionReport(
        num_tensors, 0, total, len(writer.parts), len(writer.parts) - len(todo), converting.seconds, auditing.seconds
    )


def _plan(folder: Folder, job: ConversionJob) -> dict[str, Any]:
    """What makes two runs the same conversion."""
    files = [(p.name, (s := p.stat()).st_size, s.st_mtime_ns) for p in folder.files()]
    model = hashlib.sha256(json.dumps(dict(folder.spec.hf), sort_keys=True, default=str).encode()).hexdigest()
    return {
        "version": companions.version(),
        "digest": "xxh3-128",
        "source": str(job.source.resolve()),
        "files": [list(f) for f in files],
        "model": model,
        "form": job.form,
        "dtype": job.dtype,
        "part_bytes": job.part_bytes,
        "shard_bytes": job.shard_bytes,
    }


@contextmanager
def _work_folder(work: Path, plan: dict[str, Any]) -> Iterator[None]:
    """Hold the work folder of this plan; that of another plan is emptied first.

    Raises:
        ConversionError: another process holds it.
    """
    try:
        make_folder(work)
        opened = (work / "lock").open("w")
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConversionError(f"{work}: cannot be made beside the output ({e.strerror}); choose another OUT") from e
    with opened as lock:
        if not locks.take(lock):
            raise ConversionError(f"{work}: another conversion is writing there; wait for it")
        file = work / "plan.json"
        try:
            same = json.loads(file.read_text(encoding="utf-8")) == plan
        except (OSError, ValueError):
            same = False
        if not same or not (work / "out").is_dir():
            file.unlink(missing_ok=True)
            for name in ("parts", "out"):
                shutil.rmtree(work / name, ignore_errors=True)
        (work / "parts").mkdir(exist_ok=True)
        (work / "out").mkdir(exist_ok=True)
        write_json(file, plan)
        yield


def _finished(work: Path, parts: list[Part]) -> dict[int, Any]:
    """Records of the parts that are written."""
    known = {part.number for part in parts}
    records = {}
    for file in sorted((work / "parts").glob("*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            number = record["part"]
        except (ValueError, KeyError, TypeError):  # torn by something else than us: the part is written anew
            continue
        if number in known:
            records[number] = record
    return records


def _save_id(records: list[Any]) -> str:
    """A name for the checkpoint that is the same for the same tensors."""
    return hashlib.sha256(json.dumps([r["digests"] for r in records]).encode()).hexdigest()[:32]


def _dtype_name(job: ConversionJob, written: Folder) -> str:
    if job.dtype is not None and job.dtype in fp8_blocks.FORMS:
        scales = ", scales powers of two" if "scale_fmt" in fp8_blocks.FORMS[job.dtype] else ""
        return f"FP8 (e4m3, blocks of 128 x 128{scales}), bf16 elsewhere"
    return describe_dtypes(elements_by_dtype(written))
