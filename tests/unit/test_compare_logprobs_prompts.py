"""tools/compare_logprobs.py refuses what it cannot compare."""

import argparse
import importlib.util
import json
from pathlib import Path

import pytest
from conversion_data import tiny_spec, tokenizer

from r1mega.errors import ConfigError, DataError


def test_prompts_that_cannot_be_compared_are_refused(tmp_path):
    file = Path(__file__).parents[2] / "tools" / "compare_logprobs.py"
    found = importlib.util.spec_from_file_location("compare_logprobs", file)
    tool = importlib.util.module_from_spec(found)
    found.loader.exec_module(tool)
    with pytest.raises(DataError, match=r"nosuch\.txt: cannot be read"):
        tool.read_prompts(tmp_path / "nosuch.txt")
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(DataError, match=r"empty\.txt: no prompts"):
        tool.read_prompts(tmp_path / "empty.txt")
    with pytest.raises(ConfigError, match="two different ones"):
        tool.compare(argparse.Namespace(model=tmp_path, engines=["vllm"], prompts=None, megatron=None, bound=1e-4))
    words = json.loads(tokenizer("a", "b"))
    (tmp_path / "tokenizer.json").write_text(json.dumps({**words, "pre_tokenizer": {"type": "Whitespace"}}))
    assert tool.tokenise(tmp_path, ["a b"], tiny_spec()) == [[0, 1]]
    with pytest.raises(DataError, match="a prompt has 3 tokens, the model max_position_embeddings = 2"):
        tool.tokenise(tmp_path, ["a b a"], tiny_spec(max_position_embeddings=2))
