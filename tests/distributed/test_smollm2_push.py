"""Real weights pushed to vLLM: SmolLM2-135M answers as it does in transformers."""

import json
from pathlib import Path

import pytest
from rank_pool import Pool


@pytest.mark.vllm
@pytest.mark.slow
def test_the_pushed_model_gives_the_greedy_text_of_transformers(ranks: Pool, smollm2: Path):
    ranks.run(1, "smollm2_push.engine", smollm2, [""])
    wanted = json.loads((smollm2 / "greedy.json").read_text())
    pushed = json.loads((smollm2 / "pushed.json").read_text())
    assert "Paris" in wanted[0]["text"]
    assert [row["answer"] for row in wanted] == pushed["1"]
    # The server began with other weights.
    assert all(a != b for a, b in zip(pushed["0"], pushed["1"], strict=True))
