"""Where NeMo-Run's own environment is. Without it tests that ask it are skipped, and fail where CI runs them."""

import os
from pathlib import Path

import pytest

PYTHON = Path(__file__).parents[1] / ".venv-launch/bin/python"


def python() -> Path:
    """Its interpreter."""
    if not any(PYTHON.parent.parent.glob(".installed-*")):
        reason = "NeMo-Run's environment is not there; `make env-launch` makes it"
        (pytest.fail if os.environ.get("CI") or os.environ.get("R1MEGA_CI") else pytest.skip)(reason)
    return PYTHON
