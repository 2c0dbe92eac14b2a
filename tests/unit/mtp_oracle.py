"""MTP layers of a published folder, run by vLLM's own forward over transformers' decoder layers.

A process of its own, since the trainer's CUDA stubs are no place to load transformers in:
`mtp_oracle.py FOLDERS < documents` prints, for each folder and depth, the log-probability of every token of each
document that the depth predicts, in their order. vLLM's class cannot be built outside an engine, so its two methods
are taken from the source of the installed package: the one that names a folder's tensors, and the one that runs a
layer.
"""

import ast
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn


def of_vllm(cls: str, method: str) -> Any:
    """A method of a class of vLLM's DeepSeek MTP draft, as its source has it."""
    found = importlib.util.find_spec("vllm")
    assert found is not None and found.origin is not None
    source = (Path(found.origin).parent / "model_executor/models/deepseek_mtp.py").read_text()
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    function = next(f for f in classes[cls].body if isinstance(f, ast.FunctionDef) and f.name == method)
    names: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module([function], []), "deepseek_mtp.py", "exec"), names)
    return names[method]


class Block(nn.Module):
    """A transformers decoder layer behind the interface of vLLM's: it gives its update and what it is added to."""

    use_sequence_parallel_moe = False

    def __init__(self, layer: nn.Module, angles: Any, mask: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.angles, self.mask = layer, angles, mask

    def forward(self, positions, hidden_states, residual):
        assert residual is None
        after = self.layer(hidden_states[None], attention_mask=self.mask, position_embeddings=self.angles)[0]
        return after - hidden_states, hidden_states


class Layer(nn.Module):
    """The parts of vLLM's MTP layer, under its names."""

    forward = of_vllm("DeepSeekMultiTokenPredictorLayer", "forward")

    def __init__(self, hidden: int, eps: float) -> None:
        super().__init__()
        self.enorm, self.hnorm = nn.RMSNorm(hidden, eps), nn.RMSNorm(hidden, eps)
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False)
        self.shared_head = nn.Module()
        self.shared_head.norm = nn.RMSNorm(hidden, eps)
        self.shared_head.forward = lambda x: self.shared_head.norm(x)


def load(folder: Path, config: Any) -> list[Layer]:
    """Each depth's layer with its own tensors; decoder layers are loaded elsewhere, by transformers."""
    rename = of_vllm("DeepSeekMTP", "_rewrite_spec_layer_name")
    tensors = load_file(folder / "model.safetensors")
    layers = []
    for i in range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers):
        names = {n: rename(SimpleNamespace(), i, n) for n in tensors if n.startswith(f"model.layers.{i}.")}
        prefix = f"model.layers.{i}."
        own = {
            new.removeprefix(prefix): tensors[old]
            for old, new in names.items()
            if new.startswith(prefix) and ".mtp_block." not in new and not new.endswith("shared_head.head.weight")
        }
        layer = Layer(config.hidden_size, config.rms_norm_eps)
        layer.load_state_dict(own)
        layers.append(layer)
    return layers


@torch.no_grad()
def predicted(folder: Path, documents: list[list[int]]) -> list[list[list[float]]]:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    trunk, depths = config.num_hidden_layers, config.num_nextn_predict_layers
    # With so many layers more it takes the MTP layers' decoder layers for its own, which they are by their names.
    deeper = AutoConfig.from_pretrained(folder, num_hidden_layers=trunk + depths)
    model = AutoModelForCausalLM.from_pretrained(folder, config=deeper, dtype=torch.float32).eval()
    layers, decoder = load(folder, config), model.model
    result: list[list[list[float]]] = [[] for _ in range(depths)]
    for ids in map(torch.tensor, documents):
        length = len(ids)
        mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
        embedded = decoder.embed_tokens(ids)
        angles = decoder.rotary_emb(embedded[None], torch.arange(length)[None])
        hidden = embedded[None]
        for layer in decoder.layers[:trunk]:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=angles)
        hidden = decoder.norm(hidden)[0]
        for k, layer in enumerate(layers, 1):
            layer.mtp_block = Block(decoder.layers[trunk + k - 1], angles, mask)
            ahead = torch.cat([ids[k:], ids[:k]])
            positions = torch.arange(1, length + 1)  # vLLM masks position 0, which has no token before it
            _, hidden = layer(ahead, positions, hidden, decoder.embed_tokens(ahead))
            logp = model.lm_head(hidden[: length - k - 1]).log_softmax(-1)
            result[k - 1].append(logp.gather(1, ids[k + 1 :, None])[:, 0].tolist())
    return result


if __name__ == "__main__":
    documents = json.load(sys.stdin)
    print(json.dumps([predicted(Path(folder), documents) for folder in sys.argv[1:]]))
