"""The full-size chain has no fault in any stage."""

import json
from pathlib import Path

import pytest

from r1mega.families.spec import ModelSpec, Row
from r1mega.pipeline.graph import load_pipeline, look_at_chain
from r1mega.rewards.format import is_reasoned

ROOT = Path(__file__).parents[2]


def test_every_stage_passes_on_its_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Each with what the earlier ones hand it; what no stage makes are the questions and DeepSeek-V3's weights."""
    monkeypatch.chdir(ROOT)
    tables: dict[tuple[object, ...], list[Row]] = {}

    def tensors(spec: ModelSpec) -> list[Row]:
        """DeepSeek-V3's takes a while to make, and most stages want it."""
        which = spec.family, spec.head, spec.num_layers, spec.hidden_size
        if which not in tables:
            tables[which] = spec.rows(spec)
        return tables[which]

    monkeypatch.setattr(ModelSpec, "tensors", tensors)
    pipeline = load_pipeline(ROOT / "configs/r1/pipeline.toml")
    looks = look_at_chain(pipeline, "h800_v3", tmp_path, [])
    assert len(looks) == 28
    absent = [line for seen in looks for line in seen.absent if "take a GPU each" not in line]
    assert absent and all("/data/" in line or "/weights/" in line for line in absent), absent
    made = [line for line in absent if "made by" in line]
    assert made == [], "what a stage makes is handed on"
    ranks = {node.name: seen.num_ranks for node, seen in zip(pipeline.stages, looks, strict=True)}
    wanted = {"dev2": 512, "qwen_1_5b": 8, "qwen_14b": 16, "llama_70b": 64, "sft_data": 1, "eval": 1}
    assert {name: ranks[name] for name in wanted} == wanted
    assert pipeline.table is not None and len(pipeline.table.rows) == 12 and len(pipeline.relations) == 4


def test_the_examples_of_few_shot_prompting_are_what_is_asked_for():
    """A long thought in its tags, and a summary behind it with the right answer in a box."""
    file = ROOT / "configs/questions/examples/long_thoughts.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert all(is_reasoned(row["response"]) for row in rows)
    thoughts = [row["response"].partition("</think>")[0] for row in rows]
    assert all(len(thought.split()) > 120 for thought in thoughts)
    boxes = ("\\boxed{60}", "\\boxed{72}", "\\boxed{12{:}10}")
    assert [box in row["response"].partition("</think>")[2] for box, row in zip(boxes, rows, strict=True)] == [
        True
    ] * 3
