"""The proof of a push can fail: each fault that was planted in one is seen, and named where it is.

In a process of its own, without a server: vLLM's models, loaders and kernels alone.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from push_faults import FAULTS, Fault

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = Path(__file__).with_name("push_mutations.py")
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path_factory.mktemp("stand"))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=script.parents[2])
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        row["fault"]: row for row in map(json.loads, filter(lambda s: s.startswith("{"), done.stdout.splitlines()))
    }


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_seen_and_named(results: dict[str, Any], fault: Fault) -> None:
    found = results[fault.name]["found"]
    assert len(found) >= fault.least, found
    assert not [line for line in found if not re.search(fault.seen, line)]


def test_pushes_without_a_fault_are_proven(results: dict[str, Any]) -> None:
    assert len(results) == len(FAULTS) + 5 and not {
        name: row["clean"] for name, row in results.items() if row["clean"]
    }


def test_every_fault_says_where_it_was_reported() -> None:
    assert len({fault.thread for fault in FAULTS}) == len(FAULTS) >= 12
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", fault.thread) for fault in FAULTS)
