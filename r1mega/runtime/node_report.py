"""What a node says of itself before a stage starts on it: GPUs, disks, the shared folder, the package, the kernel.

Standard library alone, since it runs in whatever interpreter the trainer will have, and in seconds. Source of the
GPUs' fields: `nvidia-smi --help-query-gpu`; of the kernel's messages: NVIDIA's "Xid Errors".
"""

import contextlib
import csv
import errno
import hashlib
import io
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

GPU_FIELDS = (
    "index", "name", "memory.total", "memory.used", "ecc.errors.uncorrected.volatile.total", "remapped_rows.pending",
    "remapped_rows.failure",
)  # fmt: skip
QUERY = ("nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits")
COMMAND_S = 20.0
"""Longest time of a program that is asked; a driver that hangs makes nvidia-smi hang."""
SEEN_S = 5.0
"""How long a file of another node may seem not to be there: network file systems keep what they saw."""
WRITTEN = 1 << 20
"""Bytes written to a disk, since free space says nothing of a quota."""
GIB = 2**30
XIDS = {
    48: "double-bit ECC error",
    64: "ECC row could not be remapped",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    95: "uncontained ECC error",
    119: "GSP does not answer",
    120: "GSP error",
}
"""Of a GPU's kernel messages those that no program causes."""
XID_S = 3600.0
"""How far back kernel messages are looked at: a GPU that was reset since is well again."""
_XID = re.compile(r"^\[\s*(?P<at>[\d.]+)\] NVRM: Xid \((?P<gpu>[^)]*)\): (?P<number>\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Gpu:
    """As nvidia-smi has it."""

    index: str
    name: str
    used_gib: float
    """Memory that is in use."""
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeReport:
    """What a node says of itself. Texts are "" where there is nothing to say."""

    node: str
    gpus: tuple[Gpu, ...] | None = None
    """None: none were asked for, or nobody could be asked."""
    gpu_fault: str = ""
    """Why nvidia-smi gave no answer."""
    xids: tuple[str, ...] = ()
    """Messages of the kernel about its GPUs, where they may be read."""
    run_dir_free_gib: float = 0.0
    run_dir_fault: str = ""
    """Why the run directory cannot be written."""
    tmp: str = "/tmp"
    tmp_free_gib: float = 0.0
    tmp_fault: str = ""
    canary_fault: str = ""
    """Why what the first node has written to the run directory cannot be read."""
    version: str = ""
    code: str = ""
    """Digest of the package's files."""
    skew_s: float = 0.0
    """How far its clock is ahead of the first node's."""
    seconds: float = 0.0
    """What finding this out took."""

    @classmethod
    def read(cls, record: dict[str, Any]) -> Self:
        """Of `record`, as JSON gives it back."""
        gpus = record["gpus"]
        named = {**record, "xids": tuple(record["xids"])}
        named["gpus"] = None if gpus is None else tuple(Gpu(**{**g, "faults": tuple(g["faults"])}) for g in gpus)
        return cls(**named)

    def record(self) -> dict[str, Any]:
        return asdict(self)


def report(node: str, run_dir: Path, canary: tuple[Path, str], *, gpus: int, skew_s: float) -> NodeReport:
    """Ask this node.

    Args:
        canary: a file that the first node has written, and what it holds.
        gpus: how many are asked for; 0: nobody is asked about any.
    """
    began = time.monotonic()
    found, gpu_fault = ask_gpus() if gpus else (None, "")
    tmp = tempfile.gettempdir()
    version, code = package()
    return NodeReport(
        node=node,
        gpus=found,
        gpu_fault=gpu_fault,
        xids=_kernel_messages() if gpus else (),
        run_dir_free_gib=free_gib(run_dir),
        run_dir_fault=write_fault(run_dir),
        tmp=tmp,
        tmp_free_gib=free_gib(Path(tmp)),
        tmp_fault=write_fault(Path(tmp)),
        canary_fault=canary_fault(*canary),
        version=version,
        code=code,
        skew_s=skew_s,
        seconds=time.monotonic() - began,
    )


def ask_gpus(command: tuple[str, ...] = QUERY) -> tuple[tuple[Gpu, ...] | None, str]:
    """This node's GPUs; None and the reason where nobody could be asked."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, errors="replace")
    except FileNotFoundError:
        return None, ""  # an image without it: PyTorch finds its GPUs by itself
    except OSError as error:
        return (), f"{command[0]}: {error.strerror}"
    except subprocess.TimeoutExpired:
        return (), f"{command[0]} has not answered within {COMMAND_S:g} s: the driver hangs"
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        return (), f"{command[0]} ended with code {done.returncode}: {said[-1] if said else 'nothing said'}"
    return parse_gpus(done.stdout), ""


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """nvidia-smi's rows of GPU_FIELDS. Where a field is not supported it says [N/A], which is no fault."""
    found: list[Gpu] = []
    for row in csv.reader(io.StringIO(text), skipinitialspace=True):
        if len(row) != len(GPU_FIELDS):  # a GPU that cannot be asked has a sentence in its place
            said = ", ".join(row).strip()
            found += [Gpu("?", "of no name", 0.0, (f"nvidia-smi says {said!r}",))] if said else []
            continue
        index, name, total, used, ecc, pending, failure = (cell.strip() for cell in row)
        faults = [f"nvidia-smi says {cell} of it" for cell in dict.fromkeys(row) if _is_broken(cell)]
        if ecc.isdecimal() and int(ecc):
            faults.append(f"{ecc} uncorrected ECC error(s) since it was reset")
        if failure == "Yes":
            faults.append("a row of its memory could not be remapped")
        elif pending == "Yes":
            faults.append("a row of its memory waits to be remapped, for which it must be reset")
        in_use = float(used) / 1024 if _is_number(used) and _is_number(total) else 0.0
        found.append(Gpu(index, name, in_use, tuple(faults)))
    return tuple(found)


_NO_ANSWER = ("[N/A]", "[Not Supported]", "[Insufficient Permissions]")


def _is_broken(cell: str) -> bool:
    """Such as [Unknown Error], [GPU is lost], [GPU requires reset]."""
    return cell.strip().startswith("[") and cell.strip() not in _NO_ANSWER


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", text) is not None


def _kernel_messages() -> tuple[str, ...]:
    """Of the GPUs, where this user may read them."""
    try:
        said = subprocess.run(["dmesg"], capture_output=True, text=True, timeout=COMMAND_S, errors="replace").stdout
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ()
    return parse_xids(said, uptime_s)


def parse_xids(text: str, uptime_s: float) -> tuple[str, ...]:
    """Messages of dmesg of the last XID_S seconds that tell of a broken GPU, each once.

    Args:
        uptime_s: seconds since the node's start, from which the messages' times count.
    """
    found = [
        f"Xid {number} of GPU {match['gpu'].removeprefix('PCI:')} ({XIDS[number]})"
        for match in _XID.finditer(text)
        if (number := int(match["number"])) in XIDS and float(match["at"]) > uptime_s - XID_S
    ]
    return tuple(dict.fromkeys(found))


def free_gib(folder: Path) -> float:
    """Of the disk on which a folder lies or will lie; 0 where nothing can be said."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free / GIB
    except OSError:
        return 0.0


def write_fault(folder: Path) -> str:
    """Why a megabyte cannot be written into a folder; "" where it can."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".r1mega_check_") as file:
            file.write(bytes(WRITTEN))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or errno.errorcode.get(error.errno or 0, "cannot be written")
    return ""


def canary_fault(file: Path, text: str, seen_s: float = SEEN_S) -> str:
    """Why a file that another node has just written cannot be read here; "" where it holds `text`."""
    deadline = time.monotonic() + seen_s
    while True:
        try:
            found = file.read_text()
            fault = "" if found == text else "holds something else than the first node has written"
        except OSError as error:
            fault = error.strerror or "cannot be read"
        if not fault or time.monotonic() > deadline:
            return fault
        with contextlib.suppress(OSError):
            next(file.parent.iterdir(), None)  # has NFS look again
        time.sleep(0.2)


def package() -> tuple[str, str]:
    """Version of r1mega as this interpreter imports it, and a digest of its files."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(_sources(root)):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    import importlib.metadata

    try:
        version = importlib.metadata.version("r1mega")
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        version = ""
    return version, digest.hexdigest()[:12]


def _sources(root: Path) -> Iterator[Path]:
    return (file for file in root.rglob("*.py") if "__pycache__" not in file.parts)
