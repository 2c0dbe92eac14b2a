"""Reward hacking on purpose (tools/bench/hacking_toy.py), made anew: three seeds of two runs, by `make test-soak`.

What was measured once is in docs/measurements/hacking_toy.json, which tests/unit/test_guide_hacking.py reads.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(not os.environ.get("R1MEGA_SOAK"), reason="takes most of an hour: make test-soak")
def test_every_seed_is_hacked_from_the_start_and_none_on_the_reports_schedule(tmp_path: Path):
    """`faults` itself is tested in tests/unit/test_bench_hacking_toy.py."""
    out = tmp_path / "toy.json"
    made = [sys.executable, str(ROOT / "tools/bench/hacking_toy.py"), str(tmp_path / "runs"), "--out", str(out)]
    subprocess.run(made, cwd=ROOT, check=True)
    found = json.loads(out.read_text())
    assert len(found["runs"]) == 6 and found["faults"] == []
    assert out.with_suffix(".png").stat().st_size > 10_000
