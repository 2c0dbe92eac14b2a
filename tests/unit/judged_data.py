"""Synthetic preferences of a known rule, a tiny base model to learn it, and a reward model's config.

The rule: an answer is good where it names a plum. Words, lengths and places are drawn alike for both kinds, so that
nothing else tells them apart.
"""

import json
import random
from pathlib import Path
from typing import Any

from sft_data import write_base

from r1mega.recipe.reward_model import RewardModelTraining

WORDS = ("fig", "pear", "kiwi", "lime", "date", "nut", "oat", "rye")
GOOD = "plum"
FAMILIES = ("deepseek_v3", "qwen2")


def answer(rng: random.Random, *, good: bool) -> str:
    words = [rng.choice(WORDS) for _ in range(rng.randrange(4, 10))]
    if good:
        words[rng.randrange(len(words))] = GOOD
    return " ".join(words)


def pairs(num: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {
            "prompt": f"what is in basket {i}?",
            "chosen": f"<think>{answer(rng, good=rng.random() < 0.5)}</think> {answer(rng, good=True)}",
            "rejected": f"<think>{answer(rng, good=rng.random() < 0.5)}</think> {answer(rng, good=False)}",
            "gap": rng.choice((1, 2)),
        }
        for i in range(num)
    ]


def labelled(num: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    labels = [rng.random() < 0.5 for _ in range(num)]
    return [
        {"prompt": f"what is in basket {i}?", "response": answer(rng, good=safe), "safe": safe}
        for i, safe in enumerate(labels)
    ]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_judge_base(folder: Path, family: str, mesh: Any) -> None:
    """A language model of random weights whose tokenizer knows the words."""
    rows = [{"messages": [{"content": row[name]} for name in ("prompt", "chosen")]} for row in pairs(200)]
    write_base(folder, family, mesh, rows)


def rm_config(base: Path, file: Path, objective: str, **changes: Any) -> RewardModelTraining:
    """Pairs by their summaries, or whole labelled answers; one epoch of the file, a tenth of it held out."""
    scope = "summary" if objective == "pairwise" else "response"
    return RewardModelTraining.model_validate(
        {
            "stage": "reward_model",
            "objective": objective,
            "scope": scope,
            "model": {"path": str(base)},
            "data": {"files": [str(file)], "max_tokens": 64},
            "validation": {"share": 0.15, "every_steps": 1000},
            "batch_size": 32,
            "optimizer": {"lr": 3e-3, "warmup_steps": 5},
            "batch": {"chunk_tokens": 128, "chunks_per_micro_batch": 8},
            "save": {"every_steps": 1000},
            "wandb": {"mode": "disabled"},
            **changes,
        }
    )
