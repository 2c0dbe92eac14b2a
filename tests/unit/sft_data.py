"""A tiny base model of either family, conversations for it, and an SFT config of both."""

import json
from pathlib import Path
from typing import Any

from r1mega.data.sources.reasoning_gym import Task
from r1mega.data.task_conversations import task_conversations
from r1mega.data.tokenizer import train_tokenizer
from r1mega.families.registry import read_model
from r1mega.recipe.sft import SFT

TINY = Path(__file__).parents[2] / "configs" / "tiny"
TASK = Task(name="chain_sum", params={"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 1})
FAMILIES = ("deepseek_v3", "qwen2")


def write_conversations(file: Path, num: int = 200) -> list[dict[str, Any]]:
    rows = list(task_conversations([TASK], num, seed=0))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def write_base(folder: Path, family: str, mesh: Any, rows: list[dict[str, Any]]) -> None:
    """A Hugging Face folder of random weights, with a tokenizer trained on the conversations."""
    from r1mega.config.training import Batch, Optimizer
    from r1mega.trainer.policy import Policy
    from r1mega.weights import hf_io

    texts = ["<|user|>" + "<|assistant|>".join(m["content"] for m in row["messages"]) for row in rows]
    tokenizer_dir = folder.with_name(f"{family}_tokenizer")
    tokenizer = train_tokenizer(texts, 352, tokenizer_dir)
    spec = read_model(TINY / f"{family}.json").with_vocab(
        352, bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id
    )
    policy = Policy.build(
        spec, mesh, Optimizer(lr=1e-3), Batch(chunk_tokens=64),
        mtp="off", mtp_loss_weight=0.0, expert_bias_rate=0.0, seed=0,
    )  # fmt: skip
    hf_io.export(policy, folder, tokenizer_dir)


def sft_config(base: Path, conversations: Path, **changes: Any) -> SFT:
    """Eight steps of 16 conversations, validated every four, saved every three; `changes` are sections or values."""
    return SFT.model_validate(
        {
            "stage": "sft",
            "model": {"path": str(base)},
            "data": {"files": [str(conversations)], "max_tokens": 96},
            "validation": {"share": 0.1, "every_steps": 4},
            "num_epochs": 3,
            "max_steps": 8,
            "batch_size": 16,
            "optimizer": {"lr": 3e-3},
            "batch": {"chunk_tokens": 96, "chunks_per_micro_batch": 16},
            "save": {"every_steps": 3},
            "wandb": {"mode": "disabled"},
            **changes,
        }
    )
