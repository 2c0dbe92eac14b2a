"""Which OpenMP runtime the CPU kernels use.

PyTorch's CPU build brings GNU's, whose threads cost more than they gain on the small matrices of a tiny model: two
threads were slower than one, where Intel's runtime made them 1.5 times as fast (2 cores, a step of 2,018 tokens:
0.57 s with one thread, 1.10 s with two, 0.29 s with two on Intel's). It has to be there before the process starts.
"""

import os
import sys
from pathlib import Path


def preload() -> dict[str, str]:
    """What to add to the environment of a process that computes on the CPU; empty where there is no such runtime."""
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    loaded = os.environ.get("LD_PRELOAD", "")
    if not library.is_file() or library.name in loaded:
        return {}
    return {"LD_PRELOAD": f"{library}:{loaded}" if loaded else str(library)}


def always() -> dict[str, str]:
    """`preload` for a process that inherits nothing of this one's environment."""
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    return {"LD_PRELOAD": str(library)} if library.is_file() else {}


def restart_with_preload() -> None:
    """Replace this process by itself with the runtime preloaded; returns if it is already, or there is none."""
    extra = preload()
    if extra:
        os.execve(sys.executable, [sys.executable, "-m", "r1mega.cli", *sys.argv[1:]], {**os.environ, **extra})
