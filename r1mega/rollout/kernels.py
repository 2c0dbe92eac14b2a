"""Which models the engine has kernels for on a CPU: laws of vLLM 0.32 that show only when it computes.

Sources: vllm/v1/attention/backends/cpu_attn.py (sizes of a head), mla/cpu_mla.py and platforms/cpu.py (latent
attention), fused_moe/experts/cpu_moe.py (experts).
"""

from r1mega.families.spec import Latent, ModelSpec

HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Channels of an attention head for which there is a kernel."""
MLA = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
"""The one shape of latent attention for which there is a kernel; any other runs as plain attention."""
MOE_MULTIPLE = 32
"""What an expert's kernels ask of the hidden size."""


def kernel_faults(spec: ModelSpec) -> list[str]:
    """What the engine would fail at, with what would be right; of its ranks: `layout.engine_laws`."""
    attention, faults = spec.attention, list[str]()
    if isinstance(attention, Latent):
        plain = (attention.kv_lora_rank, attention.qk_rope_dim) != tuple(MLA.values())
        size = attention.qk_nope_dim + attention.qk_rope_dim
        what = f"qk_nope_head_dim + qk_rope_head_dim = {size}"
    else:
        plain, size = True, attention.head_dim
        what = f"head_dim = {size}"
    if plain and size not in HEAD_SIZES:
        faults.append(
            f"model: {what}: vLLM has no attention kernel for heads of that size on a CPU; it has them for "
            f"{', '.join(map(str, HEAD_SIZES))}"
        )
    if spec.moe is not None and spec.hidden_size % MOE_MULTIPLE:
        faults.append(
            f"model: hidden_size = {spec.hidden_size}: vLLM's experts on a CPU need a multiple of {MOE_MULTIPLE}"
        )
    return faults
