"""A conversion's anonymous memory does not grow with the model: tools/bench/convert.py at two small sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_model_thrice_as_large_takes_no_more_than_a_tensor_more(tmp_path: Path):
    out = tmp_path / "measured.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/bench/convert.py"), "--folder", str(tmp_path / "work"), "--out", str(out),
         "--sizes-gb", "0.4", "1.6", "--turns", "1", "--processes", "1", "--rest-s", "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=1700,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    small, large = (case["bytes"] for case in found["cases"])
    assert large > 2.5 * small
    assert found["anonymous_growth_bytes"] <= found["cases"][-1]["largest_tensor_bytes"]
    assert not any((tmp_path / "work").iterdir())
