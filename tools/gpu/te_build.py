"""Compile Transformer Engine's PyTorch part from the carry's sources, with no CMake, no ninja and no CUDA compiler.

Its 28 files are plain C++ against the headers of torch and of CUDA's libraries; a compiler process for each file, as
many at a time as there are cores, after one that compiles the headers which they all include. What upstream's setup
does beyond that (MPI, NVSHMEM) is not wanted.

    python tools/gpu/te_build.py CARRY --out FOLDER [--objects FOLDER] [--jobs N] [--files padding.cpp ...]

CARRY is a folder with the source package: tools/gpu/carry.sh's, or where `pip download` has put it. `--report FILE`
leaves there what was compiled against what, how long each file took, and what the compiler said of those that failed;
written after each file, it also tells how far a run came that was ended.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

NAME = "transformer_engine_torch"


def library_name() -> str:
    """Of the finished extension, as this interpreter looks for it."""
    return NAME + sysconfig.get_config_var("EXT_SUFFIX")


def includes(source: Path) -> list[Path]:
    """Folders of headers, those that are there.

    Raises:
        SystemExit: one that the sources need is in none of the places.
    """
    import torch
    from torch.utils.cpp_extension import include_paths

    packages, home = Path(torch.__file__).parents[1], Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    common = source / "common_headers"
    cuda = [home / "include", *(packages / "nvidia").glob("cu1?/include"), packages / "nvidia/cuda_runtime/include"]
    found = [
        source / "csrc", common, common / "common", common / "common/include",
        *map(Path, include_paths()), Path(sysconfig.get_paths()["include"]),
        *cuda, *(folder / "cccl" for folder in cuda),
        *(packages / "nvidia" / name / "include" for name in ("cudnn", "nccl", "cublas", "cusparse", "cusolver")),
        Path("/usr/include"),
    ]  # fmt: skip
    headers = ("cuda_runtime.h", "cuda/std/utility", "cublas_v2.h", "cusparse.h", "cusolverDn.h", "cudnn.h", "nccl.h")
    missing = [h for h in (*headers, "Python.h") if not any((folder / h).exists() for folder in found)]
    if missing:
        sys.exit(f"te_build: no {', '.join(missing)} in torch's packages or {home} (CUDA_HOME)")
    # The compiler's own folder is searched anyhow, and in front of others it breaks the order of C++'s headers.
    return [folder for folder in dict.fromkeys(found) if folder.is_dir() and folder != Path("/usr/include")]


def compile_one(source: Path, target: Path, folders: list[Path], level: str, header: Path) -> tuple[str, float, str]:
    """(file's name, seconds, what the compiler said where it failed). `header` is included before all else."""
    start = time.monotonic()
    partial = target.with_suffix(".partial")
    command = [
        os.environ.get("CXX", "g++"), "-std=c++17", "-fPIC", level, "-g0", "-w", "-fvisibility=hidden",
        "-DTORCH_API_INCLUDE_EXTENSION_H", f"-DTORCH_EXTENSION_NAME={NAME}",
        *(f"-isystem{folder}" for folder in folders),
        *(("-x", "c++-header", str(source)) if source == header else ("-include", str(header), "-c", str(source))),
        "-o", str(partial),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.returncode:
        partial.rename(target)
    return source.name, time.monotonic() - start, done.stderr if done.returncode else ""


def versions(archive: Path, level: str) -> dict[str, str]:
    """What is compiled, against and with what."""
    import torch

    compiler = subprocess.run([os.environ.get("CXX", "g++"), "--version"], capture_output=True, text=True, check=True)
    return {
        "source": archive.name,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": sys.version.split()[0],
        "compiler": compiler.stdout.splitlines()[0],
        "optimisation": level,
    }


def link(objects: list[Path], library: Path) -> None:
    """One extension of all objects. Transformer Engine's core is not named: its loader has it in the process."""
    import torch

    where = Path(torch.__file__).parent / "lib"
    names = ("c10", "torch_cpu", "torch", "torch_python", "c10_cuda", "torch_cuda")
    there = [f"-l{n}" for n in names if (where / f"lib{n}.so").exists()]
    partial = library.with_suffix(".partial")
    command = [os.environ.get("CXX", "g++"), "-shared", "-o", str(partial), *map(str, objects), f"-L{where}"]
    subprocess.run([*command, *there], check=True)
    partial.rename(library)


class Told:
    """What came of each file, printed and in the report."""

    def __init__(self, report: Path | None, about: dict[str, str], files: int, kept: int) -> None:
        self._report, self._began, self.failed = report, time.monotonic(), 0
        self._of: dict[str, Any] = {**about, "files": files, "kept_from_before": kept, "compiled": {}, "errors": {}}

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def file(self, name: str, seconds: float, fault: str) -> None:
        """Of one that has ended: `fault` is what the compiler said, "" where it compiled."""
        print(f"{seconds:7.1f} s  {name}" + (f"  FAILED\n{fault[-3000:]}" if fault else ""), flush=True)
        self.failed += bool(fault)
        self._of["errors" if fault else "compiled"][name] = fault[-3000:] if fault else round(seconds, 1)
        self._write()

    def linked(self, library: Path) -> None:
        self._of["library_bytes"] = library.stat().st_size
        self._write()

    def _write(self) -> None:
        if self._report:
            self._report.write_text(json.dumps({**self._of, "seconds": round(self.seconds(), 1)}, indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("carry", type=Path, help="tools/gpu/carry.sh's folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the extension")
    parser.add_argument("--objects", type=Path, help="where compiled files are kept for the next try")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--level", default="-O1", help="of optimisation; host code that starts kernels")
    parser.add_argument("--files", nargs="+", help="compile these alone, and link nothing")
    parser.add_argument("--report", type=Path, help="a JSON file: versions, seconds of each file, errors")
    options = parser.parse_args()
    (archive,) = options.carry.glob(f"{NAME}-*.tar.gz")
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        source = next(Path(scratch).iterdir())
        objects = options.objects or Path(scratch, "objects")
        objects.mkdir(parents=True, exist_ok=True)
        folders = includes(source)
        files = sorted((source / "csrc").rglob("*.cpp"), key=lambda f: -f.stat().st_size)  # the longest first
        if options.files:
            files = [f for f in files if f.name in options.files]
        targets = {f: objects / f"{'_'.join(f.relative_to(source).parts)}.o" for f in files}
        to_do = [f for f in files if not targets[f].exists()]
        header = source / "csrc/extensions.h"
        told = Told(options.report, versions(archive, options.level), len(files), len(files) - len(to_do))
        told.file(*compile_one(header, header.with_suffix(".h.gch"), folders, options.level, header))
        with ThreadPoolExecutor(options.jobs) as pool:
            for done in as_completed(
                pool.submit(compile_one, f, targets[f], folders, options.level, header) for f in to_do
            ):
                told.file(*done.result())
        if told.failed:
            print(f"te_build: {told.failed} of {len(to_do)} files did not compile", file=sys.stderr)
            return 1
        if not options.files:
            options.out.mkdir(parents=True, exist_ok=True)
            link([targets[f] for f in files], options.out / library_name())
            told.linked(options.out / library_name())
        print(f"{len(to_do)} files in {told.seconds():.0f} s with {options.jobs} at a time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
