"""Small models of every family, each with what sets it apart, as Hugging Face folders of random weights."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from r1mega.buffers import Float32s, Int32s
from r1mega.families.registry import read_model
from r1mega.families.spec import Kind
from r1mega.samples import Document

DENSE = {
    "vocab_size": 131,  # no multiple of 2
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
QWEN_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LATENT = {
    "model_type": "deepseek_v3",
    **DENSE,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "num_nextn_predict_layers": 1,
}
DEEPSEEK_YARN = {
    "type": "yarn",
    "factor": 4,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
}

MODELS = {
    "deepseek_yarn": {**LATENT, "rope_scaling": DEEPSEEK_YARN},
    "deepseek_tied": {**LATENT, "tie_word_embeddings": True, "num_hidden_layers": 3},
    "deepseek_no_q_lora": {
        **LATENT,
        "q_lora_rank": None,
        "first_k_dense_replace": 0,
        "num_hidden_layers": 2,
        "num_nextn_predict_layers": 0,
    },
    "deepseek_dense": {
        **LATENT,
        "first_k_dense_replace": 2,
        "num_hidden_layers": 2,
        "num_nextn_predict_layers": 0,
    },
    "llama3": {"model_type": "llama", **DENSE, "head_dim": 24, "rope_scaling": LLAMA3},
    "llama_tied": {"model_type": "llama", **DENSE, "num_hidden_layers": 3, "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", **DENSE, "use_sliding_window": False, "sliding_window": 32},
    "qwen2_tied": {"model_type": "qwen2", **DENSE, "tie_word_embeddings": True, "rope_scaling": QWEN_YARN},
    "qwen3": {"model_type": "qwen3", **DENSE, "head_dim": 40, "num_hidden_layers": 3},
    "qwen3_tied": {"model_type": "qwen3", **DENSE, "head_dim": 24, "tie_word_embeddings": True},
}
"""Every rope scaling has an original length of 64, and `documents` are longer."""


def documents() -> list[Document]:
    generator = torch.Generator().manual_seed(3)
    lengths = (200, 61, 17)
    return [
        Document(
            Int32s(torch.randint(3, 131, (n,), generator=generator).tolist()),
            1,
            {"weight": Float32s.repeated(1 / 300, n - 1)},
        )
        for n in lengths
    ]


def write(name: str, folder: Path) -> None:
    """A folder of the model: no two elements alike but by chance, norms and biases far from ones and zeros."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODELS[name]))
    generator = torch.Generator().manual_seed(len(name))
    tensors: dict[str, torch.Tensor] = {}
    spec = read_model(folder)
    first = {row.megatron: row.hf[0] for row in reversed(spec.tensors())}
    for row in spec.tensors():
        if row.kind is Kind.COPY:
            tensors[row.hf[0]] = tensors[first[row.megatron]].clone()
            continue
        for tensor, shape in zip(row.hf, row.hf_shapes, strict=True):
            noise = torch.randn(shape, generator=generator)
            if len(shape) == 2:
                # What comes out is as large as what goes in; a tied embedding is a head too.
                tensors[tensor] = noise * (1.0 if "embed" in tensor and not spec.tied else shape[1] ** -0.5)
            else:
                tensors[tensor] = 1 + 0.2 * noise if "norm" in tensor else 0.1 * noise
    (folder / "config.json").write_text(json.dumps(dict(spec.hf)))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
