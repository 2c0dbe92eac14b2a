"""Whether this machine has a sandbox: tests that need one are skipped without, and fail where CI runs them."""

import functools
import os

import pytest

from r1mega.rewards.sandbox.sound import fault_of_this_machine

fault = functools.cache(fault_of_this_machine)


@pytest.fixture
def sandbox() -> None:
    """bubblewrap and a C++ compiler."""
    if (reason := fault(cpp=True)) is not None:
        (pytest.fail if os.environ.get("CI") or os.environ.get("R1MEGA_CI") else pytest.skip)(reason)
