"""Which machine this is: device, driver, versions, commit, memory, compilers; one bf16 product, one Triton kernel."""

import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

from report import ROOT, Report, seconds

PACKAGES = ("torch", "triton", "megatron-core", "transformer-engine", "transformers", "numpy", "pydantic", "pytest")


def said(*command: str) -> str | None:
    """What a command prints, on one line; None where there is no such command or it fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Of this tree; of the carry where the tree came without its history."""
    described = said("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    carried = Path(os.environ.get("R1MEGA_CARRY", "."), "contents.json")
    return described or (json.loads(carried.read_text()).get("commit") if carried.exists() else None)


def host() -> dict[str, Any]:
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": len(os.sched_getaffinity(0)),
        "host_gib": round(int(memory["MemTotal"].split()[0]) / 2**20, 1),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "compiler": (said("g++", "--version") or "none").splitlines()[0],
        "nvcc": (said("nvcc", "--version") or "none").splitlines()[-1],
        "versions": {name: version(name) for name in PACKAGES},
    }


def device() -> dict[str, Any]:
    import torch

    free, total = torch.cuda.mem_get_info()
    driver = said("nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader")
    return {
        "device_name": torch.cuda.get_device_name(),
        "driver": driver,
        "capability": torch.cuda.get_device_capability(),
        "device_gib": [round(free / 2**30, 1), round(total / 2**30, 1)],
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": torch.cuda.nccl.version(),  # pyright: ignore[reportAttributeAccessIssue]
    }


def main() -> None:
    report = Report(__doc__ or "")
    report.note(**host())
    out = Path(os.environ.get("R1MEGA_OUT", "."))
    names = sorted(f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions())
    (out / "packages.txt").write_text("\n".join(names) + "\n")
    import torch

    if report.cuda:
        report.note(**device())
        (out / "nvidia-smi.txt").write_text(said("nvidia-smi", "-q") or "no nvidia-smi\n")
    size = 8192 if report.cuda else 256
    a, b = (torch.randn(size, size, device=report.device, dtype=torch.bfloat16) for _ in range(2))
    taken = seconds(lambda: a @ b, report.device)
    report.note(bf16_product={"size": size, "tflop_per_s": round(2 * size**3 / taken / 1e12, 4)})
    if report.cuda:
        assert report.figures["capability"][0] >= 9, "this check is for Hopper and later"
        import triton_kernel

        assert torch.equal(triton_kernel.doubled(a), 2 * a)
        report.note(triton="compiles and runs")


if __name__ == "__main__":
    main()
