"""A tiny random DeepSeek-V3 folder for a vLLM server, and other weights of it to push there."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_MODEL_LEN = 256


def make_model(folder: Path, seed: int = 0) -> None:
    """A random DeepseekV3ForCausalLM (hidden 128, 3 layers, 8 experts top-2) with a byte-level tokenizer."""
    import torch
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    config = DeepseekV3Config(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_shared_experts=1,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=48,
        kv_lora_rank=64,
        qk_rope_head_dim=32,
        qk_nope_head_dim=32,
        v_head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = DeepseekV3ForCausalLM(config)
    perturb(model, seed, weights=0.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    # transformers leaves these two out; vLLM reads them.
    path.write_text(json.dumps(json.loads(path.read_text()) | {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}))


def make_tokenizer() -> Any:
    """256 bytes and a few special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tags = ["<think>", "</think>", "<answer>", "</answer>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|pad|>",
        additional_special_tokens=tags,
    )


def perturb(model: Any, seed: int, *, weights: float = 0.02) -> None:
    """Add noise to every weight and draw new router biases, in place."""
    import torch

    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * weights)
        for name, buffer in model.named_buffers():
            if "e_score_correction_bias" in name:
                buffer.copy_(torch.randn(buffer.shape, generator=noise) * 0.05)


class FolderSource:
    """A weight source over what `save_pretrained` writes of a model: checkpoint names and shapes."""

    def __init__(self, model: Any, scratch: Path) -> None:
        from safetensors.torch import load_file

        model.save_pretrained(scratch)
        self.tensors = load_file(scratch / "model.safetensors")

    def metadata(self) -> list[tuple[str, Any, tuple[int, ...]]]:
        return [(name, t.dtype, tuple(t.shape)) for name, t in self.tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self.tensors.items())


def weight_version(server: Any) -> str:
    """Of the weights that the server says it has; "0" of those it was started with."""
    import httpx

    return httpx.get(f"{server.url}/weight_info", timeout=600).raise_for_status().json()["weight_version"]
