"""Megatron against vLLM: the same weights give the same sampled tokens the same log-probabilities.

In a process of its own: the trainer's shims change torch for the whole process, and other tests here load
transformers models.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import rotation

pytestmark = pytest.mark.vllm


DEEPSEEK = json.loads((Path(__file__).parents[2] / "configs/tiny/deepseek_v3.json").read_text())
DENSE = {
    "vocab_size": 352,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 512,
    "initializer_range": 0.06,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
MODELS = {
    "deepseek": DEEPSEEK,
    "qwen2_tied": {"model_type": "qwen2", **DENSE, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **DENSE, "head_dim": 64},
    "llama3": {"model_type": "llama", **DENSE, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "deepseek_tied": {**DEEPSEEK, "tie_word_embeddings": True},
}


# The first has a router, the second its head's shim.
TRIED = rotation.rows(
    "models of policy and engine", always=("deepseek", "qwen2_tied"), rotating=("qwen3", "llama3", "deepseek_tied"),
    take=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    """What one process has found of every model that a test of this session asks for."""
    tests = (item for item in request.session.items if item.path == request.path)
    models = list(dict.fromkeys(test.callspec.params["result"] for test in tests))
    script = Path(__file__).with_name("policy_and_engine.py")
    folder = tmp_path_factory.mktemp("policy_and_engine")
    for model in models:
        (folder / model).mkdir()
        (folder / model / "config.json").write_text(json.dumps(MODELS[model]))
    command = [sys.executable, "-W", "ignore", str(script), str(folder), *models]
    done = subprocess.run(command, capture_output=True, text=True, cwd=script.parents[2])
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"model"')]
    return {row["model"]: row for row in rows}, done


@pytest.fixture(
    scope="module", params=[pytest.param(m, marks=pytest.mark.slow if m != "deepseek" else ()) for m in TRIED]
)
def result(request, results):
    found, process = results
    assert request.param in found, process.stderr[-3000:]
    assert "failed" not in found[request.param], found[request.param]["failed"]
    return found[request.param]


def test_the_process_ends_in_order(results, result):
    assert results[1].returncode == 0, results[1].stderr[-3000:]


def test_a_trainer_that_pushes_imports_nothing_of_vllm(result):
    assert result["of_vllm"] == []


def test_policy_and_engine_agree_before_and_after_pushes(result):
    rows = result["found"]
    places = [(row["version"], row["temperature"]) for row in rows]
    assert places == [(version, temperature) for version in range(3) for temperature in (1.0, 0.7)]
    for row in rows:
        assert row["tokens"] > 5_000
        # A token past the bound that follows no tie of the router would have raised. A tie comes once in some 100,000
        # tokens, and these are some 10,000; one in a question's own tokens is in all of its answers.
        assert row["questions_after_tie"] <= (2 if result["model"].startswith("deepseek") else 0)
        assert 0 < row["mismatch/max_untied"] < 1e-4


def test_a_policy_that_was_not_pushed_is_found_out(result):
    assert "no tie of the router explains it" in result["stale"]


def test_a_tied_head_needs_its_shim_and_no_other_does(result):
    """vllm_cpu_tied_head: without it the engine goes on predicting with the head before the push."""
    tied_by_vllm = result["model"] == "qwen2_tied"
    assert ("disagree on the log-probability" in result["without_tied_head_shim"]) is tied_by_vllm
