"""Folders of reward models: a tiny Qwen2 with a score head, whose weights follow from a seed."""

import json
from pathlib import Path

import torch
from check_and_run import write_model
from safetensors.torch import save_file

from r1mega.data.template import TINY
from r1mega.families.registry import read_model
from r1mega.families.score_head import with_score_head
from r1mega.families.spec import Kind


def write_reward_model(out: Path, *, seed: int = 0, template: str = TINY.chat_template, **fields: object) -> Path:
    """With a tokenizer of one token a byte and the tiny chat template; `fields` are config.json's."""
    write_model(out, weights=False, **fields)
    spec = with_score_head(read_model(out))
    (out / "config.json").write_text(json.dumps(dict(spec.hf)))
    (out / "chat_template.jinja").write_text(template)
    generator = torch.Generator().manual_seed(seed)
    rows = [row for row in spec.tensors() if row.kind is not Kind.COPY]
    shapes = {name: shape for row in rows for name, shape in zip(row.hf, row.hf_shapes, strict=True)}
    save_file({n: 0.1 * torch.randn(*s, generator=generator) for n, s in shapes.items()}, out / "model.safetensors")
    return out
