"""What a GPU machine without a network must be given for tools/gpu/check.sh, in one folder of 60 MiB at most.

Everything is downloaded as requirements/gpu-check.lock has it, hashes and all, from the index that pip is set up
with. Transformer Engine's core library, 463 MB with device code for many architectures, is thinned to one (fatbin.py)
and packed again; its PyTorch part comes as source, to be compiled on the machine, or compiled here (--prebuild: half
an hour of one core, with PYTHON a 3.12 that has the machine's torch). The same lock gives the same bytes.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import fatbin

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements/gpu-check.lock"
LIMIT_BYTES = 60 << 20
SOURCE = "transformer-engine-torch"
CORE = "transformer_engine_cu13"
MACHINE = [
    "--python-version", "3.12", "--implementation", "cp",
    *(f for tag in ("2_28", "2_24", "2_17") for f in ("--platform", f"manylinux_{tag}_x86_64")),
    "--platform", "manylinux2014_x86_64", "--only-binary", ":all:",
]  # fmt: skip
EPOCH = (1980, 1, 1, 0, 0, 0)

# pip asks a source package for its metadata even where it only downloads it, and this one then imports torch, for the
# major version of CUDA. So it is given that, and nothing that could compile.
TORCH = '__version__ = "0"\n\n\nclass version:\n    cuda = "13.0"\n'
CPP_EXTENSION = """from setuptools import Extension
from setuptools.command.build_ext import build_ext as BuildExtension


def CppExtension(name, sources, **_):
    return Extension(name, [])
"""


def locked(lock: str) -> dict[str, str]:
    """Requirements by their names, each with its hashes."""
    found: dict[str, str] = {}
    for line in lock.splitlines():
        if line.startswith(" "):
            found[next(reversed(found))] += "\n" + line
        elif line and not line.startswith("#"):
            found[line.partition("==")[0]] = line
    return found


def matches(files: list[Path], requirements: dict[str, str]) -> bool:
    """Whether these are the lock's files and no others."""
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return sorted(digests) == sorted(line.split("sha256:")[1].split()[0] for line in requirements.values())


def download(folder: Path, requirements: dict[str, str]) -> list[Path]:
    """Every file that the lock names, in the order of their names; fetched where the folder has not just these.

    Raises:
        SystemExit: pip did not find one, or found another than the lock's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if matches(found := sorted(folder.iterdir()), requirements):
        return found
    with tempfile.TemporaryDirectory() as scratch:
        stand_in = Path(scratch, "torch/utils")
        stand_in.mkdir(parents=True)
        (stand_in.parent / "__init__.py").write_text(TORCH)
        (stand_in / "__init__.py").touch()
        (stand_in / "cpp_extension.py").write_text(CPP_EXTENSION)
        wheels, source = Path(scratch, "wheels.txt"), Path(scratch, "source.txt")
        wheels.write_text("\n".join(v for k, v in requirements.items() if k != SOURCE) + "\n")
        source.write_text(requirements[SOURCE] + "\n")
        for file, options in ((wheels, MACHINE), (source, ["--no-build-isolation", "--no-binary", ":all:"])):
            command = [
                sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps",
                "--require-hashes", "-r", str(file), "-d", str(folder), *options,
            ]  # fmt: skip
            environment = {**os.environ, "PYTHONPATH": scratch}
            done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                told = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
                sys.exit("carry: pip did not bring what requirements/gpu-check.lock names:\n" + "\n".join(told[-8:]))
    if not matches(found := sorted(folder.iterdir()), requirements):
        sys.exit(f"carry: {folder} holds other files too: {[f.name for f in found]}; name an empty one")
    return found


def thinned(wheel: Path, arch: int) -> tuple[bytes, dict[str, int]]:
    """The core library's wheel with device code for one architecture alone; and the sizes that it had and has."""
    packed, sizes = io.BytesIO(), {"wheel_bytes": wheel.stat().st_size}
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(packed, "w") as new:
        for item in old.infolist():
            data = bytearray(old.read(item))
            if item.filename.endswith(".so"):
                kept, there = fatbin.thin(data, arch)
                sizes |= {"library_bytes": len(data), "device_code_bytes": there, "kept_bytes": kept}
            # With a fixed date and mode, or the same wheel would be another file every time.
            info = zipfile.ZipInfo(item.filename, EPOCH)
            info.external_attr = 0o644 << 16
            large = len(data) > 1 << 20
            new.writestr(info, bytes(data), zipfile.ZIP_LZMA if large else zipfile.ZIP_DEFLATED)
    return packed.getvalue(), sizes


def tell(out: Path, sizes: dict[str, int]) -> int:
    """Write contents.json, print what is there; 2 where it is too much to carry."""
    files = {p.name: p.read_bytes() for p in sorted(out.iterdir())}
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    contents = {
        # For a tree that travels without its history.
        "commit": subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout.strip() or None,
        "lock": hashlib.sha256(LOCK.read_bytes()).hexdigest(),
        "files": {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in files.items()},
        "core": sizes,
    }
    (out / "contents.json").write_text(json.dumps(contents, indent=2) + "\n")
    for name, data in files.items():
        print(f"{len(data) / 2**20:8.2f} MiB  {name}")
    total = sum(map(len, files.values()))
    print(
        f"{total / 2**20:8.2f} MiB  in all, of {LIMIT_BYTES >> 20}; Transformer Engine's core was "
        f"{sizes['wheel_bytes'] / 2**20:.1f} packed, {sizes['kept_bytes'] / 2**20:.1f} of "
        f"{sizes['device_code_bytes'] / 2**20:.1f} MiB of device code stayed"
    )
    if total > LIMIT_BYTES:
        print(f"carry: more than {LIMIT_BYTES >> 20} MiB; take it apart, or leave something out", file=sys.stderr)
        return 2
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "build/gpu-carry")
    parser.add_argument("--arch", type=int, default=90, help="compute capability without its point; 90 is Hopper")
    parser.add_argument("--prebuild", action="store_true", help="compile Transformer Engine's PyTorch part here")
    parser.add_argument("--downloads", type=Path, help="a folder that keeps what pip brings (190 MB) for next time")
    options = parser.parse_args()
    out: Path = options.out
    if out.exists() and not (out / "contents.json").exists() and any(out.iterdir()):
        sys.exit(f"carry: {out} holds something else; name an empty folder, or one that this command has made")
    with tempfile.TemporaryDirectory() as scratch:
        files = download(options.downloads or Path(scratch), locked(LOCK.read_text()))
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        sizes: dict[str, int] = {}
        for file in files:
            if file.name.startswith(CORE):
                data, sizes = thinned(file, options.arch)
                name, version, *rest = file.name.split("-")
                (out / "-".join([name, version, f"0sm{options.arch}", *rest])).write_bytes(data)
            else:
                shutil.copyfile(file, out / file.name)
    if options.prebuild:
        build = [sys.executable, str(Path(__file__).with_name("te_build.py")), str(out), "--out", str(out)]
        subprocess.run(build, check=True)
    return tell(out, sizes)


if __name__ == "__main__":
    sys.exit(main())
