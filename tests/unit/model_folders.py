"""Small model folders, and the ways in which weights of the same size differ."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {f"layer.{i}": torch.randn(3, 4, generator=generator) for i in range(4)}
    return made | {"bytes": torch.arange(6, dtype=torch.uint8), "empty": torch.zeros(0, 3)}


def model(folder: Path, weights: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors() if weights is None else weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 4, **config}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def changed_models() -> dict[str, Any]:
    t = tensors()
    bit = t["layer.1"].clone().view(torch.int32)
    bit[2, 3] ^= 1
    return {
        "one bit": {**t, "layer.1": bit.view(torch.float32)},
        "a name": {("layer.9" if k == "layer.3" else k): v for k, v in t.items()},
        "two exchanged": {**t, "layer.0": t["layer.1"], "layer.1": t["layer.0"]},
        "a shape": {**t, "layer.2": t["layer.2"].view(4, 3)},
        "a dtype": {**t, "layer.2": t["layer.2"].view(torch.int32)},
        "one less": {k: v for k, v in t.items() if k != "empty"},
    }
