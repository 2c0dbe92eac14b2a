"""SmolLM2-135M's real weights as the tests' one folder: transformers' own, what it says of them, and Megatron's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = Path(sys.prefix) / "smollm2"
LIMIT_S = 1700


def require(packages: Path) -> None:
    """Where they are not there, skip the test; fail it where CI runs it."""
    if not (packages / ".installed").is_file():
        reason = "SmolLM2 is not there; `make smollm2` installs it"
        (pytest.fail if os.environ.get("CI") or os.environ.get("R1MEGA_CI") else pytest.skip)(reason)


def make(folder: Path) -> None:
    """Fill a folder; see smollm2.py."""
    require(PACKAGES)
    run(str(Path(__file__).parent / "smollm2.py"), str(folder), str(PACKAGES))
    convert("to-megatron", folder / "hf", folder / "megatron")


def convert(verb: str, source: Path, out: Path) -> None:
    run("-m", "r1mega.cli", "convert", verb, str(source), str(out))


def run(*command: str, cwd: Path | None = None) -> None:
    command = (sys.executable, "-W", "ignore", *command)
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, cwd=cwd)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
