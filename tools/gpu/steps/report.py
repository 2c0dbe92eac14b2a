"""What all steps of the check share: their argument, and how they tell what they have seen."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[3]


class Report:
    """Figures of a step, on disk as soon as they are known: a step that is ended leaves those it had."""

    def __init__(self, about: str, *, others: bool = False) -> None:
        """
        Args:
            about: the step's docstring.
            others: keep arguments that are not known here, in `rest`.
        """
        parser = argparse.ArgumentParser(description=about)
        parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
        known, self.rest = parser.parse_known_args()
        if self.rest and not others:
            parser.error(f"unknown: {self.rest}")
        self.device: str = known.device
        self.cuda = self.device == "cuda"
        self.figures: dict[str, Any] = {}
        self._file = os.environ.get("R1MEGA_STEP_RESULT")

    def note(self, **figures: Any) -> None:
        self.figures |= figures
        print(json.dumps(figures), flush=True)
        self._write({"figures": self.figures})

    def skip(self, reason: str) -> NoReturn:
        """The end of a step that has gone as far as this machine lets it."""
        self._write({"figures": self.figures, "skipped": reason})
        print(f"skipped: {reason}", flush=True)
        sys.exit(0)

    def no_kernels(self, covered: str) -> NoReturn:
        """The end where the first CUDA kernel would be called."""
        self.note(covered=covered)
        self.skip("needs CUDA kernels")

    def _write(self, what: dict[str, Any]) -> None:
        if self._file:
            Path(self._file).write_text(json.dumps(what))


def relative(found: Any, want: Any) -> float:
    """||found - want|| / ||want||, in fp64."""
    import torch

    found, want = found.detach().double(), want.detach().double().to(found.device)
    return float(torch.linalg.vector_norm(found - want) / torch.linalg.vector_norm(want).clamp(min=1e-30))


def seconds(call: Any, device: str, repetitions: int = 3) -> float:
    """The least of some calls after one that does not count."""
    import time

    import torch

    best = float("inf")
    for turn in range(repetitions + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        if turn:
            best = min(best, time.perf_counter() - start)
    return best
