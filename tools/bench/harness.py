"""Times named variants of one computation against each other, in one run.

Variants take turns, so that whatever else the machine does meets them all alike. What to read is a variant's ratio to
the baseline of the same turn, never its absolute time: both are given as median and quartiles.
"""

import hashlib
import platform
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

Lap = Callable[[str], None]
"""Called by a variant where a part of it is done; the time from the variant's start goes under that name."""


def compare(variants: Mapping[str, Callable[[Lap], None]], *, baseline: str, repetitions: int) -> dict[str, Any]:
    """Run every variant once unmeasured, then all of them in turn, `repetitions` times.

    Returns:
        {variant: {lap: {wall_s, cpu_s, wall_ratio, cpu_ratio}}}, each {median, low, high} with the quartiles, and the
        ratios to the baseline's same lap in the same turn. CPU time is of all threads of this process; that of
        waiting threads is in it where the OpenMP runtime spins.
    """
    taken: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for turn in range(repetitions + 1):
        for name, variant in variants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            laps: dict[str, tuple[float, float]] = {}

            def lap(part: str, wall: float = wall, cpu: float = cpu, laps: dict = laps) -> None:
                laps[part] = time.perf_counter() - wall, time.process_time() - cpu

            variant(lap)
            for part, seconds in laps.items() if turn else ():
                taken[name, part].append(seconds)
    result: dict[str, Any] = {name: {} for name in variants}
    for (name, part), turns in taken.items():
        pairs = list(zip(turns, taken[baseline, part], strict=True))
        result[name][part] = {
            "wall_s": spread([own[0] for own in turns]),
            "cpu_s": spread([own[1] for own in turns]),
            "wall_ratio": spread([own[0] / base[0] for own, base in pairs]),
            "cpu_ratio": spread([own[1] / base[1] for own, base in pairs]),
        }
    return result


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, to four digits."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    low, median, high = (float(f"{q:.4g}") for q in quartiles)
    return {"median": median, "low": low, "high": high}


def provenance(packages: Sequence[str], sources: Sequence[Path]) -> dict[str, Any]:
    """What a figure depends on: commit, the measured files themselves, versions and device. No host name, no path.

    `commit` ends in -dirty where anything differed from it; `sources` then says whether the measured files did.
    """
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    files = {str(file.relative_to(ROOT)): hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in sources}
    return {
        "commit": commit or None,
        "sources": files,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "device": cpu_name(),
    }


def cpu_name() -> str:
    """The model as Linux gives it, else the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


def memory_bytes(field: str) -> int:
    """VmRSS (resident now) or VmHWM (its peak) of this process, in bytes. Linux."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))


def peak_growth_bytes(run: Callable[[], None]) -> int:
    """How far the resident memory of this process rises above where it stands while `run` runs.

    Only for a process that does nothing else before it: memory that was freed but not given back hides a rise.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = memory_bytes("VmRSS")
    run()
    return memory_bytes("VmHWM") - before
