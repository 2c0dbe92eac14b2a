"""Megatron against vLLM: the same weights give the same sampled tokens the same log-probabilities.

In a process of its own: the trainer's shims change torch for the whole process, and other tests here load
transformers models.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    script = Path(__file__).with_name("policy_and_engine.py")
    folder = tmp_path_factory.mktemp("policy_and_engine")
    command = [sys.executable, "-W", "ignore", str(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=script.parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_policy_and_engine_agree_before_and_after_pushes(result):
    rows = result["found"]
    places = [(row["version"], row["temperature"]) for row in rows]
    assert places == [(version, temperature) for version in range(3) for temperature in (1.0, 0.7)]
    for row in rows:
        assert row["tokens"] > 5_000
        # A token past the bound that follows no tie of the router would have raised; ties are rare.
        assert row["mismatch/answers_after_tie"] <= 16
        assert 0 < row["mismatch/max_untied"] < 1e-4


def test_a_policy_that_was_not_pushed_is_found_out(result):
    assert "no tie of the router explains it" in result["stale"]
