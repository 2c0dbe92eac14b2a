"""Compile Transformer Engine's PyTorch part from the carry's sources, with no CMake, no ninja and no CUDA compiler.

Its 28 files are plain C++ against the headers of torch and of CUDA's libraries; a compiler process for each file, as
many at a time as there are cores. What upstream's setup does beyond that (MPI, NVSHMEM) is not wanted.

    python tools/gpu/te_build.py CARRY --out FOLDER [--objects FOLDER] [--jobs N] [--files padding.cpp ...]
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


def compile_one(source: Path, target: Path, folders: list[Path], level: str) -> tuple[str, float, str]:
    """(file's name, seconds, what the compiler said where it failed)."""
    start = time.monotonic()
    command = [
        os.environ.get("CXX", "g++"), "-std=c++17", "-fPIC", level, "-g0", "-w", "-fvisibility=hidden",
        "-DTORCH_API_INCLUDE_EXTENSION_H", f"-DTORCH_EXTENSION_NAME={NAME}",
        *(f"-isystem{folder}" for folder in folders), "-c", str(source), "-o", str(target),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    return source.name, time.monotonic() - start, done.stderr if done.returncode else ""


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("carry", type=Path, help="tools/gpu/carry.sh's folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the extension")
    parser.add_argument("--objects", type=Path, help="where compiled files are kept for the next try")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--level", default="-O1", help="of optimisation; host code that starts kernels")
    parser.add_argument("--files", nargs="+", help="compile these alone, and link nothing")
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
        start, failed = time.monotonic(), 0
        with ThreadPoolExecutor(options.jobs) as pool:
            for name, seconds, fault in pool.map(lambda f: compile_one(f, targets[f], folders, options.level), to_do):
                print(f"{seconds:7.1f} s  {name}" + (f"  FAILED\n{fault[-3000:]}" if fault else ""), flush=True)
                failed += bool(fault)
        if failed:
            print(f"te_build: {failed} of {len(to_do)} files did not compile", file=sys.stderr)
            return 1
        if not options.files:
            options.out.mkdir(parents=True, exist_ok=True)
            link([targets[f] for f in files], options.out / library_name())
        print(f"{len(to_do)} files in {time.monotonic() - start:.0f} s with {options.jobs} at a time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
